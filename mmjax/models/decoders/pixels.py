"""From the patches that were seen to the pixels of all: the decoder of a masked autoencoder (He 2021, section 3; of videos Tong
2022, VideoMAE)."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.patches import grid_of
from mmjax.core.types import Array, Tokens
from mmjax.nn.linear import Linear
from mmjax.nn.position import grid_table, resize_grid, sincos_2d, sincos_sequence
from mmjax.nn.stack import StackFields

KINDS = ("sincos", "learned", "fixed", "sequence")


class PixelDecoder(StackFields):
    """context -> pixels [B, P, (tubelet *) patch height * patch width * channels] of every patch, in reading order, float32.

    Each token of the context goes to its place (its `positions`), one learned token to every place that is left; a stack and a
    projection follow.

    Attributes:
      image_size: (height, width) in pixels.
      patch: (height, width) of a patch, in pixels.
      tubelet: frames of a patch of a video; 0 for images.
      frames: of a video.
      channels: of the image.
      context: the name of the one encoder whose tokens it reads.
      firsts: how many tokens that encoder puts before the patches (1: a class token).
      writes: the modality whose images or videos it paints.
      positions: `sincos` (2-D), `learned` or `fixed` (see `ViT`); `sequence`, of a patch's number in reading order
        (VideoMAE's), and of a video that alone. Those kept for `image_size` are interpolated along the sequence where the
        number of patches differs, as HuggingFace's ViT-MAE does.
      token_bias: whether the projection of the context's tokens has a bias (VideoMAE's has none).
      final_norm_epsilon: of the last norm, where it differs from `norm_epsilon`; None for the same.

    Raises:
      UserError: an image that the patch does not divide, an unknown kind of positions, a context of several encoders, one that
        does not say where its tokens stand or has another number of tokens for a whole image.
    """

    image_size: tuple[int, int] = setting(least=1, default=(224, 224))
    patch: tuple[int, int] = setting(least=1, default=(16, 16))
    tubelet: int = setting(least=0, default=0)
    frames: int = setting(least=1, default=16)
    channels: int = setting(least=1, default=3)
    context: tuple[str, ...] = ("image",)
    firsts: int = setting(least=0, default=0)
    positions: str = "sincos"
    writes: str = "image"
    token_bias: bool = True
    final_norm_epsilon: float | None = setting(least=0, default=None)

    @nn.compact
    def decode(self, image: Array, context: Mapping[str, Tokens]) -> Array:
        """`image` [B, (T,) H, W, channels] is of the size to paint; nothing else of it is read."""
        if len(self.context) != 1:
            raise UserError(f"context={self.context}: a pixel decoder paints what one encoder saw")
        if self.positions not in KINDS or (self.tubelet and self.positions != "sequence"):
            known = "sequence" if self.tubelet else ", ".join(KINDS)
            raise UserError(f"positions={self.positions!r}: use {known}")
        if image.ndim != (5 if self.tubelet else 4):
            wanted = "videos [B, T, H, W, channels]" if self.tubelet else "images [B, H, W, channels]"
            raise UserError(f"tubelet={self.tubelet}: it paints {wanted}, found {image.shape}")
        tokens, grid = context[self.context[0]].real(), grid_of(image.shape, self.patch, self.tubelet)
        length, (ph, pw) = self.firsts + int(np.prod(grid)), self.patch
        self._check(tokens, length)
        seen_BKD = Linear(self.width, use_bias=self.token_bias, name="project_tokens")(tokens.embeddings)
        hidden = self.param("mask_token", nn.initializers.normal(0.02), (1, self.width)).astype(seen_BKD.dtype)
        x_BTD = jnp.broadcast_to(hidden[None], (seen_BKD.shape[0], length, self.width))
        x_BTD = jax.vmap(lambda x, places, own: x.at[places].set(own, unique_indices=True))(x_BTD, tokens.positions, seen_BKD)
        x_BTD = x_BTD + self._positions(grid).astype(x_BTD.dtype)[None]
        stack = self.stack(final_norm_epsilon=self.final_norm_epsilon, name="stack")
        y_BTD = stack(x_BTD, jnp.ones(x_BTD.shape[:2], bool))
        numbers = max(self.tubelet, 1) * ph * pw * self.channels
        return Linear(numbers, float32=True, name="project_pixels")(y_BTD[:, self.firsts :])

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        times = (self.frames,) if self.tubelet else ()
        return jnp.zeros((1, *times, *self.image_size, self.channels), jnp.float32)

    def _check(self, tokens: Tokens, length: int) -> None:
        if tokens.positions is None:
            raise UserError(f"context={self.context}: its tokens do not say where they stand; use the name of an image encoder")
        found = tokens.mask.shape[1]
        if self.is_initializing() and found != length:
            raise UserError(f"firsts={self.firsts} tokens and the patches of an image are {length}; the context gives {found}")

    def _positions(self, grid: tuple[int, ...]) -> Array:
        """[T, D]"""
        if self.positions == "sequence":
            table_PD = jnp.asarray(sincos_sequence(int(np.prod(grid)), self.width))
            return jnp.pad(table_PD, ((self.firsts, 0), (0, 0)))
        height, width = grid
        if self.positions == "sincos":
            return jnp.pad(jnp.asarray(sincos_2d(height, width, self.width)), ((self.firsts, 0), (0, 0)))
        base = grid_of((*self.image_size, self.channels), self.patch)
        table_TD = grid_table(self.positions, (base[0], base[1]), self.firsts, self.width)
        rows = resize_grid(table_TD[self.firsts :], (1, base[0] * base[1]), (1, height * width))
        return jnp.concatenate([table_TD[: self.firsts], rows])
