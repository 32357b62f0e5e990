"""Regression: numbers from a head."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.spatial import NONE
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import counted, valid_rows


@dataclasses.dataclass(frozen=True)
class Regression:
    """Predict a number; one that is NaN does not count. The loss is summed over what counts.

    The head gives one logit for each number: [B, 1] for numbers [B], [B, n] for [B, n], [B, H, W, 1] for a map [B, H, W].

    Attributes:
      head: a head whose logits are the prediction.
      target: the batch key of the numbers.
      loss: `squared`, `absolute`, or `huber` (Huber 1964): squared up to `delta`, then linear; halved as PyTorch's.
      delta: of the Huber loss.

    Raises:
      UserError: an unknown loss; when called: another number of logits than numbers.
    """

    head: str = "value"
    target: str = "value"
    loss: str = "squared"
    delta: float = 1.0

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.one_of("regression.loss", self.loss, ("squared", "absolute", "huber"))
        checks.positive("regression.delta", self.delta)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.target,)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        target = forward.view(self.target)
        error, known = errors(self.head, forward.head(self.head), self.target, target)
        known &= valid_rows(batch, target.shape[0]).reshape(-1, *[1] * (target.ndim - 1))
        size = jnp.abs(error)
        if self.loss == "squared":
            losses = jnp.square(error)
        elif self.loss == "absolute":
            losses = size
        else:
            losses = jnp.where(size <= self.delta, 0.5 * jnp.square(error), self.delta * (size - 0.5 * self.delta))
        return Loss(*counted(losses, known), {"absolute_error": counted(size, known)})


def errors(head: str, logits: Array, key: str, target: Array) -> tuple[Array, Array]:
    """Prediction less target, 0 where that is not known, and where it is: both of the target's shape, float32 and bool.

    Raises:
      UserError: another number of logits than numbers.
    """
    if logits.shape != target.shape and logits.shape != (*target.shape, 1):
        there, own = ("x".join(map(str, shape[1:])) or "one an example" for shape in (logits.shape, target.shape))
        raise UserError(f"head={head!r} gives {there} and {key!r} is {own}: a regression needs one logit for each number")
    predicted, target = logits.reshape(target.shape).astype(jnp.float32), target.astype(jnp.float32)
    known = jnp.isfinite(target)
    if any(part in ("points", "boxes") for part in key.split("_")):  # -1 throughout is no point, no box
        known &= ~jnp.all(target == NONE, axis=-1, keepdims=True)
    return jnp.where(known, predicted - jnp.where(known, target, 0.0), 0.0), known
