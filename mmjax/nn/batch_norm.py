"""Batch normalisation, whose running statistics are variables; and group normalisation, which needs none."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array

STATISTICS = "statistics"  # the Linen collection of what is kept here


class BatchNorm(nn.Module):
    """[B, ..., C] -> the same, each channel normalised over all else, scaled and shifted (Ioffe & Szegedy 2015, algorithm 1).

    Parameters `scale` and `bias` [C], float32. Variables `mean` and `variance` [C], float32, and `batches` [] int32, in the
    collection `statistics`. Computed in float32 whatever the dtype of x.

    Where the collection may be written (in training) x is normalised by its own mean and variance, of the whole batch however
    many devices it lies on, and each running statistic moves by `momentum` towards that of the batch; the variance that is
    kept is the unbiased one, and `batches` counts on: as PyTorch's `BatchNorm2d`. Else x is normalised by what is kept.

    Attributes:
      epsilon: added to the variance.
      momentum: how far the running statistics move in a step.

    Raises:
      UserError: one value a channel alone, which has no variance, in training.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1

    @nn.compact
    def __call__(self, x: Array, valid_B: Array | None = None) -> Array:
        """`valid_B` [B] bool: rows that count in the statistics; all where it is None. A batch without any changes nothing."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(jnp.float32)
        kept_mean = self.variable(STATISTICS, "mean", jnp.zeros, (width,), jnp.float32)
        kept_variance = self.variable(STATISTICS, "variance", jnp.ones, (width,), jnp.float32)
        batches = self.variable(STATISTICS, "batches", jnp.zeros, (), jnp.int32)
        x_f32 = x.astype(jnp.float32)
        if self.is_initializing() or not self.is_mutable_collection(STATISTICS):
            return self._normalised(x_f32, kept_mean.value, kept_variance.value, scale, bias).astype(x.dtype)
        if x.size == width:
            raise UserError(f"norm='batch': an input of shape {x.shape} has one value a channel; use larger batches or images")
        mean, variance, count = _moments(x_f32, valid_B)
        unbiased = variance * count / jnp.maximum(count - 1.0, 1.0)
        some = count > 0
        for kept, new in ((kept_mean, mean), (kept_variance, unbiased)):
            kept.value = jnp.where(some, (1.0 - self.momentum) * kept.value + self.momentum * new, kept.value)
        batches.value = batches.value + some.astype(jnp.int32)
        return self._normalised(x_f32, mean, variance, scale, bias).astype(x.dtype)

    def _normalised(self, x: Array, mean: Array, variance: Array, scale: Array, bias: Array) -> Array:
        row = (1,) * (x.ndim - 1) + (x.shape[-1],)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale
        return (x - mean.reshape(row)) * factor.reshape(row) + bias.reshape(row)


class GroupNorm(nn.Module):
    """[B, ..., C] -> the same, each group of neighbouring channels of an example normalised over all its places, scaled and
    shifted (Wu & He 2018, section 3.1). Computed in float32 whatever the dtype of x.

    Raises:
      UserError: `groups` that do not divide C.
    """

    groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, valid_B: Array | None = None) -> Array:
        """`valid_B` changes nothing: each example is normalised by itself."""
        width, row = x.shape[-1], (1,) * (x.ndim - 1) + (x.shape[-1],)
        if width % self.groups:
            raise UserError(f"groups={self.groups} of norm='group' does not divide width={width}")
        scale = self.param("scale", nn.initializers.ones, (width,)).astype(jnp.float32).reshape(row)
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(jnp.float32).reshape(row)
        x_BPGC = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, width // self.groups)
        centred = x_BPGC - jnp.mean(x_BPGC, axis=(1, 3), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(1, 3), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return (y * scale + bias).astype(x.dtype)


def _moments(x: Array, valid_B: Array | None) -> tuple[Array, Array, Array]:
    """Mean and (biased) variance of each channel, [C], and over how many values, []."""
    axes = tuple(range(x.ndim - 1))
    if valid_B is None:
        mean = jnp.mean(x, axis=axes)
        variance = jnp.mean(jnp.square(x - mean.reshape((1,) * (x.ndim - 1) + (-1,))), axis=axes)
        return mean, variance, jnp.asarray(x.size // x.shape[-1], jnp.float32)
    weight = valid_B.astype(jnp.float32).reshape(-1, *[1] * (x.ndim - 1))
    count = jnp.sum(weight) * (x.size // x.shape[0] // x.shape[-1])
    shares = weight / jnp.maximum(count, 1.0)
    mean = jnp.sum(x * shares, axis=axes)
    variance = jnp.sum(jnp.square(x - mean.reshape((1,) * (x.ndim - 1) + (-1,))) * shares, axis=axes)
    return mean, variance, count
