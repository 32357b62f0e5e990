"""A Transformer over a waveform: convolutions from samples to frames, and the stack (Baevski 2020, arXiv:2006.11477, "wav2vec
2.0", section 2; Hsu 2021, arXiv:2106.07447, "HuBERT", has the same)."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.activation import activation
from mmjax.nn.convolution import Convolution
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import dropout
from mmjax.nn.norm import ChannelNorm, Norm
from mmjax.nn.stack import StackFields

EPSILON = 1e-5  # of the norms between convolutions, whatever the stack has
LEAST_VARIANCE = 1e-7  # added to that of a waveform, as HuggingFace's extractor adds it
NORMS = ("group", "layer")


class WaveformTransformer(StackFields):
    """audio [B, N], a waveform -> Tokens [B, T, D], one for the samples that the strides skip: for 20 ms of wav2vec 2.0's.

    T is what is left of N after each convolution, floor((n - kernel) / stride) + 1. A frame is real where all the samples that
    it is made of are, and a sound has one at least. With `norm_placement="post"` the embeddings are normalised before the
    stack, with `pre` there is a norm after it instead (HuggingFace's `do_stable_layer_norm`). A row has the same numbers alone
    as among longer ones: no norm sees padding.

    Attributes:
      rate: of the waveform, in Hz.
      normalise: bring the real samples of each row to mean 0 and variance 1, in float32 and before all else.
      widths, kernels, strides: of each convolution its channels, and in samples or frames how wide it is and how far it moves.
      extract_norm: `group`, each channel over the time of its own row, after the first convolution alone; or `layer`, all
        channels of a frame, after each.
      extract_bias: whether these convolutions have biases.
      extract_activation: after each of them, and after the one that says positions.
      project_norm: normalise frames before they are projected to `width`.
      project_dropout: rate of dropout after that, on when training.
      position_kernel: frames that the convolution sees which says positions.
      position_groups: its groups of channels; they divide `width`.
      mask_token: have a learned token that stands for a masked frame: where `segments` [B, T] is 1.
      embed_dropout: rate of the embeddings' dropout; None: `dropout`.
      taps: layers whose result is given beside the last one's, as `Tokens.taps`; see `nn.stack`. There `frames` are what the
        convolutions give as it is projected, whatever is masked.

    Its parts: `mask` [B, N] bool, True = real, real ones first; `segments` [B, T] int32.

    Raises:
      UserError: an input of another shape or too short for one frame, convolutions that are not told completely, an unknown
        norm, groups that do not divide the width, segments without a `mask_token`.
    """

    any_length = True  # a row may be padded to whatever length there is

    norm_epsilon: float = setting(least=0, default=1e-5)
    norm_placement: str = "post"
    rate: int = setting(least=1, default=16_000)
    normalise: bool = True
    widths: tuple[int, ...] = setting(least=1, default=(512,) * 7)
    kernels: tuple[int, ...] = setting(least=1, default=(10, 3, 3, 3, 3, 2, 2))
    strides: tuple[int, ...] = setting(least=1, default=(5, 2, 2, 2, 2, 2, 2))
    extract_norm: str = "group"
    extract_bias: bool = False
    extract_activation: str = "gelu"
    project_norm: bool = True
    project_dropout: float = setting(least=0, below=1, default=0.0)
    position_kernel: int = setting(least=1, default=128)
    position_groups: int = setting(least=1, default=16)
    mask_token: bool = False
    embed_dropout: float | None = setting(least=0, below=1, default=None)
    taps: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, audio: Array, mask: Array | None = None, segments: Array | None = None) -> Tokens:
        """Of what `front` gives."""
        self._check(audio)
        x_BTC, count_B = audio[..., None], None if mask is None else mask.sum(axis=1).astype(jnp.int32)
        for number, (width, kernel, stride) in enumerate(zip(self.widths, self.kernels, self.strides, strict=True)):
            count_B = None if count_B is None else _frames(count_B, kernel, stride)
            settings = (width, kernel, stride, self._extract_norm(number), self.extract_bias, self.extract_activation)
            x_BTC = _Step(*settings, name=f"convolution_{number}")(x_BTC, count_B)
        mask_BT = jnp.ones(x_BTC.shape[:2], bool) if count_B is None else _first(count_B, x_BTC.shape[1])
        x_BTC = Norm(epsilon=self.norm_epsilon, name="frame_norm")(x_BTC) if self.project_norm else x_BTC
        x_BTD = dropout(self, Linear(self.width, name="project")(x_BTC), self.project_dropout)
        x_BTD = self._placed(self._masked(x_BTD, segments), mask_BT)
        if self.norm_placement == "post":
            x_BTD = self._norm("embed_norm")(x_BTD)
        x_BTD = dropout(self, x_BTD, self.dropout if self.embed_dropout is None else self.embed_dropout)
        places_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1], dtype=jnp.int32)[None], mask_BT.shape)
        stack = self.stack(final_norm=self.depth > 0, taps=self.taps, name="stack")
        y_BTD, taps = stack.tapped(x_BTD, mask_BT, None, places_BT)
        return Tokens(y_BTD, mask_BT, places_BT, taps={**taps, "frames": x_BTC})

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        return jnp.zeros((1, self.samples(1)))

    def length(self, samples: int) -> int:
        """T of so many samples."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def frames(self, count_B: Array) -> Array:
        """How many frames are real of rows of which so many samples are."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            count_B = _frames(count_B, kernel, stride)
        return count_B

    def samples(self, frames: int) -> int:
        """How many samples so many frames are made of: 400 are one of wav2vec 2.0's."""
        for kernel, stride in zip(self.kernels[::-1], self.strides[::-1], strict=True):
            frames = (frames - 1) * stride + kernel
        return frames

    def front(self, parts: Mapping[str, Array]) -> dict[str, Array]:
        """The waveform in float32, whatever is computed in: at mean 0 and variance 1 if it is normalised, and 0 where it is
        padding."""
        self._check(parts[""])
        x_BN, mask_BN = parts[""].astype(jnp.float32), parts.get("mask")
        real_BN = jnp.ones(x_BN.shape) if mask_BN is None else mask_BN.astype(jnp.float32)
        if self.normalise:
            count_B1 = jnp.maximum(real_BN.sum(axis=1, keepdims=True), 1.0)
            x_BN = x_BN - (x_BN * real_BN).sum(axis=1, keepdims=True) / count_B1
            variance_B1 = (jnp.square(x_BN) * real_BN).sum(axis=1, keepdims=True) / count_B1
            x_BN = x_BN / jnp.sqrt(variance_B1 + LEAST_VARIANCE)
        return {**parts, "": x_BN if mask_BN is None else jnp.where(mask_BN, x_BN, 0.0)}

    def _check(self, audio: Array) -> None:
        if not len(self.widths) == len(self.kernels) == len(self.strides) or not self.widths:
            raise UserError(
                f"widths={self.widths}, kernels={self.kernels}, strides={self.strides}: give one of each a convolution"
            )
        if self.extract_norm not in NORMS:
            raise UserError(f"extract_norm={self.extract_norm!r}: use one of {', '.join(NORMS)}")
        if self.width % self.position_groups:
            raise UserError(f"position_groups={self.position_groups} does not divide width={self.width}")
        if audio.ndim != 2:
            raise UserError(f"an encoder of waveforms reads [B, N], found an input of shape {audio.shape}")
        if audio.shape[1] < (least := self.samples(1)):
            raise UserError(
                f"a row of {audio.shape[1]} samples is shorter than the {least} of one frame: use {least / self.rate:g} s or "
                "more"
            )

    def _extract_norm(self, number: int) -> str:
        return self.extract_norm if self.extract_norm == "layer" or number == 0 else ""

    def _masked(self, x_BTD: Array, segments_BT: Array | None) -> Array:
        """With the learned token where frames are masked."""
        if segments_BT is not None and not self.mask_token:
            raise UserError("audio segments say which frames are masked: that needs mask_token=True, found False")
        if not self.mask_token:
            return x_BTD
        hidden_1D = self.param("mask_token", nn.initializers.uniform(1.0), (1, self.width)).astype(x_BTD.dtype)
        if segments_BT is None:
            return x_BTD
        if segments_BT.shape != x_BTD.shape[:2]:
            raise UserError(
                f"audio segments {list(segments_BT.shape)}: of these sounds there are {list(x_BTD.shape[:2])} frames"
            )
        return jnp.where(segments_BT[..., None] == 1, hidden_1D[None], x_BTD)

    def _placed(self, x_BTD: Array, mask_BT: Array) -> Array:
        """With what a wide convolution makes of the frames around each added to it; padding is 0."""
        x_BTD = jnp.where(mask_BT[..., None], x_BTD, jnp.zeros((), x_BTD.dtype))
        wide, padding = (1, self.position_kernel), (0, self.position_kernel // 2)
        convolve = Convolution(
            self.width, wide, padding=padding, groups=self.position_groups, weight_norm=True, name="position"
        )
        y_BTD = convolve(x_BTD[:, None])[:, 0, : x_BTD.shape[1]]
        return x_BTD + activation(self.extract_activation)(y_BTD)


class _Step(nn.Module):
    """A convolution along time, a norm if there is one, an activation: [B, T, C] -> [B, T', C']."""

    width: int
    kernel: int
    stride: int
    norm: str
    bias: bool
    activation: str

    @nn.compact
    def __call__(self, x_BTC: Array, count_B: Array | None) -> Array:
        """`count_B` is how many of the T' are real."""
        convolve = Convolution(self.width, (1, self.kernel), (1, self.stride), use_bias=self.bias, name="convolve")
        y_BTC = convolve(x_BTC[:, None])[:, 0]
        if self.norm == "layer":
            y_BTC = Norm(epsilon=EPSILON, name="norm")(y_BTC)
        elif self.norm:
            real_BT = None if count_B is None else _first(count_B, y_BTC.shape[1])
            y_BTC = ChannelNorm(epsilon=EPSILON, name="norm")(y_BTC, real_BT)
        return activation(self.activation)(y_BTC)


def _frames(count_B: Array, kernel: int, stride: int) -> Array:
    """How many frames a convolution makes of so many; one at least where there is something."""
    return jnp.where(count_B > 0, jnp.maximum(1, (count_B - kernel) // stride + 1), 0)


def _first(count_B: Array, length: int) -> Array:
    """[B, T] bool: the first places of each row."""
    return jnp.arange(length)[None] < count_B[:, None]
