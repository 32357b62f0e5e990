"""How far the numbers of a head are off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation
from mmjax.objectives.regression import FLOOR, errors, gaussian_nll, has_variance, mean_and_variance

ROUNDING = 1e-7  # of float32: numbers that differ by less are the same
WRITTEN = ("index", "truth", "predicted")  # of each example
WITHIN = 1.96  # standard deviations, which 95% of a normal distribution is within


@dataclasses.dataclass(frozen=True)
class Errors:
    """Mean absolute error, root mean square error and the share of the variance explained (R^2; NaN where there is none), over
    all known numbers.

    Of a head that gives a mean and the logarithm of a variance for each (`Regression(loss="gaussian_nll")`) also
    `negative_log_likelihood`, in nats a number with the constant log(2 pi) / 2 and in the target's own unit, and `coverage`:
    the share of numbers within 1.96 standard deviations of their mean, 0.95 of a head that is as sure as it is right.

    Of each example with a known number `predictions.jsonl` has `truth` and `predicted`, numbers or lists of them, in the unit
    of the data as `mmjax predict` gives them, whatever `scale` is: the `mean` and `deviation` of a column `Number` are put
    back. Maps of numbers [B, H, W] are not written.

    Attributes:
      head: the head whose logits are the prediction.
      target: the batch key of the numbers; NaN does not count.
      data: the dataset.
      scale: what the errors are multiplied by: the `deviation` of the target's column gives them in its own unit.
      floor: a smaller variance counts as this, as in `Regression`.

    Raises:
      UserError: another number of logits than numbers, or no known number in the data.
    """

    head: str = "value"
    target: str = "value"
    data: str = "validation"
    scale: float = setting(above=0, default=1.0)
    floor: float = setting(above=0, default=FLOOR)

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        def moments(forward: Forward, batch: Batch) -> dict[str, Array]:
            """[B] each: of the numbers of an example, so that what is added up over many is added in float64."""
            target = batch[self.target]
            logits, log_variance = forward.head(self.head), None
            if has_variance(logits, target):
                logits, log_variance = mean_and_variance(self.head, logits, self.target, target)
            error, known = errors(self.head, logits, self.target, target)
            rest = tuple(range(1, target.ndim))
            count = jnp.sum(known.astype(jnp.float32), axis=rest, keepdims=True)
            mean = jnp.sum(jnp.where(known, target, 0.0), axis=rest, keepdims=True) / jnp.maximum(count, 1.0)
            off = jnp.square(target.astype(jnp.float32) - mean)
            values = {"absolute": jnp.abs(error), "squared": jnp.square(error), "off": off}
            if log_variance is not None:
                values["unlikely"] = gaussian_nll(error, log_variance, self.floor)
                limit = WITHIN**2 * jnp.exp(jnp.maximum(log_variance, jnp.log(self.floor)))
                values["within"] = (values["squared"] <= limit).astype(jnp.float32)
            added = {name: jnp.sum(jnp.where(known, value, 0.0), axis=rest) for name, value in values.items()}
            added |= {"count": count.reshape(-1), "mean": mean.reshape(-1)}
            if target.ndim > 2:
                return added
            said = logits.reshape(target.shape).astype(jnp.float32)
            return {**added, "index": batch["index"], "truth": target.astype(jnp.float32), "predicted": said}

        found = evaluation.rows("errors", self.data, params, moments, needs=(self.target,))
        rows = {name: np.asarray(value, np.float64) for name, value in found.items() if name not in WRITTEN}
        total = {name: float(value.sum()) for name, value in rows.items()}
        count = total["count"]
        if not count:
            raise UserError(f"data={self.data!r} has no known {self.target!r} (all NaN): errors need at least one")
        if "index" in found:
            unit = getattr(evaluation.dataset(self.data), "unit", None)
            evaluation.keep(_examples(found, *(unit(self.target) if unit else (0.0, 1.0))))
        # Each example's own spread and that of the examples: a difference of squares would lose a spread that is small
        # beside the numbers.
        mean = float((rows["count"] * rows["mean"]).sum()) / count
        variance = (total["off"] + float((rows["count"] * (rows["mean"] - mean) ** 2).sum())) / count
        squared = total["squared"] / count
        metrics = {
            "mean_absolute_error": self.scale * total["absolute"] / count,
            "root_mean_square_error": self.scale * math.sqrt(squared),
            "r2": 1.0 - squared / variance if variance > (ROUNDING * mean) ** 2 else math.nan,
        }
        if "unlikely" in total:
            constant = 0.5 * math.log(2 * math.pi) + math.log(self.scale)
            metrics |= {"negative_log_likelihood": total["unlikely"] / count + constant, "coverage": total["within"] / count}
        return metrics


def _examples(found: dict[str, np.ndarray], mean: float, deviation: float) -> Iterator[dict[str, Any]]:
    """One a line of `predictions.jsonl`, of the examples that have a known number; one that is not known is NaN."""
    own = {name: deviation * found[name].astype(np.float64) + mean for name in WRITTEN[1:]}
    for n in np.flatnonzero(found["count"]):
        yield {"index": int(found["index"][n]), **{name: value_N[n].tolist() for name, value_N in own.items()}}
