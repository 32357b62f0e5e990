"""The loss of an objective on data that it is not trained on."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.evaluate.evaluation import Evaluation
from mmjax.objectives import OBJECTIVES
from mmjax.objectives.given import check_given


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """An objective's loss over a whole dataset, a mean over all that it counts, and its own metrics.

    What is drawn for a record (a mask, a negative) is its own: the same at every evaluation. The loss of an objective that
    compares the examples of a batch is one of batches of the dataset's `batch_size`, in its order: compare it only with
    others of that.

    Attributes:
      objective: any that keeps no variables, with the fields that it is trained with.
      data: the dataset.

    Raises:
      UserError: no objective was given; it keeps variables while training, or counts nothing in the data.
    """

    objective: Any = setting(OBJECTIVES, needed=True, default=None)
    data: str = "validation"

    example: ClassVar[str] = "HeldOut(Classification())"

    def __post_init__(self) -> None:
        check_given(self.objective, self.example)
        if hasattr(self.objective, "init_variables"):
            raise UserError(
                f"objective={type(self.objective).__name__}: it keeps variables while training; there are none here"
            )

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        return self.figures(evaluation, params, "held_out", "example")

    def figures(self, evaluation: Evaluation, params: Params, key: str, counted: str) -> dict[str, float]:
        """The objective's metrics, and `loss`.

        Args:
          key: what the evaluation is called.
          counted: what its objective counts, for the complaint that there is none.
        """
        needs = getattr(self.objective, "needs", ())
        total = evaluation.sums(key, self.data, params, self.objective, needs=needs)
        if total.count == 0:
            name = type(self.objective).__name__
            raise UserError(f"data={self.data!r} has no {counted} that {name} counts: {key} needs at least one")
        metrics = {name: sum_ / count if count else 0.0 for name, (sum_, count) in total.metrics.items()}
        return metrics | {"loss": total.sum / total.count}
