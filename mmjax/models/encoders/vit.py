"""Vision Transformer (Dosovitskiy 2020): an image as a sequence of patches."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import dropout
from mmjax.nn.position import Table, resize_grid, sincos_2d
from mmjax.nn.stack import StackFields


class ViT(StackFields):
    """image [B, H, W, channels] -> Tokens [B, P (+1), D].

    Any height and width that the patch divides; learned positions are interpolated when the grid differs from the one of
    `image_size`. `depth=0` gives bare patch embeddings, the image side of a single-stream model.

    Attributes:
      image_size, patch: (height, width) in pixels.
      patch_bias: whether the projection of patches has a bias (CLIP's has none).
      cls_token: put a learned token first.
      positions: `learned`, `sincos` (fixed, 2-D), `rotary` or `none`.
      embed_norm: normalise the embeddings before the stack (CLIP).

    Raises:
      UserError: an image that the patch does not divide, an unknown kind of positions.
    """

    image_size: tuple[int, int] = (224, 224)
    patch: tuple[int, int] = (16, 16)
    channels: int = 3
    patch_bias: bool = True
    cls_token: bool = False
    positions: str = "learned"
    embed_norm: bool = False
    final_norm: bool = True

    @nn.compact
    def __call__(self, image_BHWC: Array, mask: Array | None = None, segments: Array | None = None) -> Tokens:
        grid = self._grid(image_BHWC.shape[1], image_BHWC.shape[2])
        ph, pw = self.patch
        patches = rearrange(image_BHWC, "b (h ph) (w pw) c -> b (h w) (ph pw c)", ph=ph, pw=pw)
        x_BTD = Linear(self.width, use_bias=self.patch_bias, name="project_patches")(patches)
        batch = x_BTD.shape[0]
        if self.cls_token:
            cls = self.param("cls", nn.initializers.normal(0.02), (1, self.width)).astype(x_BTD.dtype)
            x_BTD = jnp.concatenate([jnp.broadcast_to(cls[None], (batch, 1, self.width)), x_BTD], axis=1)
        x_BTD = self._add_positions(x_BTD, grid)
        if self.embed_norm:
            x_BTD = self._norm("embed_norm")(x_BTD)
        x_BTD = dropout(self, x_BTD, self.dropout)
        mask_BT = jnp.ones(x_BTD.shape[:2], bool)
        places_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None], x_BTD.shape[:2])
        stack = self.stack(rotary=self.positions == "rotary", final_norm=self.final_norm and self.depth > 0, name="stack")
        return Tokens(stack(x_BTD, mask_BT, None, places_BT), mask_BT, places_BT)

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        return jnp.zeros((1, *self.image_size, self.channels), jnp.float32)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        ph, pw = self.patch
        if height % ph or width % pw:
            raise UserError(f"image of {height} x {width} pixels is not a whole number of patches of {ph} x {pw} (patch)")
        return height // ph, width // pw

    def _add_positions(self, x_BTD: Array, grid: tuple[int, int]) -> Array:
        extra = int(self.cls_token)
        if self.positions == "learned":
            base = self._grid(*self.image_size)
            table = Table(base[0] * base[1] + extra, self.width, name="position").all()
            table = jnp.concatenate([table[:extra], resize_grid(table[extra:], base, grid)]) if base != grid else table
        elif self.positions == "sincos":
            table = jnp.pad(jnp.asarray(sincos_2d(*grid, self.width)), ((extra, 0), (0, 0)))
        elif self.positions in ("rotary", "none"):
            return x_BTD
        else:
            raise UserError(f"positions={self.positions!r}: use learned, sincos, rotary or none")
        return x_BTD + table.astype(x_BTD.dtype)[None]
