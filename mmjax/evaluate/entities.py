"""How well a head of tags finds named entities: precision, recall and F1 of whole entities, as seqeval counts them."""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.data.schemes import check_tag, parted, scheme_of, types_of
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.objectives import routes
from mmjax.objectives.classification import check_places

logger = logging.getLogger("mmjax")
PREFIX = {"O": 0, "B": 1, "I": 2, "E": 3, "S": 4}
MODES = ("lenient", "strict")


@dataclasses.dataclass(frozen=True)
class Entities:
    """Precision, recall and F1 of entities, each right where its type, its first word and its last word are: over all of them
    (micro), the mean of the types (macro, of those that occur in the data or in what is predicted) and for each type.

    The figures are those of `seqeval` on the tags of the words, each word having that of its first token (Ramshaw and Marcus
    1995; conlleval). A word without a token, since it was cut or is nothing to the tokenizer, is taken as predicted `O`: its
    entity counts as missed. A score whose denominator is 0 is 0.

    Attributes:
      head: a head that gives logits [B, T, C], one class a tag.
      label: the key of a `Tags` column.
      scheme: that of the tags, `iob2` (or `bio`) or `iobes` (or `bioes`).
      mode: what is an entity in predictions that break the scheme. `lenient`: each unbroken run of a type's tags is one (the
        default of seqeval). `strict`: what does not begin with `B-`, or in `iobes` does not end with `E-`, is none.
      data: the dataset.

    Raises:
      UserError: an unknown scheme or mode, tags of another scheme, logits of other places than the tags', another number of
        classes than the head's, or data without words.
    """

    head: str = "token_classes"
    label: str = "tags"
    scheme: str = "iob2"
    mode: str = "lenient"
    data: str = "validation"

    def __post_init__(self) -> None:
        scheme_of(self.scheme)
        if self.mode not in MODES:
            raise UserError(f"entities.mode={self.mode!r}: use one of {', '.join(MODES)}")

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        names = class_names(evaluation.dataset(self.data), self.label)
        if not names:
            raise UserError(f"data={self.data!r} does not say the tags of {self.label!r}: give it the column Tags()")
        scheme = scheme_of(self.scheme)
        for name in names:
            check_tag(name, scheme)
        counts, lost, words = self.counts(evaluation, params, names)
        if not words:
            raise UserError(f"data={self.data!r} has no tagged word in {self.label!r} (all below 0)")
        if lost:
            told = f"{int(lost)} of {int(counts[2].sum())} entities have a word without a token"
            logger.warning("entities: data.%s: %s (cut, or nothing to the tokenizer): they count as missed", self.data, told)
        return {**scores(counts, types_of(names)), "lost": float(lost)}

    def counts(self, evaluation: Evaluation, params: Params, names: tuple[str, ...]) -> tuple[np.ndarray, float, float]:
        """[3, types] float64: entities that were found, predicted and there; entities of which a word is lost; words."""
        strict = scheme_of(self.scheme) if self.mode == "strict" else ""
        kinds = ("", *types_of(names))
        prefix = tuple(PREFIX[parted(name)[0]] for name in names)
        kind = tuple(kinds.index(parted(name)[1]) - 1 for name in names)
        label, head, data = self.label, self.head, self.data
        needs = (label, *(f"{label}_{part}" for part in ("words", "ends", "lost")))

        def count(forward: Forward, batch: Batch, rng: Array) -> tuple[Array, Array, Array]:
            logits, label_BT = forward.head(head), batch[label]
            check_places(head, logits, label, label_BT)
            routes.check_classes(head, logits, len(names), f"data.{data} has {len(names)} classes")
            valid_B = batch["valid"]
            word_BT = jnp.where(valid_B[:, None], batch[f"{label}_words"], -1)
            end_BT = batch[f"{label}_ends"]
            kind_C = jnp.array(kind)
            tag_BT = logits.argmax(axis=-1)
            starts_BT, ends_BT = predicted(jnp.array(prefix)[tag_BT], kind_C[tag_BT], word_BT, strict)
            there_BT = (end_BT >= 0) & (word_BT >= 0)
            there_kind_BT = kind_C[jnp.maximum(label_BT, 0)]
            right_BT = starts_BT & there_BT & (ends_BT == end_BT) & (kind_C[tag_BT] == there_kind_BT)
            lost_K = jnp.sum(jnp.where(valid_B[:, None], batch[f"{label}_lost"], 0), axis=0)

            def by_type(mask_BT: Array, kind_BT: Array) -> Array:
                hits_BTK = mask_BT[..., None] & (kind_BT[..., None] == jnp.arange(len(kinds) - 1)[None, None])
                return jnp.sum(hits_BTK.astype(jnp.int32), axis=(0, 1))

            there_K = by_type(there_BT, there_kind_BT) + lost_K
            found = jnp.stack([by_type(right_BT, there_kind_BT), by_type(starts_BT, kind_C[tag_BT]), there_K])
            return found, jnp.sum(lost_K), jnp.sum((word_BT >= 0).astype(jnp.int32))

        counts, lost, words = evaluation.sums("entities", self.data, params, count, needs=needs)
        return np.asarray(counts), lost, words


