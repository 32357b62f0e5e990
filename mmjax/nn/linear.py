"""The only matrix multiplication with parameters, and so the one place where an adapter acts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from mmjax.core.types import Array
from mmjax.nn.adapters import leaf_of, low_rank, scaled_input, scaled_output
from mmjax.nn.narrow import SCALE, widened
from mmjax.nn.product import product
from mmjax.nn.virtual import Prefix, Virtual, prefix_of, virtual_of
from mmjax.parallel.mesh import axis_size, platform

Initializer = Callable[..., Array]


def fan_in_init(axes: int) -> Initializer:
    """Truncated normal with variance 1 / fan-in, for a kernel whose first `axes` dims are contracted (LeCun 1998, eq. 16)."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jax.numpy.float32) -> Array:
        fan_in = math.prod(shape[:axes])
        return nn.initializers.truncated_normal(stddev=fan_in**-0.5 / 0.87962566)(key, shape, dtype)

    return init


class Linear(nn.Module):
    """y = x W + b over the last `axes` dims of x, giving dims `features`.

    Parameters `kernel` [*x.shape[-axes:], *features] and `bias` [*features], float32; computed in the dtype of x. With
    `float32` the sums of those products are kept as they are, not rounded to that dtype: for logits, and whatever a loss reads.
    What adapters have put beside the kernel acts as `nn.adapters` says; a kernel that is kept narrow is as `nn.narrow` says.
    """

    features: int | tuple[int, ...]
    axes: int = 1
    use_bias: bool = True
    kernel_init: Initializer | None = None
    float32: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        init = self.kernel_init or fan_in_init(self.axes)
        kernel = self.param("kernel", init, (*x.shape[-self.axes :], *features))
        times = functools.partial(multiply, dtype=jax.numpy.float32 if self.float32 else None)
        x = scaled_input(self, x, self.axes)
        scale = leaf_of(self, SCALE)
        y = _narrow(times, x, kernel, scale, self.axes)
        y = low_rank(self, x, y, widened(kernel, scale, False), self.axes, times)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, features)
            y = y + bias.astype(y.dtype).reshape((1,) * (y.ndim - len(features)) + features)
        # Saved as a whole: base and adapters alone would be as large each.
        return checkpoint_name(scaled_output(self, y, len(features)), "linear")

    def prompt(self, after: int) -> Virtual | None:
        """Tokens that belong among those that this layer gives, after so many; None without."""
        return virtual_of(self, after)

    def prefix(self) -> Prefix | None:
        """Keys and values that come before those of the keys that this layer gives; None without."""
        return prefix_of(self)


def _narrow(times: Callable[..., Array], x: Array, kernel: Array, scale: Array | None, axes: int) -> Array:
    """x times the kernel; of int8 numbers the sums are scaled, and not each number of the kernel."""
    y = times(x, kernel if kernel.dtype.itemsize < x.dtype.itemsize else kernel.astype(x.dtype), axes)
    return y if scale is None else (y.astype(scale.dtype) * scale[(None,) * (y.ndim - scale.ndim)]).astype(y.dtype)


def by_table(x_BTD: Array, table_VD: Array) -> Array:
    """[B, T, V] float32 logits by a word table that the output shares."""
    return product(x_BTD, table_VD.astype(x_BTD.dtype).T, (((2,), (0,)), ((), ())), jax.numpy.float32)


def multiply(x: Array, kernel: Array, axes: int, dtype: Any) -> Array:
    """Contract the last `axes` dims of x with the first of the kernel; the result has `dtype`, None for that of x.

    On the CPU all rows are one dim: XLA then transposes a plain matrix for the gradient of the kernel, where it otherwise
    recomputes whatever made x, element by element, in the wrong order (1.2x of a whole training step). Elsewhere the dims stay
    apart, since a mesh may split more than the first.
    """
    lead, features = x.shape[:-axes], kernel.shape[axes:]
    if platform() == "cpu" and axis_size("sequence") == 1:
        x = x.reshape(-1, *x.shape[-axes:])
    contracted = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
    return product(x, kernel, (contracted, ((), ())), dtype).reshape(*lead, *features)
