"""Perplexity of a language-modelling objective over a whole dataset."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.evaluate.evaluation import Evaluation
from mmjax.evaluate.held_out import HeldOut

LARGEST_EXPONENT = 709.0  # of a float64


@dataclasses.dataclass(frozen=True)
class Perplexity(HeldOut):
    """The mean negative log-likelihood of a token, in nats, and its exponential; with the objective's own metrics.

    The mean is over all counted tokens of the dataset, not over batches. Random masks are a record's own: the same at every
    evaluation, batch size and number of devices.

    Attributes:
      objective: one whose loss is a cross entropy summed over tokens, such as causal or masked language modelling.
      data: the dataset.

    Raises:
      UserError: no objective was given; it compares examples within a batch, smooths its labels, or counts no token here.
    """

    example: ClassVar[str] = "Perplexity(CausalLM())"

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.objective, "in_batch", False):
            name = type(self.objective).__name__
            raise UserError(f"objective={name}: perplexity needs a loss over tokens, such as CausalLM or MaskedLM")
        if smoothing := getattr(self.objective, "label_smoothing", 0.0):
            raise UserError(f"objective.label_smoothing={smoothing}: perplexity needs the unsmoothed loss, set it to 0.0")

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        metrics = self.figures(evaluation, params, "perplexity", "token")
        loss = metrics["loss"]
        # A NaN must come out as NaN, hence the order of the comparison.
        return metrics | {"perplexity": math.inf if loss > LARGEST_EXPONENT else math.exp(loss)}
