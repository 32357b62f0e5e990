"""ConvNeXt (Liu 2022) and ConvNeXt V2 (Woo 2023): an image as a grid of features."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmjax.core.config import setting, spec_fields
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.models.parts import check_image, rastered
from mmjax.nn.bottleneck import after_branch
from mmjax.nn.convolution import Convolution
from mmjax.nn.loop import CONVOLVED, check_convolved, run_layers
from mmjax.nn.mlp import Mlp, dropout
from mmjax.nn.norm import Norm
from mmjax.parallel.mesh import constrain_batch

SIDE = 7  # of a depthwise kernel
EXPANSION = 4  # of the channels inside the feed-forward layer


class _Fields(nn.Module):
    """What every stage is told."""

    activation: str = "gelu"
    norm_epsilon: float = setting(least=0, default=1e-6)
    layer_scale: float = setting(least=0, default=1e-6)
    response_norm: bool = False
    unroll: bool = False
    remat: str = "none"

    def _told(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in spec_fields(_Fields)}


class ConvNeXtBlock(_Fields):
    """A depthwise convolution, a norm and a feed-forward layer at each place, added to x: [B, H, W, C] -> the same."""

    @nn.compact
    def __call__(self, x_BHWC: Array, rate: Array | None) -> Array:
        x_BHWC = constrain_batch(x_BHWC)
        B, H, W, C = x_BHWC.shape
        pad = (SIDE // 2, SIDE // 2)
        y_BHWC = Convolution(C, (SIDE, SIDE), padding=pad, groups=C, name="convolve")(x_BHWC)
        y_BTC = Norm(epsilon=self.norm_epsilon, name="norm")(y_BHWC).reshape(B, H * W, C)
        y_BTC = Mlp(EXPANSION * C, self.activation, response_norm=self.response_norm, name="mlp")(y_BTC)
        if self.layer_scale:
            scale = self.param("mlp_layer_scale", nn.initializers.constant(self.layer_scale), (C,))
            y_BTC = y_BTC * scale.astype(y_BTC.dtype).reshape(1, 1, -1)
        x_BTC = x_BHWC.reshape(B, H * W, C)
        y_BTC = after_branch(self, "mlp", y_BTC, lambda: y_BTC + x_BTC)
        return (x_BTC + dropout(self, y_BTC, 0.0 if rate is None else rate, whole=True)).reshape(B, H, W, C)


class _Stage(_Fields):
    """Halve the grid where `reduce` says so, then blocks of one width, each with its own rate of being skipped."""

    features: int = 96
    reduce: bool = False
    rates: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        if self.reduce:
            x_BHWC = Norm(epsilon=self.norm_epsilon, name="reduce_norm")(x_BHWC)
            x_BHWC = Convolution(self.features, (2, 2), (2, 2), name="convolve")(x_BHWC)
        body: Any = ConvNeXtBlock if self.remat == "none" else nn.remat(ConvNeXtBlock, prevent_cse=self.unroll)
        rates_L = jnp.asarray(self.rates, jnp.float32) if any(self.rates) else None
        block = body(**self._told(), name="layers")
        return run_layers(self, block, len(self.rates), self.unroll, x_BHWC, rates_L)


class ConvNeXt(_Fields):
    """image [B, H, W, channels] -> Tokens [B, h w, D]: the places of the last stage in reading order, a `grid` without first
    tokens; D is the last of `widths`.

    Layers are stacked, `stage_N/layers`. HuggingFace's classifier reads the norm of the mean of its tokens: a `Classifier`
    with `pool_norm`. Pixels at the lower and right edge that fill no patch are left out, as there.

    Usage:
      ConvNeXt()  # ConvNeXt-T; ConvNeXt(layer_scale=0.0, response_norm=True) is V2

    Attributes:
      widths: channels of each stage.
      depths: blocks of each stage.
      patch: (height, width) of the first convolution's patches, in pixels.
      channels: of the image.
      activation: as in `nn.activation`.
      norm_epsilon: added to the variance.
      layer_scale: initial scale of each residual branch (Touvron 2021, eq. 4); 0 is none (V2).
      response_norm: normalise the response within each block (V2).
      drop_path: rate at which an example skips the last block, on when training (Huang 2016); it rises evenly from 0 in the
        first block.
      final_norm: normalise each token at the end; HuggingFace's has that norm after pooling, in the head.
      unroll: lay the layers out instead of looping.
      remat: what the backward pass recomputes: `none`, or `full`, each block.

    Raises:
      UserError: an input that is no image of these `channels`, or too small; a mask, which a convolution would read over;
        unknown words; stages that do not match.
    """

    widths: tuple[int, ...] = setting(everyday=True, least=1, default=(96, 192, 384, 768))
    depths: tuple[int, ...] = setting(everyday=True, least=1, default=(3, 3, 9, 3))
    patch: tuple[int, int] = setting(least=1, default=(4, 4))
    channels: int = setting(least=1, default=3)
    drop_path: float = setting(least=0, below=1, default=0.0)
    final_norm: bool = False

    @nn.compact
    def __call__(self, image: Array, mask: Array | None = None) -> Tokens:
        if self.remat not in CONVOLVED:
            raise UserError(f"remat={self.remat!r}: use one of {', '.join(CONVOLVED)}")
        check_convolved(self.widths, self.depths)
        check_image(image, self.channels, mask)
        x_BHWC = Convolution(self.widths[0], self.patch, self.patch, name="convolve")(constrain_batch(image))
        x_BHWC = Norm(epsilon=self.norm_epsilon, name="stem_norm")(x_BHWC)
        ends = np.cumsum((0, *self.depths))
        rates = np.linspace(0.0, self.drop_path, ends[-1]).tolist()
        for number, width in enumerate(self.widths):
            own = {"features": width, "reduce": number > 0, "rates": tuple(rates[ends[number] : ends[number + 1]])}
            x_BHWC = _Stage(**self._told() | own, name=f"stage_{number}")(x_BHWC)
        if self.final_norm:
            x_BHWC = Norm(epsilon=self.norm_epsilon, name="final_norm")(x_BHWC)
        return rastered(x_BHWC)

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        reduced = 2 ** (len(self.widths) - 1)
        return jnp.zeros((1, self.patch[0] * reduced, self.patch[1] * reduced, self.channels), jnp.float32)
