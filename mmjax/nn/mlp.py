"""The feed-forward layer, plain or gated."""

from __future__ import annotations

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from mmjax.core.types import Array
from mmjax.nn.activation import GATED, activation
from mmjax.nn.linear import Linear
from mmjax.nn.norm import ResponseNorm
from mmjax.parallel.mesh import TOKENS, constrain


class Mlp(nn.Module):
    """[B, T, D] -> [B, T, D] through width F. `GATED` activations gate what `up` gives by `gate` (Shazeer 2020, eq. 6).

    With `response_norm` what is within is normalised by its response over all T places (`ResponseNorm`).
    """

    width: int
    activation: str = "gelu"
    bias: bool = True
    dropout: float = 0.0
    response_norm: bool = False

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        h_BTF = Linear(self.width, use_bias=self.bias, name="up")(x_BTD)
        h_BTF = checkpoint_name(h_BTF, "mlp_up")
        if self.activation in GATED:
            gate_BTF = checkpoint_name(Linear(self.width, use_bias=self.bias, name="gate")(x_BTD), "mlp_up")
            h_BTF = activation(GATED[self.activation])(gate_BTF) * h_BTF
        else:
            h_BTF = activation(self.activation)(h_BTF)
        h_BTF = constrain(h_BTF, *TOKENS, "tensor")
        if self.response_norm:
            h_BTF = ResponseNorm(name="response_norm")(h_BTF)
        h_BTF = dropout(self, h_BTF, self.dropout)
        return Linear(x_BTD.shape[-1], use_bias=self.bias, name="down")(h_BTF)


def dropout(module: nn.Module, x: Array, rate: float | Array, whole: bool = False) -> Array:
    """Dropout that is on exactly when the caller gave a `dropout` key (Srivastava 2014, inverted). `rate` may be a layer's
    own, [] float32.

    With `whole` an example is dropped or kept as one (Huang 2016, "stochastic depth").
    """
    if (isinstance(rate, (int, float)) and rate == 0) or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, (x.shape[0], *[1] * (x.ndim - 1)) if whole else x.shape)
    return jax.numpy.where(keep, x / jax.numpy.asarray(1.0 - rate, x.dtype), jax.numpy.zeros_like(x))
