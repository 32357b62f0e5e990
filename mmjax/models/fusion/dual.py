"""Two (or more) towers that meet in one space: CLIP (Radford 2021), SigLIP (Zhai 2023)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.linear import Linear
from mmjax.nn.pool import Pool, there


class Dual(nn.Module):
    """Pool each modality, project it, normalise it to unit length; with a learned scale and bias for contrastive losses.

    As a fusion it gives one token a modality: Tokens [B, M, E].

    Attributes:
      width: E, the width of the shared space.
      pool: modality -> how it is pooled (see `nn.pool`); its keys are the modalities that meet here.
      project: modalities that get a linear projection; the others must have width E already.
      bias: whether the projections have a bias.
      through: modality -> the cross fusion whose layers it runs through alone before it is pooled (BLIP's text encoder, which
        reads the image in one use and not in the other).
      heads: of attention pooling.
      mlp_width: of attention pooling's feed-forward layer; 0 is 4 times the width it pools.
      activation: of attention pooling's feed-forward layer.
      norm_epsilon: of attention pooling's norm.
      scale_init: initial scale (CLIP: 1 / 0.07; SigLIP: 10). It is exp of a learned logit.
      bias_init: initial bias (SigLIP: -10).
      max_scale: the scale is held at or below it (Radford 2021, section 2.5), and comes down again from there; 0 for no bound
        (SigLIP's passes 100).
    """

    width: int = setting(least=1, default=512)
    pool: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"image": "mean", "text": "mean"})
    project: tuple[str, ...] = ("image", "text")
    bias: bool = False
    through: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heads: int = setting(least=1, default=8)
    mlp_width: int = setting(least=0, default=0)
    activation: str = "gelu"
    norm_epsilon: float = setting(least=0, default=1e-6)
    scale_init: float = setting(above=0, default=10.0)
    bias_init: float = 0.0
    max_scale: float = setting(least=0, default=100.0)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that meet here, in the order of their names."""
        return tuple(sorted(self.pool))

    def setup(self) -> None:
        def pool(kind: str) -> Pool:
            return Pool(kind, self.heads, self.mlp_width, self.activation, self.norm_epsilon)

        self.pools = {m: pool(kind) for m, kind in self.pool.items()}
        self.project_ = {m: Linear(self.width, use_bias=self.bias, float32=True, name=f"project_{m}") for m in self.project}
        self.scale_logit = self.param("scale_logit", nn.initializers.constant(float(np.log(self.scale_init))), ())
        self.bias_logit = self.param("bias_logit", nn.initializers.constant(self.bias_init), ())

    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        embedded = jnp.stack([self.embed(m, tokens[m]) for m in sorted(tokens)], axis=1)
        return Tokens(embedded, jnp.stack([there(tokens[m]) for m in sorted(tokens)], axis=1))

    def embed(self, modality: str, tokens: Tokens) -> Array:
        """[B, E] float32 of unit length."""
        if modality not in self.pool:
            raise UserError(f"modality {modality!r} is not in this dual fusion's pool, which has {', '.join(self.modalities)}")
        pooled = self.pools[modality](tokens)
        if modality in self.project:
            pooled = self.project_[modality](pooled)
        elif pooled.shape[-1] != self.width:
            raise UserError(f"dual: {modality} has width {pooled.shape[-1]} and no projection to width={self.width}")
        pooled = pooled.astype(jnp.float32)
        # The epsilon under the root keeps the gradient finite at zero.
        return pooled * (jnp.sum(jnp.square(pooled), axis=-1, keepdims=True) + 1e-12) ** -0.5

    def scale(self) -> Array:
        """[] float32, the factor of similarities."""
        return held_scale(self.scale_logit, self.max_scale) if self.max_scale else jnp.exp(self.scale_logit)

    def bias_value(self) -> Array:
        """[] float32, added to similarities by the sigmoid loss."""
        return self.bias_logit


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def held_scale(logit: Array, most: float) -> Array:
    """min(exp(logit), most), [] float32, whose logit can come down from where the bound holds it, and not go further up.

    There, of the derivative at the bound what would raise the logit (a negative one, which descent subtracts) is left out: the
    plain minimum's is 0 both ways, and a logit above the bound, by momentum or from a checkpoint, would stay there for ever.
    """
    return jnp.minimum(jnp.exp(logit), most)


def _held(logit: Array, most: float) -> tuple[Array, Array]:
    return held_scale(logit, most), jnp.exp(logit)


def _released(most: float, scale: Array, g: Array) -> tuple[Array]:
    return (jnp.where(scale < most, g * scale, jnp.maximum(g, 0.0) * most),)


held_scale.defvjp(_held, _released)
