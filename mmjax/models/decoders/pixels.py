"""From the patches that were seen to the pixels of all: the decoder of a masked autoencoder (He 2021, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.linear import Linear
from mmjax.nn.position import grid_table, resize_grid, sincos_2d
from mmjax.nn.stack import StackFields


class PixelDecoder(StackFields):
    """context -> pixels [B, P, patch height * patch width * channels] of every patch, in reading order, float32.

    Each token of the context goes to its place (its `positions`), one learned token to every place that is left; a stack and a
    projection follow.

    Attributes:
      image_size: (height, width) in pixels.
      patch: (height, width) of a patch, in pixels.
      channels: of the image.
      context: the name of the one encoder whose tokens it reads.
      firsts: how many tokens that encoder puts before the patches (1: a class token).
      writes: the modality whose images it paints.
      positions: `sincos` (2-D), `learned` or `fixed` (see `ViT`). Those kept for `image_size` are interpolated along the
        sequence where the number of patches differs, as HuggingFace's ViT-MAE does.

    Raises:
      UserError: an image that the patch does not divide, an unknown kind of positions, a context of several encoders, one that
        does not say where its tokens stand or has another number of tokens for a whole image.
    """

    image_size: tuple[int, int] = setting(least=1, default=(224, 224))
    patch: tuple[int, int] = setting(least=1, default=(16, 16))
    channels: int = setting(least=1, default=3)
    context: tuple[str, ...] = ("image",)
    firsts: int = setting(least=0, default=0)
    positions: str = "sincos"
    writes: str = "image"

    @nn.compact
    def decode(self, image: Array, context: Mapping[str, Tokens]) -> Array:
        """`image` [B, H, W, channels] is of the size to paint; nothing else of it is read."""
        if len(self.context) != 1:
            raise UserError(f"context={self.context}: a pixel decoder paints what one encoder saw")
        if self.positions not in ("sincos", "learned", "fixed"):
            raise UserError(f"positions={self.positions!r}: use sincos, learned or fixed")
        tokens, grid = context[self.context[0]].real(), self._grid(image.shape[1], image.shape[2])
        length, (ph, pw) = self.firsts + grid[0] * grid[1], self.patch
        self._check(tokens, length)
        seen_BKD = Linear(self.width, name="project_tokens")(tokens.embeddings)
        hidden = self.param("mask_token", nn.initializers.normal(0.02), (1, self.width)).astype(seen_BKD.dtype)
        x_BTD = jnp.broadcast_to(hidden[None], (seen_BKD.shape[0], length, self.width))
        x_BTD = jax.vmap(lambda x, places, own: x.at[places].set(own, unique_indices=True))(x_BTD, tokens.positions, seen_BKD)
        x_BTD = x_BTD + self._positions(grid).astype(x_BTD.dtype)[None]
        y_BTD = self.stack(name="stack")(x_BTD, jnp.ones(x_BTD.shape[:2], bool))
        return Linear(ph * pw * self.channels, float32=True, name="project_pixels")(y_BTD[:, self.firsts :])

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        return jnp.zeros((1, *self.image_size, self.channels), jnp.float32)

    def _check(self, tokens: Tokens, length: int) -> None:
        if tokens.positions is None:
            raise UserError(f"context={self.context}: its tokens do not say where they stand; use the name of an image encoder")
        found = tokens.mask.shape[1]
        if self.is_initializing() and found != length:
            raise UserError(f"firsts={self.firsts} tokens and the patches of an image are {length}; the context gives {found}")

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        ph, pw = self.patch
        if height % ph or width % pw:
            raise UserError(f"image of {height} x {width} pixels is not a whole number of patches of {ph} x {pw} (patch)")
        return height // ph, width // pw

    def _positions(self, grid: tuple[int, int]) -> Array:
        """[T, D]"""
        if self.positions == "sincos":
            return jnp.pad(jnp.asarray(sincos_2d(*grid, self.width)), ((self.firsts, 0), (0, 0)))
        base = self._grid(*self.image_size)
        table_TD = grid_table(self.positions, base, self.firsts, self.width)
        rows = resize_grid(table_TD[self.firsts :], (1, base[0] * base[1]), (1, grid[0] * grid[1]))
        return jnp.concatenate([table_TD[: self.firsts], rows])
