"""Late fusion: pool each modality, then concatenate or average. The plain baselines."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.types import Array, Tokens
from mmjax.nn.linear import Linear
from mmjax.nn.pool import Pool


class _Late(nn.Module):
    """What both share: one vector a modality in, one token [B, 1, D] out.

    Attributes:
      width: D.
      modalities: which, and their order.
      pool: how each is pooled, see `nn.pool`.
      heads: of attention pooling.
    """

    width: int = setting(least=1, default=512)
    modalities: tuple[str, ...] = ("text", "image")
    pool: str = "mean"
    heads: int = setting(least=1, default=8)

    def _pooled(self, tokens: Mapping[str, Tokens]) -> list[Array]:
        return [Pool(self.pool, self.heads, name=f"pool_{m}")(tokens[m]) for m in self.modalities]

    @staticmethod
    def _one_token(x_BD: Array) -> Tokens:
        return Tokens(x_BD[:, None], jnp.ones((x_BD.shape[0], 1), bool))


class Concatenate(_Late):
    """Concatenate the pooled vectors and project them to width D."""

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        return self._one_token(Linear(self.width, name="project")(jnp.concatenate(self._pooled(tokens), axis=-1)))


class Weighted(_Late):
    """A learned convex combination (a softmax over one number a modality) of the projected vectors."""

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        pooled = self._pooled(tokens)
        mix = jax.nn.softmax(self.param("mix", nn.initializers.zeros, (len(pooled),)).astype(jnp.float32))
        projected = [Linear(self.width, name=f"project_{m}")(x) for m, x in zip(self.modalities, pooled, strict=True)]
        total = sum((mix[i].astype(x.dtype) * x for i, x in enumerate(projected)), jnp.zeros_like(projected[0]))
        return self._one_token(total)