def predicted(prefix_BT: Array, kind_BT: Array, word_BT: Array, strict: str = "") -> tuple[Array, Array]:
    """Where entities begin, and the numbers of their last words there.

    Args:
      prefix_BT: int, of each token's tag, by `PREFIX`; `kind_BT` its type.
      word_BT: int, the number of the word that begins at a token; -1 where none does, whose tags are not looked at. Between
        numbers that do not follow each other are words without a token, whose tag is `O`.
      strict: the scheme that entities must keep to; "" takes each unbroken run of a type's tags for one.

    Returns:
      bool [B, T], and int [B, T], of use where the first is True.
    """
    length = word_BT.shape[1]
    place_BT = jax.lax.broadcasted_iota(jnp.int32, word_BT.shape, 1)
    is_word_BT = word_BT >= 0
    # Words side by side, in front: what comes before and after a word is then its neighbour.
    order_BT = jnp.argsort(jnp.where(is_word_BT, place_BT, length + place_BT), axis=1)
    prefix, kind, word = (jnp.take_along_axis(x, order_BT, axis=1) for x in (prefix_BT, kind_BT, word_BT))
    prefix = jnp.where(word >= 0, prefix, PREFIX["O"])
    before, kind_before, word_before = (jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=-1) for x in (prefix, kind, word))
    follows = (word >= 0) & (word == word_before + 1) & (place_BT > 0)
    before = jnp.where(follows, before, PREFIX["O"])
    inside = (prefix == PREFIX["I"]) | (prefix == PREFIX["E"])
    # In each scheme an entity goes on by I- or E- of its type, after what may be gone on with: B- or I-.
    goes_on = inside & (kind == kind_before) & ((before == PREFIX["B"]) | (before == PREFIX["I"]))
    begins = (prefix != PREFIX["O"]) & ~goes_on
    # The place before the next that does not go on.
    stops = jnp.where(goes_on, length, place_BT)
    following = jnp.pad(jax.lax.cummin(stops, axis=1, reverse=True)[:, 1:], ((0, 0), (0, 1)), constant_values=length)
    last = jnp.minimum(following, length) - 1
    if strict:
        begins &= (prefix == PREFIX["B"]) | (prefix == PREFIX["S"])
    if strict == "iobes":
        ended = jnp.take_along_axis(prefix, last, axis=1)
        begins &= (ended == PREFIX["E"]) | (ended == PREFIX["S"])
    back_BT = jnp.argsort(order_BT, axis=1)
    ends = jnp.take_along_axis(word, last, axis=1)
    return jnp.take_along_axis(begins, back_BT, axis=1), jnp.take_along_axis(ends, back_BT, axis=1)


def scores(counts: np.ndarray, types: tuple[str, ...]) -> dict[str, float]:
    """Metrics of [3, types]: entities found, predicted and there."""

    def three(found: float, said: float, there: float) -> tuple[float, float, float]:
        precision, recall = (found / whole if whole else 0.0 for whole in (said, there))
        return precision, recall, 2 * precision * recall / (precision + recall) if found else 0.0

    each = {kind: three(*own) for kind, own in zip(types, counts.T.tolist(), strict=True) if own[1] or own[2]}
    macro = np.mean(list(each.values()) or [(0.0, 0.0, 0.0)], axis=0)
    named = ("precision", "recall", "f1")
    metrics = dict(zip(named, three(*counts.sum(axis=1).tolist()), strict=True))
    metrics |= {f"macro_{name}": value for name, value in zip(named, macro.tolist(), strict=True)}
    return metrics | {f"{name}/{kind}": own[n] for kind, own in each.items() for n, name in enumerate(named)}
