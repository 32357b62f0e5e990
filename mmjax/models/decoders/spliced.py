"""A causal text Transformer that reads another modality's tokens among its own words: LLaVA (Liu 2023, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Tokens
from mmjax.models.decoders.text import TextDecoder
from mmjax.nn.activation import activation
from mmjax.nn.linear import Linear


class SplicedDecoder(TextDecoder):
    """ids [B, T], context -> logits [B, T, V] of the next token.

    Wherever the text holds the id `place`, the next token of the context stands there in place of a word, projected to the
    words' width by a layer, an activation and a layer. A text has as many places as the context has tokens (after `skip`);
    places beyond them keep the word's own embedding. Without a context the text is read as it is.

    Attributes:
      context: the name of the one encoder whose tokens are spliced in.
      place: the id that stands for one token of the context.
      skip: how many tokens at the context's beginning are left out (1: the class token of an image).
      project_activation, project_bias: of the projection.

    Raises:
      UserError: a context of several encoders.
    """

    place: int = 32000
    skip: int = 1
    project_activation: str = "gelu"
    project_bias: bool = True

    def setup(self) -> None:
        super().setup()
        if len(self.context) != 1:
            raise UserError(f"context={self.context}: a spliced decoder has the tokens of one encoder in its text")
        width = self.embed_width or self.width
        self.project_in = Linear(width, use_bias=self.project_bias)
        self.project_out = Linear(width, use_bias=self.project_bias)

    def decode(self, ids_BT: Array, mask: Array | None, context: Mapping[str, Tokens] | None = None) -> Array:
        words_BTD = self._splice(ids_BT, context[self.context[0]].embeddings[:, self.skip :]) if context else None
        return self.output(self(ids_BT, mask, words_BTD=words_BTD).embeddings)

    def _splice(self, ids_BT: Array, tokens_BSD: Array) -> Array:
        """[B, T, D]: rows of the word table, and projected tokens at their places."""
        own_BSD = self.project_out(activation(self.project_activation)(self.project_in(tokens_BSD)))
        place_BT = ids_BT == self.place
        nth_BT = jnp.cumsum(place_BT, axis=1) - 1
        place_BT &= nth_BT < own_BSD.shape[1]
        there_BTD = jnp.take_along_axis(own_BSD, jnp.clip(nth_BT, 0, own_BSD.shape[1] - 1)[..., None], axis=1)
        words_BTD = self.words(jnp.where(place_BT, 0, ids_BT)).astype(own_BSD.dtype)  # the place need not be in the vocabulary
        return jnp.where(place_BT[..., None], there_BTD, words_BTD)
