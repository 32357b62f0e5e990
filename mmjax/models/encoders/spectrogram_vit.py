"""A vision Transformer over a spectrogram: patches that overlap (Gong 2021, arXiv:2104.01778, "AST", section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.convolution import Convolution
from mmjax.nn.mlp import dropout
from mmjax.nn.position import grid_table
from mmjax.nn.spectrogram import SPECTROGRAMS, Fbank, features_of
from mmjax.nn.stack import StackFields


class SpectrogramViT(StackFields):
    """audio [B, N], a waveform, or [B, T', F], its features -> Tokens [B, firsts + P, D].

    P is (F - patch) // frequency_stride + 1 rows of (T' - patch) // time_stride + 1 patches, low frequencies first, and within
    a row in the order of time. What is no whole patch at the ends is left out. A sound of fewer frames than `max_length` has
    the first positions of each row.

    Attributes:
      spectrogram: what makes features of a waveform; its `rate` is that of the data.
      max_length: the largest T', for which there are positions.
      patch: side of a patch, in features and in frames.
      frequency_stride, time_stride: from one patch to the next, in features and in frames.
      cls_token: put a learned token first.
      extra_tokens: further learned tokens after it (AST's distillation token).
      mask_padding: whether the mask hides patches that begin in padding; if not, padding counts as sound, as in AST.
      embed_dropout: rate of the embeddings' dropout; None: `dropout`.
      final_norm: normalise after the last layer.
      taps: layers whose result is given beside the last one's, as `Tokens.taps`; see `nn.stack`.

    Its part: `mask` [B, N] bool, of features [B, T'], True = real.

    Raises:
      UserError: an input of another shape, longer than `max_length` or shorter than a patch, fewer features than a patch has.
    """

    spectrogram: Any = setting(SPECTROGRAMS, default=Fbank(length=1024))
    max_length: int = setting(least=1, default=1024)
    patch: int = setting(least=1, default=16)
    frequency_stride: int = setting(least=1, default=10)
    time_stride: int = setting(least=1, default=10)
    cls_token: bool = True
    extra_tokens: int = setting(least=0, default=1)
    mask_padding: bool = True
    embed_dropout: float | None = setting(least=0, below=1, default=None)
    final_norm: bool = True
    taps: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, audio: Array, mask: Array | None = None) -> Tokens:
        parts = self.front({"": audio} if mask is None else {"": audio, "mask": mask})
        x_BTF, seen_BT = parts[""], parts.get("mask") if self.mask_padding else None
        rows, columns = self.grid(x_BTF.shape[1])
        strides = (self.frequency_stride, self.time_stride)
        convolve = Convolution(self.width, (self.patch, self.patch), strides, name="convolve")
        x_BTD = convolve(jnp.swapaxes(x_BTF, 1, 2)[..., None]).reshape(x_BTF.shape[0], rows * columns, self.width)
        firsts = 0
        for name, count in (("extra", self.extra_tokens), ("cls", int(self.cls_token))):
            if count:
                first = self.param(name, nn.initializers.normal(0.02), (count, self.width)).astype(x_BTD.dtype)
                x_BTD = jnp.concatenate([jnp.broadcast_to(first[None], (x_BTD.shape[0], count, self.width)), x_BTD], axis=1)
                firsts += count
        x_BTD = x_BTD + self._positions(rows, columns, firsts)[None].astype(x_BTD.dtype)
        x_BTD = dropout(self, x_BTD, self.dropout if self.embed_dropout is None else self.embed_dropout)
        mask_BT = jnp.ones(x_BTD.shape[:2], bool)
        if seen_BT is not None:
            real_BC = seen_BT[:, :: self.time_stride][:, :columns]
            mask_BT = jnp.pad(jnp.tile(real_BC, (1, rows)), ((0, 0), (firsts, 0)), constant_values=True)
        places_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None], mask_BT.shape)
        stack = self.stack(final_norm=self.final_norm and self.depth > 0, taps=self.taps, name="stack")
        y_BTD, taps = stack.tapped(x_BTD, mask_BT, None, places_BT)
        return Tokens(y_BTD, mask_BT, places_BT, taps=taps, grid=(rows, columns, firsts))

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        return jnp.zeros((1, self.max_length, self.spectrogram.features))

    def front(self, parts: Mapping[str, Array]) -> dict[str, Array]:
        """Features and their mask in place of a waveform and its own: float32, whatever is computed in, and before what
        `model.augment` does to them. Features are left as they are."""
        return features_of(self.spectrogram, parts)

    def grid(self, frames: int) -> tuple[int, int]:
        """How many rows and columns of patches so many frames have. Raises `UserError` for too many or too few."""
        features = self.spectrogram.features
        if frames > self.max_length:
            raise UserError(f"a sound of {frames} frames is longer than the model's max_length={self.max_length}: cut it")
        if min(frames, features) < self.patch:
            raise UserError(f"patch={self.patch}: {frames} frames of {features} features are no patch; use a smaller one")
        return (features - self.patch) // self.frequency_stride + 1, (frames - self.patch) // self.time_stride + 1

    def _positions(self, rows: int, columns: int, firsts: int) -> Array:
        """[firsts + P, D], those of the first columns of the grid of `max_length` frames."""
        whole = self.grid(self.max_length)
        table_TD = grid_table("learned", whole, firsts, self.width)
        if columns == whole[1]:
            return table_TD
        grid_RCD = table_TD[firsts:].reshape(*whole, self.width)[:, :columns]
        return jnp.concatenate([table_TD[:firsts], grid_RCD.reshape(rows * columns, self.width)])
