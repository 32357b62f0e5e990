"""Text Transformer: BERT-like when bidirectional, GPT-like when causal, a captioner's body when it cross-attends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.packed import packed_places
from mmjax.core.stacked import is_stacked
from mmjax.core.types import Array, Tokens
from mmjax.models.parts import with_added
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import dropout
from mmjax.nn.position import Table, sincos_1d
from mmjax.nn.stack import StackFields
from mmjax.nn.virtual import Virtual


class TextTransformer(StackFields):
    """ids [B, T] -> Tokens [B, T, D].

    `depth=0` gives bare word embeddings, the text side of a single-stream model.

    Attributes:
      vocab_size: V, how many words; at least those of the tokenizer.
      max_length: the largest T.
      embed_width: width of the word table when it differs from `width` (0: the same).
      causal: a token sees only what comes before it.
      positions: `learned`, `sincos`, `rotary`, `relative` (T5) or `none`.
      relative_buckets: of `relative` positions: how many numbers a head has for distances, see `nn.relative`.
      relative_distance: from which distance on all are in the last bucket.
      position_offset: rows of the learned table before the first token's (RoBERTa's padding id + 1).
      segments: how many kinds of segment there are (2 for sentence pairs); 0 for none.
      scale_words: multiply the words' embeddings by the root of the width of their table (BART, Vaswani 2017, 3.4).
      embed_norm: normalise the embeddings before the stack (BERT).
      mask_padding: whether the mask hides padding; if not, padding counts as real and the last position as the last token
        (SigLIP, whose texts are all padded to one length).
      final_norm: normalise after the last layer.
      embed_dropout: rate of the embeddings' dropout; None: `dropout`.
      final_dropout: rate of the dropout of what the last layer, or the norm after it, gives.
      taps: layers whose result is given beside the last one's, as `Tokens.taps`; see `nn.stack`.

    Its parts: `mask` [B, T] bool, `segments` [B, T] int32, `added` [B, T, D], added to the embeddings before the first
    layer, and `lengths` [B, S] int32, of the texts of a row that holds several (`core.packed`): each has positions of its own
    and is attended to by its own tokens alone.

    Raises:
      UserError: an input that is no text, a text longer than `max_length` when positions are learned, an unknown kind of
        positions; several texts in a row where padding is not hidden, or virtual tokens are.
    """

    vocab_size: int = setting(everyday=True, least=1, default=32000)
    max_length: int = setting(least=1, default=64)
    embed_width: int = setting(least=0, default=0)
    causal: bool = False
    positions: str = "learned"
    position_offset: int = setting(least=0, default=0)
    relative_buckets: int = setting(least=2, default=32)
    relative_distance: int = setting(least=2, default=128)
    segments: int = setting(least=0, default=0)
    scale_words: bool = False
    embed_norm: bool = False
    embed_dropout: float | None = setting(least=0, below=1, default=None)
    final_dropout: float = setting(least=0, below=1, default=0.0)
    mask_padding: bool = True
    final_norm: bool = True
    taps: tuple[int, ...] = ()

    entry = "words/table"  # beside which a prompt lies: its tokens have positions, and a segment of 0

    def setup(self) -> None:
        width = self.embed_width or self.width
        if self._own_words():
            self.words = Table(self.vocab_size, width)
        if width != self.width:
            self.project_words = Linear(self.width)
        if self.positions == "learned":
            self.position = Table(self.max_length + self.position_offset, self.width)
        elif self.positions not in ("sincos", "rotary", "relative", "none"):
            raise UserError(f"positions={self.positions!r}: use learned, sincos, rotary, relative or none")
        if self.segments:
            self.segment = Table(self.segments, self.width)
        if self.embed_norm:
            self.normalise_embeddings = self._norm("embed_norm")
        rotary, norm = self.positions == "rotary", self.final_norm and self.depth > 0
        relative = (self.relative_buckets, self.relative_distance) if self.positions == "relative" else None
        how = {"causal": self.causal, "rotary": rotary, "relative": relative, "final_norm": norm}
        self.layers = self.stack(**how, taps=self.taps, name="stack")

    def __call__(
        self,
        ids_BT: Array,
        mask: Array | None = None,
        segments: Array | None = None,
        added: Array | None = None,
        lengths: Array | None = None,
    ) -> Tokens:
        return self.read(ids_BT, mask, segments, added, lengths=lengths)

    def read(
        self,
        ids_BT: Array,
        mask: Array | None = None,
        segments: Array | None = None,
        added: Array | None = None,
        context: Mapping[str, Tokens] | None = None,
        words_BTD: Array | None = None,
        lengths: Array | None = None,
    ) -> Tokens:
        """`context` is attended to; `words_BTD` takes the place of the ids' own rows of the word table."""
        if ids_BT.ndim != 2:
            raise UserError(f"a text encoder reads ids [B, T], found an input of shape {ids_BT.shape}")
        mask_BT = jnp.ones(ids_BT.shape, bool) if mask is None or not self.mask_padding else mask
        words_BTD = self.words(ids_BT) if words_BTD is None else words_BTD
        prompt, before = self._prompt(), self._prefix()
        if prompt is not None:
            words_BTD, mask_BT = prompt.among(words_BTD, prompt.rows), prompt.mask(mask_BT)
            segments = None if segments is None else prompt.among(segments)
        if lengths is None:
            self._check_length(ids_BT.shape[1], mask_BT.shape[1] + before)
            places_BT = jnp.broadcast_to(jnp.arange(before, before + mask_BT.shape[1], dtype=jnp.int32)[None], mask_BT.shape)
            packed_BT, own_places_BT = None, None
        else:
            self._check_packed(context, virtual=prompt is not None or bool(before))
            packed_BT, places_BT = packed_places(lengths, ids_BT.shape[1])
            own_places_BT = places_BT
        x_BTD = with_added(self._embed(words_BTD, segments, own_places_BT, before), added, prompt)
        x_BTD = dropout(self, x_BTD, self.dropout if self.embed_dropout is None else self.embed_dropout)
        y_BTD, taps = self.layers.tapped(x_BTD, mask_BT, join_context(context), places_BT, packed=packed_BT)
        y_BTD = dropout(self, y_BTD, self.final_dropout)
        virtual = () if prompt is None else prompt.places
        return Tokens(y_BTD, mask_BT, places_BT, segments, packed_BT, taps=taps, virtual=virtual)

    def _check_packed(self, context: Mapping[str, Tokens] | None, virtual: bool) -> None:
        """Raises UserError where rows of several texts would mean something else than each text alone."""
        reason = ""
        if not self.mask_padding:
            reason = "mask_padding=False reads padding as words"
        elif context:
            reason = f"the context {', '.join(context)} belongs to one example"
        elif virtual:
            reason = "a prompt or a prefix begins one text"
        if reason:
            raise UserError(f"{reason}, and data.packing puts several texts into a row; leave it away")

    def _check_length(self, length: int, places: int) -> None:
        """Raises UserError for more places than there are positions; `length`: of the text itself."""
        if places <= self.max_length or self.positions != "learned":
            return
        if places == length:
            raise UserError(f"a text of {length} tokens is longer than the model's max_length={self.max_length}")
        raise UserError(
            f"a text of {length} tokens and {places - length} virtual ones (a prompt's or a prefix's) are longer than "
            f"the model's max_length={self.max_length}: use texts of at most {self.max_length - places + length}"
        )

    def _prefix(self) -> int:
        """How many places keys that a prefix gives every layer take before the text."""
        return prefix_length(self.variables.get("params", {}))

    def _own_words(self) -> bool:
        """Whether its word table is its own."""
        return True

    def _prompt(self) -> Virtual | None:
        """The virtual tokens among its words; None without."""
        return self.words.prompt()

    def _embed(self, words_BTD: Array, segments: Array | None, places_BT: Array | None, first: int = 0) -> Array:
        """[B, T, D], what the stack reads: rows of the word table with their positions, from `first` on if none are given."""
        if self.scale_words:
            words_BTD = words_BTD * words_BTD.shape[-1] ** 0.5
        x_BTD = words_BTD if words_BTD.shape[-1] == self.width else self.project_words(words_BTD)
        last = first + x_BTD.shape[1]
        if self.positions == "learned" and places_BT is not None:
            x_BTD = x_BTD + self.position(places_BT + self.position_offset)
        elif self.positions == "learned":
            x_BTD = x_BTD + self.position.all()[None, self.position_offset + first : self.position_offset + last]
        elif self.positions == "sincos":
            table = jnp.asarray(sincos_1d(last if places_BT is None else max(last, self.max_length), self.width), x_BTD.dtype)
            x_BTD = x_BTD + (table[None, first:] if places_BT is None else table[places_BT])
        if self.segments:
            x_BTD = x_BTD + self.segment(jnp.zeros(x_BTD.shape[:2], jnp.int32) if segments is None else segments)
        return self.normalise_embeddings(x_BTD) if self.embed_norm else x_BTD

    def word_table(self) -> Array:
        """[V, D], for whoever ties its output to it."""
        return self.words.base()

    def example(self) -> Array:
        """An input of the right shape, to initialise with."""
        return jnp.zeros((1, min(self.max_length, 8)), jnp.int32)


def slots_before(params: Mapping[str, Any]) -> int:
    """How many slots of a cache, and positions, come before a text's own in a tower with these parameters."""
    prompt = params.get("words", {}).get("prompt_tokens")
    return prefix_length(params) + (0 if prompt is None else int(prompt.shape[0]))


def prefix_length(params: Mapping[str, Any]) -> int:
    """How many keys a prefix gives every layer of a tower with these parameters; 0 without."""
    keys = params.get("stack", {}).get("layers", {}).get("attention", {}).get("k", {}).get("prefix_keys")
    return 0 if keys is None else int((keys.parts[0] if is_stacked(keys) else keys).shape[1])


def join_context(context: Mapping[str, Tokens] | None) -> tuple[Array, Array] | None:
    """All that may be attended to, one after another in the order of names: embeddings [B, S, D] and mask [B, S]."""
    if not context:
        return None
    parts = [context[name] for name in sorted(context)]
    if len(parts) == 1:
        return parts[0].embeddings, parts[0].mask
    return jnp.concatenate([p.embeddings for p in parts], axis=1), jnp.concatenate([p.mask for p in parts], axis=1)
