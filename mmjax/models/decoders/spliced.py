"""A causal text Transformer that reads another modality's tokens among its own words: LLaVA (Liu 2023, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.models.decoders.text import TextDecoder
from mmjax.nn.activation import activation
from mmjax.nn.linear import Linear
from mmjax.nn.position import Table


class SplicedDecoder(TextDecoder):
    """ids [B, T], context -> logits [B, T, V] of the next token, float32.

    Wherever the text holds the id `place`, the next token of the context stands there in place of a word, projected to the
    words' width by a layer, an activation and a layer. Without a context the text is read as it is.

    A text has as many places as the context has tokens (after `skip`). Concrete ids are checked. Under `jit` their numbers are
    not known: places beyond the context's tokens then keep the word's own embedding, and tokens beyond the places are left out.

    Attributes:
      context: the name of the one encoder whose tokens are spliced in.
      place: the id that stands for one token of the context.
      skip: how many tokens at the context's beginning are left out (1: the class token of an image).
      project_activation: of the projection, between its layers.
      project_bias: whether its layers have biases.
      headless: give the last layer's result [B, T, D], normalised, instead of logits.

    Raises:
      UserError: a context of several encoders; outside `jit`, a text with more or fewer places than the context has tokens.
    """

    place: int = setting(least=0, default=32000)
    skip: int = setting(least=0, default=1)
    project_activation: str = "gelu"
    project_bias: bool = True
    headless: bool = False

    def setup(self) -> None:
        super().setup()
        if len(self.context) != 1:
            raise UserError(f"context={self.context}: a spliced decoder has the tokens of one encoder in its text")
        if self.words_of:
            raise UserError(f"words_of={self.words_of!r}: a spliced decoder has words of its own; leave it out")
        width = self.embed_width or self.width
        self.project_in = Linear(width, use_bias=self.project_bias)
        self.project_out = Linear(width, use_bias=self.project_bias)

    def decode(
        self,
        ids_BT: Array,
        mask: Array | None = None,
        context: Mapping[str, Tokens] | None = None,
        added: Array | None = None,
        lengths: Array | None = None,
        table: Table | None = None,
    ) -> Array:
        if lengths is not None:
            self._check_packed(context, virtual=False)
        words_BTD = self._words(ids_BT, context) if context else None
        return self.output(self.read(ids_BT, mask, added=added, words_BTD=words_BTD, lengths=lengths).real().embeddings)

    def _words(self, ids_BT: Array, context: Mapping[str, Tokens] | None) -> Array:
        if not context:
            return super()._words(ids_BT, context)
        return self._splice(ids_BT, context[self.context[0]].real().embeddings[:, self.skip :])

    def attended(self, context: Mapping[str, Tokens] | None) -> None:
        return None

    def output(self, hidden_BTD: Array, table: Table | None = None) -> Array:
        return hidden_BTD if self.headless else super().output(hidden_BTD, table)

    def _splice(self, ids_BT: Array, tokens_BSD: Array) -> Array:
        """[B, T, D]: rows of the word table, and projected tokens at their places."""
        own_BSD = self.project_out(activation(self.project_activation)(self.project_in(tokens_BSD)))
        place_BT = ids_BT == self.place
        if not self.is_initializing():
            self._check_places(place_BT, own_BSD.shape[1])
        nth_BT = jnp.cumsum(place_BT, axis=1) - 1
        place_BT &= nth_BT < own_BSD.shape[1]
        there_BTD = jnp.take_along_axis(own_BSD, jnp.clip(nth_BT, 0, own_BSD.shape[1] - 1)[..., None], axis=1)
        words_BTD = self.words(jnp.where(place_BT, 0, ids_BT)).astype(own_BSD.dtype)  # the place need not be in the vocabulary
        return jnp.where(place_BT[..., None], there_BTD, words_BTD)

    def _check_places(self, place_BT: Array, tokens: int) -> None:
        """Raises `UserError` for a text whose places are not as many as its tokens; says nothing of a traced one."""
        if isinstance(place_BT, jax.core.Tracer):
            return
        for row, places in enumerate(place_BT.sum(axis=1).tolist()):
            if places != tokens:
                name = self.context[0]
                raise UserError(f"place={self.place}: text {row} has {places} of this id, and its {name} has {tokens} tokens")
