"""Heads: Tokens -> logits of one task."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.models.cached import CachedClassifier
from mmjax.models.codebook import Codebook
from mmjax.models.parts import split
from mmjax.nn.activation import activation
from mmjax.nn.linear import Linear, by_table
from mmjax.nn.mlp import dropout
from mmjax.nn.norm import Norm
from mmjax.nn.pool import Pool


def _one_input(tokens: Any, said: Any) -> None:
    """Raises UserError where a head that reads one sequence is given several."""
    if isinstance(tokens, tuple):
        raise UserError(f"input={tuple(said)}: this head reads one; name it alone, or a fusion of them")


class Classifier(nn.Module):
    """Tokens [B, T, D] -> logits [B, C], float32.

    Attributes:
      classes: C; 0 gives what is pooled (and projected) itself, [B, D].
      input: name of the encoder or fusion that feeds it; `dual:image` is one modality's embedding in a fusion's shared space.
      pool: how tokens become one vector, see `nn.pool`: `cls`, `first_two`, `last`, `mean`, `rest`, `cls_rest` or `attention`.
      heads: of attention pooling.
      pool_norm: normalise what is pooled (ConvNeXt).
      hidden_width: width of one hidden layer; 0 for none.
      activation: of the hidden layer (BERT's pooler is `tanh`).
      normed_width: width of a further hidden layer, with a norm and then GELU (ViLT's answers); 0 for none.
      norm_epsilon: of these norms.
      parts: N sequences one after another are pooled and projected each on its own, then concatenated (NLVR2's two images).
      bias: whether the last layer has one.
      dropout: rate of dropout before the last layer, on when training.
    """

    classes: int = setting(everyday=True, least=0, default=2)
    input: str = "image"
    pool: str = "mean"
    heads: int = setting(least=1, default=8)
    pool_norm: bool = False
    hidden_width: int = setting(least=0, default=0)
    activation: str = "tanh"
    normed_width: int = setting(least=0, default=0)
    norm_epsilon: float = setting(least=0, default=1e-6)
    parts: int = setting(least=1, default=1)
    bias: bool = True
    dropout: float = setting(least=0, below=1, default=0.0)

    @nn.compact
    def __call__(self, tokens: Tokens, table: Array | None = None) -> Array:
        _one_input(tokens, self.input)
        x_BD = Pool(self.pool, self.heads, name="pool")(split(tokens, self.parts))
        if self.pool_norm:
            x_BD = Norm(epsilon=self.norm_epsilon, name="pool_norm")(x_BD)
        if self.hidden_width:
            x_BD = activation(self.activation)(Linear(self.hidden_width, name="project")(x_BD))
        x_BD = x_BD.reshape(tokens.mask.shape[0], -1)
        if self.normed_width:
            x_BD = Norm(epsilon=self.norm_epsilon, name="norm")(Linear(self.normed_width, name="project_2")(x_BD))
            x_BD = activation("gelu")(x_BD)
        if not self.classes:
            return x_BD.astype(jnp.float32)
        x_BD = dropout(self, x_BD, self.dropout)
        return Linear(self.classes, use_bias=self.bias, float32=True, name="logits")(x_BD)


class DistilledClassifier(nn.Module):
    """Tokens [B, T, D] -> logits [B, C], float32: the mean of what the first token says and of what the second says, each with
    a layer of its own (DeiT's class and distillation tokens; Touvron 2020, section 4).

    Attributes:
      classes: C; 0 gives the mean of both tokens themselves, [B, D].
      input: name of the encoder that feeds it.
    """

    classes: int = setting(everyday=True, least=0, default=2)
    input: str = "image"

    @nn.compact
    def __call__(self, tokens: Tokens, table: Array | None = None) -> Array:
        _one_input(tokens, self.input)
        both = [tokens.alone("this head").embeddings[:, place] for place in (0, 1)]
        if self.classes:
            own = [Linear(self.classes, float32=True, name=name) for name in ("logits", "second_logits")]
            both = [logits(x_BD) for logits, x_BD in zip(own, both, strict=True)]
        return (both[0].astype(jnp.float32) + both[1].astype(jnp.float32)) / 2


class OrdinalClassifier(nn.Module):
    """Tokens [B, T, D] -> logits [B, C - 1], float32: is it above the first of C ordered classes, above the second, ...?

    One score, and a threshold for each question (CORAL: Cao 2020, section 3.2): with one weight vector for all of them a
    greater score makes every answer more of a yes. For the objective `Ordinal`.

    Attributes:
      classes: C.
      input: name of the encoder or fusion that feeds it; `dual:image` is one modality's embedding in a fusion's shared space.
      pool: how tokens become one vector, as in `Classifier`.
      heads: of attention pooling.
      dropout: rate of dropout before the score, on when training.
    """

    classes: int = setting(everyday=True, least=2, default=2)
    input: str = "image"
    pool: str = "mean"
    heads: int = setting(least=1, default=8)
    dropout: float = setting(least=0, below=1, default=0.0)

    @nn.compact
    def __call__(self, tokens: Tokens, table: Array | None = None) -> Array:
        _one_input(tokens, self.input)
        x_BD = dropout(self, Pool(self.pool, self.heads, name="pool")(tokens).reshape(tokens.mask.shape[0], -1), self.dropout)
        score_B1 = Linear(1, use_bias=False, float32=True, name="logits")(x_BD)
        thresholds = self.param("thresholds", nn.initializers.zeros, (self.classes - 1,))
        return score_B1 + thresholds.astype(jnp.float32)[None]


class TokenClassifier(nn.Module):
    """Tokens [B, T, D] -> logits [B, T, C], float32: masked language modelling (Devlin 2019), tagging.

    Attributes:
      classes: C; the vocabulary size for masked language modelling.
      input: name of the encoder or fusion that feeds it.
      transform: a dense layer, activation and norm first, as BERT's head.
      activation: of that layer.
      norm_epsilon: of that norm.
      tied_to: name of the text encoder whose word table is the output matrix; "" for a matrix of its own.
    """

    classes: int = setting(least=1, default=32000)
    input: str = "text"
    transform: bool = True
    activation: str = "gelu"
    norm_epsilon: float = setting(least=0, default=1e-6)
    tied_to: str = ""

    @nn.compact
    def __call__(self, tokens: Tokens, table: Array | None = None) -> Array:
        _one_input(tokens, self.input)
        x_BTD = tokens.real().embeddings
        if self.transform:
            width = x_BTD.shape[-1] if table is None else table.shape[-1]
            x_BTD = activation(self.activation)(Linear(width, name="project")(x_BTD))
            x_BTD = Norm(epsilon=self.norm_epsilon, name="norm")(x_BTD)
        if table is None:
            return Linear(self.classes, float32=True, name="logits")(x_BTD)
        if table.shape[0] != self.classes:
            raise UserError(f"classes={self.classes}: the words of tied_to={self.tied_to!r} are {table.shape[0]}")
        bias = self.param("tied_bias", nn.initializers.zeros, (self.classes,))
        return by_table(x_BTD, table) + bias.astype(jnp.float32).reshape(1, 1, -1)


HEADS = {
    "classifier": Classifier,
    "distilled_classifier": DistilledClassifier,
    "ordinal_classifier": OrdinalClassifier,
    "token_classifier": TokenClassifier,
    "cached_classifier": CachedClassifier,
    "codebook": Codebook,
}
