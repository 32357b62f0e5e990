"""Heads that say numbers: what `Regression` learned, in its own unit, and the scores of `Ranking`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mmjax.core.errors import UserError
from mmjax.models import Multimodal
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
    """Head -> what it is trained to say, of the heads that a task trains on numbers. Raises `UserError` for a head that two
    tasks train on different ones."""
    found: dict[str, tuple[str, Measured]] = {}
    for name, task in e.tasks.items():
        objective = task.objective
        if isinstance(objective, Regression):
            spec = e.data[task.data].columns.get(objective.target) if task.data in e.data else None
            scale = (getattr(spec, "mean", 0.0), getattr(spec, "deviation", 1.0))
            own = Measured(*scale, objective.loss == "gaussian_nll")
        elif isinstance(objective, Ranking):
            own = Measured()
        else:
            continue
        other, first = found.setdefault(objective.head, (name, own))
        if first != own:
            raise UserError(
                f"tasks.{name}: it trains heads.{objective.head} on numbers with {_written(own)}, and tasks.{other} on such "
                f"with {_written(first)}: say the same, or give each a head of its own"
            )
    return {head: own for head, (_, own) in found.items()}


def units(e: Experiment) -> dict[str, tuple[str, tuple[float, float]]]:
    """Key of a batch -> the set of data that trains on it, and mean and deviation of its numbers."""
    found: dict[str, tuple[str, tuple[float, float]]] = {}
    for name in e.task_data():
        for key, spec in e.data[name].columns.items():
            if hasattr(spec, "deviation"):
                found.setdefault(key, (name, (spec.mean, spec.deviation)))
    return found


def brought(model: Multimodal) -> dict[str, Measured]:
    """The heads of a model from elsewhere that say numbers: in what unit they are is what they say."""
    says = model.huggingface.get("problem_type") == "regression" and "classes" in model.heads
    return {"classes": Measured()} if says else {}


def begun(there: Experiment, here: Experiment, loaded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The loaded parameters with the last layers of heads in the unit of the numbers that they now are trained on; and lines
    that say so.

    Args:
      loaded: path -> parameter.

    Raises:
      UserError: a head whose unit cannot be changed.
    """
    before, found, said = {**brought(there.model), **measured(there)}, dict(loaded), []
    for head, now in measured(here).items():
        own = [path for path in loaded if path.startswith(f"heads_{head}/") and "logits/" in path]
        was = before.get(head, now)
        if was == now or not own:
            continue
        slots = {path.rpartition("/")[2] for path in own}
        if was.variance or now.variance or not slots <= {"kernel", "bias"} or ("bias" not in slots and was.mean != now.mean):
            raise UserError(
                f"init_from: heads.{head} says numbers with {_written(was)} there, and here they have {_written(now)}: say the "
                f"same, or begin it anew (init_fresh='heads_{head}/*')"
            )
        for path in own:
            found[path] = found[path] * (was.deviation / now.deviation)
            if path.endswith("/bias"):
                found[path] += (was.mean - now.mean) / now.deviation
        said.append(f"  heads_{head} is brought from numbers with {_written(was)} to {_written(now)}")
    return found, said


def _written(own: Measured) -> str:
    return f"mean {own.mean:g} and deviation {own.deviation:g}" + ", and their variance" * own.variance
