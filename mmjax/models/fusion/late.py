"""Late fusion: pool each modality, then concatenate or average. The plain baselines."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.types import Array, Tokens
from mmjax.nn.linear import Linear
from mmjax.nn.pool import Pool, there

EXCLUDED = -1e30  # a logit that no softmax sees; finite, so that an example without anything stays free of NaN


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

    def _has(self, tokens: Mapping[str, Tokens]) -> Array:
        """[B, M] bool: which modalities an example has."""
        return jnp.stack([there(tokens[m]) for m in self.modalities], axis=1)

    @staticmethod
    def _one_token(x_BD: Array, has_BM: Array) -> Tokens:
        return Tokens(x_BD[:, None], has_BM.any(axis=1, keepdims=True))


class Concatenate(_Late):
    """Concatenate the pooled vectors, zeros for what an example lacks, and project them to width D."""

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        has_BM = self._has(tokens)
        own = [jnp.where(has_BM[:, m, None], x, 0) for m, x in enumerate(self._pooled(tokens))]
        return self._one_token(Linear(self.width, name="project")(jnp.concatenate(own, axis=-1)), has_BM)


class Weighted(_Late):
    """A learned convex combination (a softmax over one number a modality that an example has) of the projected vectors."""

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        pooled, has_BM = self._pooled(tokens), self._has(tokens)
        share = self.param("mix", nn.initializers.zeros, (len(pooled),)).astype(jnp.float32)
        mix_BM = jax.nn.softmax(jnp.where(has_BM, share[None], EXCLUDED), axis=-1)
        projected = [Linear(self.width, name=f"project_{m}")(x) for m, x in zip(self.modalities, pooled, strict=True)]
        own = [jnp.where(has_BM[:, m, None], mix_BM[:, m, None].astype(x.dtype) * x, 0) for m, x in enumerate(projected)]
        return self._one_token(sum(own, jnp.zeros_like(own[0])), has_BM)
