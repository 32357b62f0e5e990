"""Cross-attention: one modality reads another (ALBEF, BLIP), or both read each other (LXMERT)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.nn.linear import Linear
from mmjax.nn.stack import StackFields


class Cross(StackFields):
    """{query, context} -> Tokens of the query, each layer attending to itself and then to the context.

    Without the context among the tokens, the same layers run on the query alone (BLIP's text encoder, Li 2022, section 3.1).
    With `both`, the context attends to the query as well, layer by layer, and its tokens follow the query's.

    Attributes:
      query: name of the modality that reads, and whose tokens come out.
      context: name of the modality that is read.
      both: two-way, as LXMERT.
    """

    query: str = "text"
    context: str = "image"
    both: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it fuses, the query first."""
        return (self.query, self.context)

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        query, context = tokens[self.query], tokens.get(self.context)
        x_BTD = self._fit(self.query, query.embeddings)
        if not self.both:
            read = None if context is None else (context.embeddings, context.mask)
            fused = self.stack(name="stack")(x_BTD, query.mask, read)
            return Tokens(fused, query.mask, query.positions, query.segments, virtual=query.virtual)
        if context is None:
            raise UserError(f"a two-way cross fusion needs both {self.query!r} and {self.context!r}")
        y_BSD = self._fit(self.context, context.embeddings)
        x_BTD, y_BSD = self.stack(co=True, name="stack")((x_BTD, y_BSD), (query.mask, context.mask))
        own = Tokens(x_BTD, query.mask, virtual=query.virtual)
        return join([own, Tokens(y_BSD, context.mask, virtual=context.virtual)])

    def _fit(self, modality: str, x: Array) -> Array:
        return x if x.shape[-1] == self.width else Linear(self.width, name=f"project_{modality}")(x)


def join(parts: list[Tokens]) -> Tokens:
    """Several sequences one after another; `segments` says which part a token came from."""
    ranks = [jnp.full(part.mask.shape, rank, jnp.int32) for rank, part in enumerate(parts)]
    firsts = itertools.accumulate((part.mask.shape[1] for part in parts), initial=0)
    return Tokens(
        jnp.concatenate([part.embeddings for part in parts], axis=1),
        jnp.concatenate([part.mask for part in parts], axis=1),
        segments=jnp.concatenate(ranks, axis=1),
        virtual=tuple(first + place for first, part in zip(firsts, parts, strict=False) for place in part.virtual),
    )
