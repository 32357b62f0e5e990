"""Whether a head is as sure as it is right."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.core.config import setting
from mmjax.core.types import Params
from mmjax.evaluate.classified import OfHead
from mmjax.evaluate.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class Calibration(OfHead):
    """Expected and maximum calibration error (Guo 2017, equations 3 and 5), log loss and Brier score.

    Examples are put into bins of equal width by how likely their likeliest class is; the error of a bin is how far the mean of
    that is from the share of them that is right. A likelihood on a border belongs to the bin below. The other attributes and
    what is raised are those of `OfHead`.

    Attributes:
      bins: how many.
    """

    bins: int = setting(least=1, default=15)

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        found = self.classified(evaluation, params)
        evaluation.keep(found.examples())
        right_N = found.predicted == found.label
        error_M, count_M = errors(found.confidence, right_N, self.bins)
        metrics = {
            "expected_error": np.sum(error_M * count_M) / len(right_N),
            "maximum_error": np.max(error_M),
            "log_loss": -np.mean(found.log_likelihood, dtype=np.float64),
            "brier": np.mean(found.brier, dtype=np.float64),
            "confidence": np.mean(found.confidence, dtype=np.float64),
            "accuracy": np.mean(right_N),
        }
        return {name: float(value) for name, value in metrics.items()}


def errors(confidence_N: np.ndarray, right_N: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """([M] float64, [M] int): the error of each bin, 0 where it is empty, and how many examples are in it.

    A confidence that is not a number is in the last bin, whose error is then none either: a diverged model cannot look good.
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    place_N = np.clip(np.searchsorted(np.linspace(0.0, 1.0, bins + 1), confidence_N, side="left") - 1, 0, bins - 1)
    count_M = np.bincount(place_N, minlength=bins)
    sure_M = np.bincount(place_N, weights=confidence_N, minlength=bins)
    right_M = np.bincount(place_N, weights=right_N, minlength=bins)
    return np.abs(right_M - sure_M) / np.maximum(count_M, 1), count_M
