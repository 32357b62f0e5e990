"""Masked language modelling (BERT), with or without another modality to look at."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.packed import packed_places
from mmjax.core.random import example_uniform, packed_uniform
from mmjax.core.types import Array, Batch, Forward, Loss, Tokens
from mmjax.objectives import checks, routes
from mmjax.objectives.losses import correct, counted, cross_entropy, valid_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Recover hidden tokens (Devlin 2019, sec. 3.1): of those chosen, 80% become `mask_id`, 10% a random token, 10% stay.

    The loss is summed over the chosen tokens; only real tokens that are not special are ever chosen.

    Attributes:
      vocab_size: random tokens are drawn from all of it.
      mask_id: the id of the mask token.
      special_ids: ids that are never chosen (padding, sentence marks).
      mask_probability: the chance of each token to be chosen.
      max_predictions: at most this many tokens a row are chosen, and only they reach the head, which saves most of its
        vocabulary-sized work; None for no limit. Of a row that several texts are packed into all of them share it.
      whole_words: all tokens of a word are chosen, or none (BERT's whole-word masking; of Chinese words: Cui 2019,
        arXiv:1906.08101, section 2): each word as often as a token else; what each token becomes is drawn by itself. It reads
        `MODALITY_words`, which `Text(words=...)` makes.
      modality: whose tokens they are.
      head: a token head over the vocabulary.
      fusion: the fusion that feeds the head, whose result starts with this modality's tokens; "" for what the head's `input`
        says.
      context: the other modalities of that fusion; () for all it has.

    Raises:
      UserError: when called: a head that something else feeds, or of fewer classes than `vocab_size`; fewer `max_predictions`
        than are chosen of a packed row on average.
    """

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...] = setting(least=0, default=())
    mask_probability: float = 0.15
    max_predictions: int | None = None
    whole_words: bool = False
    modality: str = "text"
    head: str = "masked_lm"
    fusion: str = ""
    context: tuple[str, ...] = ()

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.mask_probability <= 1:
            raise UserError(f"masked_lm.mask_probability={self.mask_probability}: use a number above 0, at most 1")
        if not 0 <= self.mask_id < self.vocab_size:
            raise UserError(f"masked_lm.mask_id={self.mask_id}: use an id below vocab_size={self.vocab_size}")
        if self.max_predictions is not None:
            checks.at_least("masked_lm.max_predictions", self.max_predictions, 1)

    @property
    def needs(self) -> tuple[str, ...]:
        words = (f"{self.modality}_words",) if self.whole_words else ()
        return (self.modality, f"{self.modality}_mask", "index", *words, *self.context)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        labels_BT, real_BT = batch[self.modality], batch[f"{self.modality}_mask"]
        real_BT = real_BT & valid_rows(batch, labels_BT.shape[0])[:, None]
        lengths_BS, words_BT = batch.get(f"{self.modality}_lengths"), batch.get(f"{self.modality}_words")
        corrupted_BT, chosen_BT = self.corrupt(labels_BT, real_BT, batch["index"], rng, lengths_BS, words_BT)
        fusion, context = self._route(forward)
        key = "/".join(("masked_lm", self.head, fusion, *context, f"{self.mask_probability}", f"{self.max_predictions}"))
        key += "/whole_words" * self.whole_words
        tokens = forward.encode(self.modality, {self.modality: corrupted_BT}, key=key)
        if fusion:
            others = {modality: forward.encode(modality) for modality in context}
            fused = forward.fuse(fusion, {self.modality: tokens, **others}, key=key).real()
            # Ours come first, after a token that the fusion may begin with; a one-way fusion gives nothing but ours.
            given = sum(part.real().mask.shape[1] for part in (tokens, *others.values()))
            first = max(0, fused.mask.shape[1] - given)
            tokens = jax.tree.map(lambda x: x[:, first : first + labels_BT.shape[1]], dataclasses.replace(fused, grid=None))
        tokens = tokens.real()
        if self.max_predictions is not None:
            tokens, labels_BT, chosen_BT = keep_chosen(tokens, labels_BT, chosen_BT, self.max_predictions)
        logits = forward.head(self.head, tokens, key=key)
        if logits.shape[-1] < self.vocab_size:
            raise UserError(f"vocab_size={self.vocab_size}: model.heads.{self.head}.classes={logits.shape[-1]} are fewer")
        accuracy = counted(correct(logits, labels_BT), chosen_BT)
        return Loss(*counted(cross_entropy(logits, labels_BT), chosen_BT), {"accuracy": accuracy})

    def _route(self, forward: Forward) -> tuple[str, tuple[str, ...]]:
        """The fusion that feeds the head, "" for none, and the other modalities it joins."""
        inputs = routes.named(forward.spec(f"heads.{self.head}").input)
        routes.check(forward, self.head, self.modality, self.fusion or inputs[0], self.context)
        others = tuple(name for name in forward.modalities(inputs[0]) if name != self.modality)
        return ("", ()) if inputs == (self.modality,) else (inputs[0], self.context or others)

    def corrupt(
        self,
        ids_BT: Array,
        real_BT: Array,
        index_B: Array,
        rng: Array,
        lengths_BS: Array | None = None,
        words_BT: Array | None = None,
    ) -> tuple[Array, Array]:
        """The ids the model is shown, [B, T] int, and which of them it must recover, [B, T] bool.

        Of several texts in a row each draws as text n of row r draws alone where `index` is r S + n.
        """
        length = ids_BT.shape[1]
        mean = self.mask_probability * length
        if lengths_BS is not None and self.max_predictions is not None and self.max_predictions < mean:
            raise UserError(
                f"masked_lm.max_predictions={self.max_predictions}: rows that texts are packed into have {length} tokens, of "
                f"which {mean:g} are chosen on average; give more, or None"
            )

        def uniform(key: Array) -> Array:
            if lengths_BS is None:
                return example_uniform(key, index_B, (length,))
            return packed_uniform(key, index_B, lengths_BS, length)

        choose_key, action_key, token_key = jax.random.split(rng, 3)
        special_BT = jnp.isin(ids_BT, jnp.array(self.special_ids, ids_BT.dtype))
        draw_BT = uniform(choose_key)
        if self.whole_words:
            assert words_BT is not None
            draw_BT = jnp.take_along_axis(draw_BT, first_of_word(words_BT, lengths_BS), axis=1)
        draw_BT = jnp.where(real_BT & ~special_BT, draw_BT, 1.0)
        chosen_BT = draw_BT < self.mask_probability
        if self.max_predictions is not None and self.max_predictions < length:
            # The smallest draws are kept: an even choice, where the first in the row would favour the start of a sentence.
            sorted_BT = jnp.sort(draw_BT, axis=1)
            # The tokens of a word have one draw: below the next one are no more than allowed, and whole words.
            kept_BT = draw_BT < sorted_BT[:, self.max_predictions, None]
            chosen_BT &= kept_BT if self.whole_words else draw_BT <= sorted_BT[:, self.max_predictions - 1, None]
        action_BT = uniform(action_key)
        random_BT = jnp.floor(uniform(token_key) * self.vocab_size).astype(ids_BT.dtype)
        shown_BT = jnp.where(action_BT < 0.8, self.mask_id, jnp.where(action_BT < 0.9, random_BT, ids_BT))
        return jnp.where(chosen_BT, shown_BT, ids_BT), chosen_BT


def first_of_word(words_BT: Array, lengths_BS: Array | None = None) -> Array:
    """[B, T] int32: the place of the first token of each token's word; its own where it is of none (below 0)."""
    place_T = jnp.arange(words_BT.shape[1], dtype=jnp.int32)
    begins_BT = (words_BT < 0) | (words_BT != jnp.roll(words_BT, 1, axis=1)) | (place_T[None] == 0)
    if lengths_BS is not None:
        begins_BT |= packed_places(lengths_BS, words_BT.shape[1])[1] == 0
    return jax.lax.cummax(jnp.where(begins_BT, place_T[None], 0), axis=1)


def keep_chosen(tokens: Tokens, labels_BT: Array, chosen_BT: Array, limit: int) -> tuple[Tokens, Array, Array]:
    """The first `limit` chosen positions of each row (filled up with others, which are not marked as chosen)."""
    size = min(limit, chosen_BT.shape[1])
    chosen, place = jax.lax.top_k(chosen_BT.astype(jnp.int32), size)
    embeddings = jnp.take_along_axis(tokens.embeddings, place[:, :, None], axis=1)
    return Tokens(embeddings, chosen > 0), jnp.take_along_axis(labels_BT, place, axis=1), chosen > 0
