"""Perplexity of a language-modelling objective over a whole dataset."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.evaluate.evaluation import Evaluation
from mmjax.objectives import OBJECTIVES

LARGEST_EXPONENT = 709.0  # of a float64


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """The mean negative log-likelihood of a token, in nats, and its exponential; with the objective's own metrics.

    The mean is over all counted tokens of the dataset, not over batches. Random masks are a record's own: the same at every
    evaluation, batch size and number of devices.

    Attributes:
      objective: one whose loss is a cross entropy summed over tokens, such as causal or masked language modelling.
      data: the dataset.

    Raises:
      UserError: the objective compares examples within a batch or smooths its labels, or counts no token in the data.
    """

    objective: Any = setting(OBJECTIVES)
    data: str = "validation"

    def __post_init__(self) -> None:
        if not callable(self.objective) or getattr(self.objective, "in_batch", False):
            name = type(self.objective).__name__
            raise UserError(f"objective={name}: perplexity needs a loss over tokens, such as CausalLM or MaskedLM")
        if hasattr(self.objective, "init_variables"):
            raise UserError(
                f"objective={type(self.objective).__name__}: it keeps variables while training; there are none here"
            )
        if smoothing := getattr(self.objective, "label_smoothing", 0.0):
            raise UserError(f"objective.label_smoothing={smoothing}: perplexity needs the unsmoothed loss, set it to 0.0")

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        needs = getattr(self.objective, "needs", ())
        total = evaluation.sums("perplexity", self.data, params, self.objective, needs=needs)
        if total.count == 0:
            name = type(self.objective).__name__
            raise UserError(f"data={self.data!r} has no token that {name} counts: perplexity needs at least one")
        loss = total.sum / total.count
        metrics = {name: sum_ / count if count else 0.0 for name, (sum_, count) in total.metrics.items()}
        # A NaN must come out as NaN, hence the order of the comparison.
        perplexity = math.inf if loss > LARGEST_EXPONENT else math.exp(loss)
        return metrics | {"loss": loss, "perplexity": perplexity}
