"""Layer normalisation and root-mean-square normalisation, in float32 whatever the compute dtype."""

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
