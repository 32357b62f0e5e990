"""Answers that stand in a passage: at which token one begins, and at which it ends."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives.losses import correct, counted, cross_entropy, valid_rows


@dataclasses.dataclass(frozen=True)
class ExtractSpan:
    """The mean of two cross entropies over the tokens of a window, of an answer's first and of its last (Devlin 2019, section
    4.2). A window without an answer has both at its first token, `[CLS]` (section 4.3).

    As in `transformers`, whose loss it is, the softmax is over all T places, those that fill a row up included. Rows whose
    places are below 0 do not count.

    Attributes:
      head: a head of two logits a token, [B, T, 2]: `TokenClassifier(classes=2, transform=False)`.
      answers: the key of a `Span` column, [B, 2] int32.

    Raises:
      UserError: when called: other logits or places than these.
    """

    head: str = "spans"
    answers: str = "answers"

    in_batch: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.answers,)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        logits_BT2, place_B2 = forward.head(self.head), batch[self.answers]
        check_two(self.head, logits_BT2)
        if place_B2.ndim != 2 or place_B2.shape[1] != 2:
            shape = "x".join(map(str, place_B2.shape[1:])) or "one an example"
            raise UserError(f"answers={self.answers!r} has {shape}, no first and last token: the column Span() makes them")
        logits_B2T = jnp.swapaxes(logits_BT2, 1, 2)
        counts_B = (place_B2[:, 0] >= 0) & valid_rows(batch, place_B2.shape[0])
        losses_B2, right_B2 = cross_entropy(logits_B2T, place_B2), correct(logits_B2T, place_B2)
        metrics = {
            "accuracy": counted(right_B2.all(axis=1), counts_B),
            "start_accuracy": counted(right_B2[:, 0], counts_B),
            "end_accuracy": counted(right_B2[:, 1], counts_B),
        }
        return Loss(*counted(jnp.mean(losses_B2, axis=1), counts_B), metrics)


def check_two(head: str, logits: Array) -> None:
    """Raises UserError unless a head gives two logits a token."""
    if logits.ndim != 3 or logits.shape[-1] != 2:
        own = "x".join(map(str, logits.shape[1:]))
        raise UserError(
            f"model.heads.{head} gives {own}, and answers in a passage want two logits a token: use "
            "TokenClassifier(classes=2, transform=False)"
        )
