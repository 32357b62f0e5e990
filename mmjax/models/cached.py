"""A head that remembers examples: what it has seen of each class beside what the class's prompts say (Tip-Adapter)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens

KEPT = "examples"  # the Linen collection of what is kept beside the keys and never trained


def cached_logits(
    embedding_BE: Array, keys_NE: Array, label_N: Array, vectors_CE: Array, scale: Any, alpha: Any, beta: Any
) -> Array:
    """s f W^T + alpha exp(-beta (1 - f F^T)) L, [B, C] float32 (Zhang 2022, eq. 5 and 7).

    Args:
      embedding_BE: f, of unit length.
      keys_NE: F, the embeddings of the examples that are remembered.
      label_N: int32, their classes, of which L is the one-hot form; below 0 for none.
      vectors_CE: W, of unit length, what the prompts of the classes come to.
      scale: s; CLIP's is 100.
      alpha: how much the examples count beside the prompts.
      beta: how sharply they are told apart.
    """
    own_BC = scale * jnp.dot(embedding_BE, vectors_CE.T)
    affinity_BN = jnp.exp(-beta * (1.0 - jnp.dot(embedding_BE, keys_NE.T)))
    return own_BC + alpha * jnp.dot(affinity_BN, jax.nn.one_hot(label_N, vectors_CE.shape[0], dtype=jnp.float32))


class CachedClassifier(nn.Module):
    """Tokens [B, 1, E] -> logits [B, C], float32: `cached_logits` with the keys as parameters, as Tip-Adapter-F trains them.

    When a run begins, the keys are the embeddings of the records of `data`, and beside them are kept, never trained, their
    classes, the vectors of the classes' prompts and the fusion's scale. A run that starts from one with this head goes on with
    its keys.

    Attributes:
      classes: C.
      size: N, how many records `data` has.
      width: E, that of the fusion.
      input: `FUSION:MODALITY`, what a dual fusion gives of one modality.
      data: the name of the data that is remembered.
      label: the key of its labels.
      text: the modality of the prompts.
      templates: prompts, each with `{}` where the class name goes.
      alpha: how much the examples count beside the prompts.
      beta: how sharply they are told apart.
    """

    classes: int = setting(everyday=True, least=1, default=2)
    size: int = setting(everyday=True, least=1, default=2)
    width: int = setting(everyday=True, least=1, default=512)
    input: str = "dual:image"
    data: str = "train"
    label: str = "label"
    text: str = "text"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    alpha: float = setting(everyday=True, least=0, below=math.inf, default=1.0)
    beta: float = setting(everyday=True, above=0, below=math.inf, default=5.5)

    @nn.compact
    def __call__(self, tokens: Tokens, table: Array | None = None) -> Array:
        if isinstance(tokens, tuple) or tokens.embeddings.shape[1] != 1:
            raise UserError(f"input={self.input!r}: this head reads one embedding; name a fusion's, such as 'dual:image'")
        embedding_BE = tokens.embeddings[:, 0].astype(jnp.float32)
        if embedding_BE.shape[1] != self.width:
            raise UserError(f"width={self.width}: {self.input} gives embeddings of width {embedding_BE.shape[1]}")
        keys_NE = self.param("cache_keys", nn.initializers.zeros, (self.size, self.width))
        label_N = self.variable(KEPT, "label", lambda: jnp.full((self.size,), -1, jnp.int32))
        vectors_CE = self.variable(KEPT, "vectors", lambda: jnp.zeros((self.classes, self.width), jnp.float32))
        scale = self.variable(KEPT, "scale", lambda: jnp.zeros((), jnp.float32))
        return cached_logits(
            embedding_BE, keys_NE.astype(jnp.float32), label_N.value, vectors_CE.value, scale.value, self.alpha, self.beta
        )
