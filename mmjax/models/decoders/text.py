"""A causal text Transformer that may attend to other modalities, with a next-token head: GPT, or BLIP's captioner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.types import Array, Tokens
from mmjax.models.encoders.text import TextTransformer, join_context
from mmjax.nn.activation import activation
from mmjax.nn.cache import Cache
from mmjax.nn.linear import Linear, by_table
from mmjax.nn.position import Table
from mmjax.nn.virtual import Virtual


class TextDecoder(TextTransformer):
    """ids [B, T], context -> logits [B, T, V] of the next token, float32.

    Attributes:
      context: names of the encoders or fusions it attends to; () for a language model.
      writes: the modality whose ids it reads and predicts.
      mask_context: whether the context's mask hides its padding; if not, padding is attended to as well (BLIP's answers).
      words_of: the text encoder whose word table it reads by (T5, BART); "" for one of its own.
      start_token: the id that it reads before a text's first, which no text has itself (`decoder_start_token_id`); None where
        the first token of a text is read, and not predicted.
      tied: take the word table for the output as well (Press & Wolf 2017).
      scale_output: multiply what the output reads by width ** -0.5 (T5's first version).
      transform: a dense layer, activation and norm before the output, as BERT's head (BLIP).
      output_bias: whether the output has a bias, one number a word.
    """

    causal: bool = True
    context: tuple[str, ...] = ("image",)
    writes: str = "text"
    mask_context: bool = True
    words_of: str = ""
    start_token: int | None = setting(least=0, default=None)
    tied: bool = True
    scale_output: bool = False
    transform: bool = False
    output_bias: bool = False

    def setup(self) -> None:
        super().setup()
        if self.transform:
            self.project = Linear(self.width)
            self.normalise_output = self._norm("output_norm")
        if not self.tied:
            self.logits = Linear(self.vocab_size, use_bias=self.output_bias, float32=True)
        elif self.output_bias:
            self.tied_bias = self.param("tied_bias", nn.initializers.zeros, (self.vocab_size,))

    def decode(
        self,
        ids_BT: Array,
        mask: Array | None = None,
        context: Mapping[str, Tokens] | None = None,
        added: Array | None = None,
        lengths: Array | None = None,
        table: Table | None = None,
    ) -> Array:
        """`table`: the word table of another part, where `words_of` names one."""
        words_BTD = None if table is None else table(ids_BT)
        tokens = self.read(ids_BT, mask, None, added, self._seen(context), words_BTD, lengths)
        return self.output(tokens.real().embeddings, table)

    def begin(
        self,
        ids_BT: Array,
        mask_BT: Array,
        places_BT: Array,
        context: Mapping[str, Tokens] | None = None,
        table: Table | None = None,
    ) -> tuple[Array, Cache]:
        """Read prompts that end together: the logits [B, V] of the token after them, and the cache of what was read.

        Args:
          mask_BT: False before a prompt's first token.
          places_BT: int32, the position of each token in its own prompt; any number where there is none.

        Virtual tokens, and keys of a prefix, have the first slots of the cache and the first positions.
        """
        words_BTD = self._words(ids_BT, context) if table is None else table(ids_BT)
        prompt, before = self._prompt(), self._prefix()
        if prompt is not None:
            words_BTD, mask_BT = prompt.among(words_BTD, prompt.rows), prompt.mask(mask_BT)
            places_BT = prompt.among(places_BT + prompt.count, jnp.arange(prompt.count))
        places_BT = places_BT + before
        x_BTD = self._embed(words_BTD, None, places_BT)
        y_BTD, cache = self.layers.cached(x_BTD, mask_BT, self.attended(context), places_BT)
        return self.output(y_BTD[:, -1:], table)[:, 0], cache

    def step(
        self,
        ids_B: Array,
        mask_BS: Array,
        places_B: Array,
        context_BS: Array | None,
        cache: Cache,
        index: Array,
        table: Table | None = None,
    ) -> tuple[Array, Cache]:
        """Read one token more: the logits [B, V] of the next one, and what `nn.cache.write` puts into the cache.

        Args:
          mask_BS: bool, the slots of the cache that hold a token, the one now written among them.
          places_B: int32, the position of the token in its own text.
          context_BS: bool, the mask of the context; None without.
          index: int32, the slot of the token: [] one for all rows, or [B].
        """
        x_BTD = self._embed((table or self.words)(ids_B[:, None]), None, places_B[:, None])
        context = None if context_BS is None else (None, context_BS)
        y_BTD, cache = self.layers.cached(x_BTD, mask_BS, context, places_B[:, None], cache, index)
        return self.output(y_BTD, table)[:, 0], cache

    def _words(self, ids_BT: Array, context: Mapping[str, Tokens] | None) -> Array:
        """[B, T, D]: what stands for the ids before positions are added."""
        return self.words(ids_BT)

    def attended(self, context: Mapping[str, Tokens] | None) -> tuple[Array, Array] | None:
        """What the layers attend to beside the text: embeddings [B, S, D] and mask [B, S]; None for nothing."""
        return join_context(self._seen(context))

    def _seen(self, context: Mapping[str, Tokens] | None) -> Mapping[str, Tokens] | None:
        """The context with the mask that hides its padding, or none."""
        if not context or self.mask_context:
            return context
        return {name: dataclasses.replace(own, mask=jnp.ones_like(own.mask)) for name, own in context.items()}

    def _own_words(self) -> bool:
        return not self.words_of

    def _prompt(self) -> Virtual | None:
        return self.words.prompt() if self._own_words() else None  # that of another's words is the other's

    def output(self, hidden_BTD: Array, table: Table | None = None) -> Array:
        """[B, T, V] float32 logits of the stack's result."""
        if self.transform:
            hidden_BTD = self.normalise_output(activation(self.activation)(self.project(hidden_BTD)))
        if self.scale_output:
            hidden_BTD = hidden_BTD * hidden_BTD.shape[-1] ** -0.5
        if not self.tied:
            return self.logits(hidden_BTD)
        logits_BTV = by_table(hidden_BTD, self.word_table() if table is None else table.base())
        return logits_BTV + self.tied_bias.astype(logits_BTV.dtype).reshape(1, 1, -1) if self.output_bias else logits_BTV
