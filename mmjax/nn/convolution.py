"""Convolutions over images and sounds, and the pooling between them; both pad as PyTorch does, alike on both sides."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mmjax.core.errors import UserError
from mmjax.core.types import Array

DIMS = ("NHWC", "HWIO", "NHWC")


def fan_out_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal of variance 2 / (height * width * outputs), for a kernel before a ReLU (He 2015, eq. 14; the ResNets' own)."""
    return jax.random.normal(key, shape, dtype) * (2.0 / math.prod((*shape[:2], shape[3]))) ** 0.5


class Convolution(nn.Module):
    """[B, H, W, C] -> [B, H', W', features], with H' = floor((H + 2 padding - kernel) / stride) + 1, as PyTorch's `Conv2d`.

    Parameters `kernel` [height, width, C / groups, features] and `bias` [features], float32; computed in the dtype of x. An
    adapter does not act here: it acts in `nn.linear`.

    Attributes:
      features: of the result.
      kernel: (height, width) in pixels.
      stride: (down, across) in pixels.
      padding: (rows, columns) of zeros, on both sides each.
      groups: parts of the channels that are convolved each for itself; as many as there are channels is depthwise.
      weight_norm: keep of each column of the kernel (its place along the width) the direction in `kernel`, and its length in a
        parameter `magnitude` [width] (Salimans & Kingma 2016, eq. 2; PyTorch's `weight_norm` along that dim).

    Raises:
      UserError: channels or features that `groups` does not divide, an image smaller than the kernel.
    """

    features: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    use_bias: bool = True
    weight_norm: bool = False

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        channels = x_BHWC.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise UserError(f"groups={self.groups} of a convolution divides neither or one of {channels} and {self.features}")
        check_size(x_BHWC, self.kernel, self.padding)
        shape = (*self.kernel, channels // self.groups, self.features)
        kernel = self.param("kernel", fan_out_init, shape)
        kernel = (self._measured(kernel) if self.weight_norm else kernel).astype(x_BHWC.dtype)
        y_BHWC = jax.lax.conv_general_dilated(
            x_BHWC,
            kernel,
            window_strides=self.stride,
            padding=[(p, p) for p in self.padding],
            dimension_numbers=DIMS,
            feature_group_count=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y_BHWC = y_BHWC + bias.astype(y_BHWC.dtype).reshape(1, 1, 1, -1)
        return checkpoint_name(y_BHWC, "linear")

    def _measured(self, kernel: Array) -> Array:
        """The kernel with its columns as long as `magnitude` says; as they were drawn, at first."""
        length_W = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(0, 2, 3)))
        magnitude_W = self.param("magnitude", lambda key, shape: length_W, length_W.shape)
        return kernel * (magnitude_W / length_W)[None, :, None, None]


def max_pool(x_BHWC: Array, window: int, stride: int, padding: int) -> Array:
    """[B, H, W, C] -> [B, H', W', C]: the largest of each window, padding left out, as PyTorch's `MaxPool2d`."""
    check_size(x_BHWC, (window, window), (padding, padding))
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    lowest = np.asarray(-np.inf, x_BHWC.dtype)  # known as what it is, so that the derivative is
    return jax.lax.reduce_window(x_BHWC, lowest, jax.lax.max, (1, window, window, 1), (1, stride, stride, 1), around)


def check_size(x_BHWC: Array, window: tuple[int, int], padding: tuple[int, int]) -> None:
    """Raises `UserError` for an image in which the window has no place."""
    height, width = x_BHWC.shape[1:3]
    if height + 2 * padding[0] < window[0] or width + 2 * padding[1] < window[1]:
        raise UserError(
            f"an image, or what is left of it here, of {height} x {width} is smaller than a window of {window[0]} x "
            f"{window[1]}: use larger images"
        )
