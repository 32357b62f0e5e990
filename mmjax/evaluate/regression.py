"""How far the numbers of a head are off."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation
from mmjax.objectives.regression import errors


@dataclasses.dataclass(frozen=True)
class Errors:
    """Mean absolute error, root mean square error and the share of the variance explained (R^2), over all known numbers.

    Attributes:
      head: the head whose logits are the prediction.
      target: the batch key of the numbers; NaN does not count.
      data: the dataset.
      scale: what the errors are multiplied by: the `deviation` of the target's column gives them in its own unit.

    Raises:
      UserError: another number of logits than numbers, or no known number in the data.
    """

    head: str = "value"
    target: str = "value"
    data: str = "validation"
    scale: float = 1.0

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        def sums(forward: Forward, batch: Batch, rng: Array) -> dict[str, Array]:
            target = batch[self.target]
            error, known = errors(self.head, forward.head(self.head), self.target, target)
            known &= batch["valid"].reshape(-1, *[1] * (target.ndim - 1))
            values = {"absolute": jnp.abs(error), "squared": jnp.square(error), "target": target, "target_2": target**2}
            added = {name: jnp.sum(jnp.where(known, value, 0.0)) for name, value in values.items()}
            return {**added, "count": jnp.sum(known.astype(jnp.float32))}

        total = evaluation.sums("errors", self.data, params, sums, needs=(self.target,))
        count = total["count"]
        if not count:
            raise UserError(f"data={self.data!r} has no known {self.target!r} (all NaN): errors need at least one")
        variance = total["target_2"] / count - (total["target"] / count) ** 2
        squared = total["squared"] / count
        return {
            "mean_absolute_error": self.scale * total["absolute"] / count,
            "root_mean_square_error": self.scale * math.sqrt(squared),
            "r2": 1.0 - squared / variance if variance > 0 else math.nan,
        }
