"""Heads that say numbers: what `Regression` learned, in its own unit, and the scores of `Ranking`."""

from __future__ import annotations

from typing import NamedTuple

from mmjax.objectives import Ranking, Regression
from mmjax.train.experiment import Experiment


class Measured(NamedTuple):
    """What a head's logits are: `number = deviation * logit + mean`, in the unit of the data.

    Attributes:
      variance: whether it says a variance beside each number.
    """

    mean: float = 0.0
    deviation: float = 1.0
    variance: bool = False


def measured(e: Experiment) -> dict[str, Measured]:
    """Head -> what it was trained to say, of the heads that a task trains on numbers."""
    found = {}
    for task in e.tasks.values():
        objective = task.objective
        if isinstance(objective, Regression):
            spec = e.data[task.data].columns.get(objective.target) if task.data in e.data else None
            scale = (getattr(spec, "mean", 0.0), getattr(spec, "deviation", 1.0))
            found[objective.head] = Measured(*scale, objective.loss == "gaussian_nll")
        elif isinstance(objective, Ranking):
            found[objective.head] = Measured()
    return found
