"""ResNet (He 2015), with the stride where He 2015 or where Goyal 2017 has it: an image as a grid of features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.config import setting, spec_fields
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.models.parts import check_image, rastered
from mmjax.nn.activation import activation
from mmjax.nn.batch_norm import BatchNorm, GroupNorm
from mmjax.nn.convolution import Convolution, max_pool
from mmjax.nn.loop import CONVOLVED, check_convolved, run_layers
from mmjax.parallel.mesh import constrain_batch

BLOCKS = ("basic", "bottleneck")
NORMS = ("batch", "group")
REDUCTION = 4  # of the channels inside a bottleneck


class _Fields(nn.Module):
    """What every part of the network is told."""

    block: str = "bottleneck"
    activation: str = "relu"
    inner_activation: str = "relu"
    norm: str = "batch"
    groups: int = setting(least=1, default=32)
    norm_epsilon: float = setting(least=0, default=1e-5)
    norm_momentum: float = setting(above=0, most=1, default=0.1)
    stride_first: bool = False

    def _told(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in spec_fields(_Fields)}


class ConvNorm(_Fields):
    """A convolution without bias, its norm, and an activation where one is named: [B, H, W, C] -> [B, H', W', features]."""

    features: int = 64
    kernel: int = 3
    stride: int = 1
    then: str = ""

    @nn.compact
    def __call__(self, x_BHWC: Array, valid_B: Array | None) -> Array:
        side, pad = (self.kernel, self.kernel), (self.kernel // 2, self.kernel // 2)
        strides = (self.stride, self.stride)
        x_BHWC = Convolution(self.features, side, strides, pad, use_bias=False, name="convolve")(x_BHWC)
        if self.norm == "batch":
            norm: Callable[..., Array] = BatchNorm(self.norm_epsilon, self.norm_momentum, name="norm")
        else:
            norm = GroupNorm(self.groups, self.norm_epsilon, name="norm")
        x_BHWC = norm(x_BHWC, valid_B)
        return activation(self.then)(x_BHWC) if self.then else x_BHWC


class ResidualBlock(_Fields):
    """Two convolutions of 3 x 3 (`basic`), or 1 x 1, 3 x 3 and 1 x 1 with fewer channels inside (`bottleneck`), added to x:
    itself, or where the shape changes its projection."""

    features: int = 64
    stride: int = 1

    @nn.compact
    def __call__(self, x_BHWC: Array, nothing: None, valid_B: Array | None) -> Array:
        x_BHWC = constrain_batch(x_BHWC)
        inside, told = self.features // REDUCTION, self._told()
        if self.block == "basic":
            steps = [(self.features, 3, self.stride), (self.features, 3, 1)]
        else:
            strides = (self.stride, 1) if self.stride_first else (1, self.stride)
            steps = [(inside, 1, strides[0]), (inside, 3, strides[1]), (self.features, 1, 1)]
        y_BHWC = x_BHWC
        for number, (features, kernel, stride) in enumerate(steps, 1):
            then = self.inner_activation if number < len(steps) else ""
            own = told | {"features": features, "kernel": kernel, "stride": stride, "then": then}
            y_BHWC = ConvNorm(**own, name=f"conv_{number}")(y_BHWC, valid_B)
        if projects(x_BHWC.shape[-1], self.features, self.stride):
            own = told | {"features": self.features, "kernel": 1, "stride": self.stride}
            x_BHWC = ConvNorm(**own, name="shortcut")(x_BHWC, valid_B)
        return activation(self.activation)(y_BHWC + x_BHWC)


class _Stage(_Fields):
    """Blocks of one width; the first stands apart where it differs from the others."""

    features: int = 64
    stride: int = 1
    depth: int = 1
    unroll: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, x_BHWC: Array, valid_B: Array | None) -> Array:
        body: Any = ResidualBlock if self.remat == "none" else nn.remat(ResidualBlock, prevent_cse=self.unroll)
        told, left = self._told() | {"features": self.features}, self.depth
        if projects(x_BHWC.shape[-1], self.features, self.stride):
            x_BHWC, left = body(**told, stride=self.stride, name="first")(x_BHWC, None, valid_B), left - 1
        if not left:
            return x_BHWC
        return run_layers(self, body(**told, name="layers"), left, self.unroll, x_BHWC, None, valid_B)


class ResNet(_Fields):
    """image [B, H, W, channels] -> Tokens [B, h w, D]: the places of the last stage in reading order, a `grid` without first
    tokens; D is the last of `widths`. The mean of its tokens is what HuggingFace's classifier reads.

    Layers are stacked: `stage_N/layers`, and `stage_N/first` where it differs from them. With `norm="batch"` the running
    statistics are variables. An encoder of which nothing is trained reads them, in training too, and does not write them; one
    of which something is trained normalises by the batch, whatever else of it is frozen. A moving average of the parameters
    goes with the latest statistics, which are not averaged again. Micro-batches are refused (`in_batch`).

    Usage:
      ResNet()  # ResNet-50; ResNet(block="basic", widths=(64, 128, 256, 512), depths=(2, 2, 2, 2)) is ResNet-18

    Attributes:
      widths: channels of each stage.
      depths: blocks of each stage.
      block: `basic` or `bottleneck`.
      stem_width: channels after the first convolution.
      channels: of the image.
      activation: of the stem, and of what a block gives, as in `nn.activation`.
      inner_activation: within blocks, where HuggingFace's has a ReLU whatever its `hidden_act` says.
      norm: `batch`, or `group`: the groups of an example alone, without statistics.
      groups: of `norm="group"`.
      norm_epsilon: added to the variance.
      norm_momentum: how far the running statistics move in a step.
      reduce_first: halve the grid in the first stage as well.
      stride_first: stride in a bottleneck's first convolution (He 2015), not in its second (Goyal 2017).
      unroll: lay the layers out instead of looping.
      remat: what the backward pass recomputes: `none`, or `full`, each block.

    `valid` [B] bool: rows that count in the statistics of the batch; `valid` of the batch, and `image_valid` where it has one.

    Raises:
      UserError: an input that is no image of these `channels`, or too small; a mask, which a convolution would read over;
        unknown words; stages that do not match, groups that do not divide.
    """

    widths: tuple[int, ...] = setting(everyday=True, least=1, default=(256, 512, 1024, 2048))
    depths: tuple[int, ...] = setting(everyday=True, least=1, default=(3, 4, 6, 3))
    stem_width: int = setting(least=1, default=64)
    channels: int = setting(least=1, default=3)
    reduce_first: bool = False
    unroll: bool = False
    remat: str = "none"

    @property
    def in_batch(self) -> bool:
        """Whether what it makes of an example depends on the others of its batch, in training."""
        return self.norm == "batch"

    @nn.compact
    def __call__(self, image: Array, mask: Array | None = None, valid: Array | None = None) -> Tokens:
        self._check()
        check_image(image, self.channels, mask)
        told = self._told()
        stem = ConvNorm(**told, features=self.stem_width, kernel=7, stride=2, then=self.activation, name="stem")
        x_BHWC = max_pool(stem(constrain_batch(image), valid), window=3, stride=2, padding=1)
        for number, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            own = told | {"features": width, "stride": 2 if number or self.reduce_first else 1, "depth": depth}
            stage = _Stage(**own, unroll=self.unroll, remat=self.remat, name=f"stage_{number}")
            x_BHWC = stage(x_BHWC, valid)
        return rastered(x_BHWC)

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        return jnp.zeros((1, 32, 32, self.channels), jnp.float32)

    def _check(self) -> None:
        for field, known in (("block", BLOCKS), ("norm", NORMS), ("remat", CONVOLVED)):
            if getattr(self, field) not in known:
                raise UserError(f"{field}={getattr(self, field)!r}: use one of {', '.join(known)}")
        check_convolved(self.widths, self.depths)
        if self.block == "bottleneck" and any(width % REDUCTION for width in self.widths):
            raise UserError(f"widths={self.widths}: of a bottleneck they are multiples of {REDUCTION}")


def projects(channels: int, features: int, stride: int) -> bool:
    """Whether a block changes the shape of what it is given, so that what is added to it is projected."""
    return channels != features or stride != 1
