"""Layer normalisation and its kin, in float32 whatever the compute dtype."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array

NORMS = ("layernorm", "rmsnorm")


class Norm(nn.Module):
    """Normalise the last dim, then scale (and for LayerNorm shift).

    `layernorm`: Ba 2016, eq. 3-4. `rmsnorm`: Zhang & Sennrich 2019, eq. 4.

    Raises:
      UserError: an unknown `kind`.
    """

    kind: str = "layernorm"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kind not in NORMS:
            raise UserError(f"norm={self.kind!r}: use one of {', '.join(NORMS)}")
        width = x.shape[-1]
        row = (1,) * (x.ndim - 1) + (width,)
        x_f32 = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (width,)).astype(jnp.float32).reshape(row)
        if self.kind == "rmsnorm":
            mean_square = jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True)
            return (x_f32 * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(jnp.float32).reshape(row)
        centred = x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


class ResponseNorm(nn.Module):
    """Global response normalisation of [B, T, F] (Woo 2023, "ConvNeXt V2", algorithm 1), in float32 whatever the dtype of x.

    Each channel of an example is weighted by its length over all T places, relative to the mean of the channels' lengths; then
    scaled, shifted and added to x. Both parameters begin at 0, which gives x.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x_BTF: Array) -> Array:
        width = x_BTF.shape[-1]
        scale, bias = (
            self.param(name, nn.initializers.zeros, (width,)).astype(jnp.float32).reshape(1, 1, -1)
            for name in ("scale", "bias")
        )
        x = x_BTF.astype(jnp.float32)
        square_B1F = jnp.sum(jnp.square(x), axis=1, keepdims=True)
        # The root's derivative at 0 is infinite, and where nothing responds nothing is to be learned.
        length_B1F = jnp.where(square_B1F > 0, jnp.sqrt(jnp.where(square_B1F > 0, square_B1F, 1.0)), 0.0)
        relative = length_B1F / (jnp.mean(length_B1F, axis=-1, keepdims=True) + self.epsilon)
        return (scale * (x * relative) + bias + x).astype(x_BTF.dtype)


class ChannelNorm(nn.Module):
    """Normalise each channel of [B, T, C] over the time of its own row, then scale and shift (PyTorch's `GroupNorm` with a
    group a channel; Wu & He 2018, eq. 1), in float32 whatever the dtype of x.

    Only real places count, so that a row has the same numbers alone as among longer ones.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x_BTC: Array, mask_BT: Array | None = None) -> Array:
        width, x = x_BTC.shape[-1], x_BTC.astype(jnp.float32)
        real_BT1 = jnp.ones((*x.shape[:2], 1)) if mask_BT is None else mask_BT.astype(jnp.float32)[..., None]
        share_BT1 = real_BT1 / jnp.maximum(real_BT1.sum(axis=1, keepdims=True), 1.0)
        scale, bias = (
            self.param(name, initial, (width,)).astype(jnp.float32).reshape(1, 1, -1)
            for name, initial in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )
        centred = x - (x * share_BT1).sum(axis=1, keepdims=True)
        variance = (jnp.square(centred) * share_BT1).sum(axis=1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normed * scale + bias).astype(x_BTC.dtype)
