"""Ordered classes: a grade, a severity, an age group. To miss by one is less wrong than to miss by three."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import counted, valid_rows


@dataclasses.dataclass(frozen=True)
class Ordinal:
    """Predict which of C ordered classes an example is of, by C - 1 questions: is it above the first, above the second, ...?

    Each logit answers one, and an example's loss is the sum of their binary cross entropies (CORAL: Cao 2020, eq. 4). Its class
    is how many of them say yes (eq. 1). An `OrdinalClassifier` of C classes answers by one score and C - 1 thresholds, as the
    paper does, whose answers agree with each other once it is trained (theorem 1); a `Classifier` with C - 1 classes answers
    each by itself, and nothing makes its answers agree. A label below 0 does not count; the loss is summed over what does.

    Attributes:
      head: a head of C - 1 logits.
      label: the batch key of the labels [B], 0 for the least.
      order: the names of the classes from the least to the greatest. Where the data names its classes it must be said, as they
        may be in any order there (folders are in the alphabet's), unless their names are ascending numbers. () without names.
      task_weights: how much each question counts (the paper's lambda); () for 1 everywhere.

    Raises:
      UserError: names that stand twice, weights that are none; when called: labels of another shape than one an example, logits
        of many places, another number of weights than logits.
    """

    head: str = "classes"
    label: str = "label"
    order: tuple[str, ...] = ()
    task_weights: tuple[float, ...] = ()

    in_batch: ClassVar[bool] = False
    outcome: ClassVar[str] = "ordered"

    def __post_init__(self) -> None:
        if isinstance(self.order, str) or len(set(self.order)) < len(self.order) or len(self.order) == 1:
            raise UserError(
                f"ordinal.order={self.order!r}: name two classes or more, each once, from the least to the greatest"
            )
        if self.task_weights:
            checks.weights("ordinal.task_weights", self.task_weights)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.label,)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        logits_BK, label_B = forward.head(self.head), batch[self.label]
        check_one_an_example(self.head, logits_BK, self.label, label_B)
        above_BK = label_B[:, None] > jnp.arange(logits_BK.shape[1], dtype=label_B.dtype)[None]
        sign_BK = jnp.where(above_BK, 1.0, -1.0)
        losses_BK = -jax.nn.log_sigmoid(sign_BK * logits_BK.astype(jnp.float32))
        if self.task_weights:
            if len(self.task_weights) != logits_BK.shape[1]:
                raise UserError(
                    f"ordinal.task_weights has {len(self.task_weights)} weights, the head gives {logits_BK.shape[1]} logits: "
                    "give one a logit"
                )
            losses_BK *= jnp.array([self.task_weights], jnp.float32)
        counts_B = (label_B >= 0) & valid_rows(batch, label_B.shape[0])
        off_B = jnp.abs(rank(logits_BK) - label_B.astype(jnp.int32))
        metrics = {"accuracy": counted(off_B == 0, counts_B), "absolute_error": counted(off_B, counts_B)}
        return Loss(*counted(jnp.sum(losses_BK, axis=1), counts_B), metrics)


def rank(logits_BK: Array) -> Array:
    """[B] int32: how many classes an example is above (Cao 2020, eq. 1)."""
    return jnp.sum((logits_BK > 0).astype(jnp.int32), axis=1)


def check_one_an_example(head: str, logits: Array, key: str, labels: Array) -> None:
    """Raises UserError unless there are logits [B, C - 1] and whole-numbered labels [B]."""
    if logits.ndim != 2 or labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        there, own = ("x".join(map(str, shape[1:])) or "one an example" for shape in (logits.shape, labels.shape))
        raise UserError(
            f"head={head!r} gives logits for {there}, and the labels of {key!r} are {own}, {labels.dtype}: ordered classes "
            "have one whole number an example"
        )
