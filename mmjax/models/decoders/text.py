"""A causal text Transformer that may attend to other modalities, with a next-token head: GPT, or BLIP's captioner."""

from __future__ import annotations

from collections.abc import Mapping

from mmjax.core.types import Array, Tokens
from mmjax.models.encoders.text import TextTransformer
from mmjax.nn.linear import Linear


class TextDecoder(TextTransformer):
    """ids [B, T], context -> logits [B, T, V] of the next token.

    Attributes:
      context: names of the encoders it attends to; () for a language model.
      tied: take the word table for the output as well (Press & Wolf 2017).
    """

    causal: bool = True
    context: tuple[str, ...] = ("image",)
    tied: bool = True

    def setup(self) -> None:
        super().setup()
        if not self.tied:
            self.logits = Linear(self.vocab_size, use_bias=False)

    def decode(self, ids_BT: Array, mask: Array | None, context: Mapping[str, Tokens] | None = None) -> Array:
        hidden_BTD = self(ids_BT, mask, None, context).embeddings
        if not self.tied:
            return self.logits(hidden_BTD)
        return hidden_BTD @ self.word_table().astype(hidden_BTD.dtype).T
