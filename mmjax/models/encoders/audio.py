"""A Transformer over sound: a spectrogram, two convolutions along time, and the stack (Radford 2022, section 2.2; Whisper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.activation import activation
from mmjax.nn.convolution import Convolution
from mmjax.nn.mlp import dropout
from mmjax.nn.position import Table, sinusoids
from mmjax.nn.spectrogram import SPECTROGRAMS, LogMel, features_of
from mmjax.nn.stack import StackFields

gelu = activation("gelu")  # after both convolutions, whatever the layers have


class AudioTransformer(StackFields):
    """audio [B, N], a waveform, or [B, T', F], its features -> Tokens [B, T, D], T = ceil(T' / 2): one for 20 ms of Whisper's.

    Attributes:
      spectrogram: what makes features of a waveform; its `rate` is that of the data.
      max_length: the largest T.
      positions: `fixed` (sines and cosines, kept as parameters that nothing trains: Whisper's), `learned` or `none`.
      mask_padding: whether the mask hides what is padding; if not, silence counts as sound, as in Whisper, whose sounds are all
        padded to 30 s.
      embed_dropout: rate of the embeddings' dropout; None: `dropout`.
      final_norm: normalise after the last layer.
      taps: layers whose result is given beside the last one's, as `Tokens.taps`; see `nn.stack`.

    Its part: `mask` [B, N] bool, of features [B, T'], True = real.

    Raises:
      UserError: an input of another shape, one that is longer than `max_length` where there are positions, unknown positions.
    """

    spectrogram: Any = setting(SPECTROGRAMS, default=LogMel())
    max_length: int = setting(least=1, default=1500)
    positions: str = "fixed"
    mask_padding: bool = True
    embed_dropout: float | None = setting(least=0, below=1, default=None)
    final_norm: bool = True
    taps: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, audio: Array, mask: Array | None = None) -> Tokens:
        parts = self.front({"": audio} if mask is None else {"": audio, "mask": mask})
        x_BTF, seen = parts[""], parts.get("mask") if self.mask_padding else None
        mask_BT = jnp.ones(x_BTF.shape[:2], bool) if seen is None else seen
        x_B1TD = gelu(Convolution(self.width, (1, 3), (1, 1), (0, 1), name="convolve_first")(x_BTF[:, None]))
        x_BTD = gelu(Convolution(self.width, (1, 3), (1, 2), (0, 1), name="convolve_second")(x_B1TD))[:, 0]
        mask_BT = mask_BT[:, ::2]
        x_BTD = self._placed(x_BTD)
        x_BTD = dropout(self, x_BTD, self.dropout if self.embed_dropout is None else self.embed_dropout)
        places_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None], mask_BT.shape)
        stack = self.stack(final_norm=self.final_norm and self.depth > 0, taps=self.taps, name="stack")
        y_BTD, taps = stack.tapped(x_BTD, mask_BT, None, places_BT)
        return Tokens(y_BTD, mask_BT, places_BT, taps=taps)

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        return jnp.zeros((1, min(8, 2 * self.max_length), self.spectrogram.features))

    def front(self, parts: Mapping[str, Array]) -> dict[str, Array]:
        """Features and their mask in place of a waveform and its own: float32, whatever is computed in, and before what
        `model.augment` does to them. Features are left as they are."""
        return features_of(self.spectrogram, parts)

    def _placed(self, x_BTD: Array) -> Array:
        """With their positions."""
        length = x_BTD.shape[1]
        if self.positions == "none":
            return x_BTD
        if length > self.max_length:
            raise UserError(f"a sound of {length} tokens is longer than the model's max_length={self.max_length}: cut it")
        if self.positions == "learned":
            return x_BTD + Table(self.max_length, self.width, name="position").all()[None, :length].astype(x_BTD.dtype)
        if self.positions != "fixed":
            raise UserError(f"positions={self.positions!r}: use fixed, learned or none")

        def waves(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            return jnp.asarray(sinusoids(*shape), dtype)

        table_TD = Table(self.max_length, self.width, initial=waves, name="fixed_position").all()
        return x_BTD + jax.lax.stop_gradient(table_TD)[None, :length].astype(x_BTD.dtype)
