"""Which class is which: labels are matched to a head's logits by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmjax.core.errors import UserError, nearest
from mmjax.core.trees import match
from mmjax.data import Dataset
from mmjax.train.experiment import Experiment
from mmjax.train.run import Run

SHOWN = 6  # names in a complaint
NAMED = ("classes", "token_classes")  # heads whose classes a HuggingFace config names
OUTCOMES = {"one": "one class an example", "several": "several classes an example", "ordered": "ordered classes"}


@dataclasses.dataclass(frozen=True)
class Use:
    """A head that is held against the labels of some data.

    Attributes:
      who: the field of the experiment that says so.
      outcome: what its logits say: `one` of the classes, `several`, each by itself, or by C - 1 logits the place among C
        `ordered` ones.
      order: names of ordered classes from the least to the greatest, where the spec says them.
    """

    head: str
    data: str
    label: str
    who: str
    trains: bool
    outcome: str = "one"
    order: tuple[str, ...] = ()


def uses(experiment: Experiment, evaluators: Mapping[str, Any]) -> Iterator[Use]:
    """Every task and evaluator that reads labels of a head: those with the fields `head` and `label`."""
    for name, task in experiment.tasks.items():
        spec = task.objective
        if hasattr(spec, "head") and hasattr(spec, "label"):
            yield Use(spec.head, task.data, spec.label, f"tasks.{name}", True, outcome(spec), _order(spec))
    for name, spec in evaluators.items():
        if hasattr(spec, "head") and hasattr(spec, "label"):
            yield Use(spec.head, spec.data, spec.label, f"evaluate.{name}", False, outcome(spec), _order(spec))


def outcome(spec: Any) -> str:
    """What an objective or an evaluator takes the logits of its head for, see `Use`."""
    return str(getattr(spec, "outcome", "one"))


def _order(spec: Any) -> tuple[str, ...]:
    return tuple(getattr(spec, "order", ())) if outcome(spec) == "ordered" else ()


def check_outcomes(found: Iterable[Use], numbers: Iterable[str] = ()) -> None:
    """Raises UserError for a head whose logits are taken for different things.

    Args:
      numbers: the heads that are trained on numbers.
    """
    first: dict[str, Use] = {}
    for use in found:
        if use.head in numbers:
            raise UserError(
                f"{use.who}: it takes the logits of heads.{use.head} for {OUTCOMES[use.outcome]}, and another task trains them "
                "on numbers: give each a head of its own"
            )
        other = first.setdefault(use.head, use)
        if other.outcome != use.outcome:
            raise UserError(
                f"{use.who}: it takes the logits of heads.{use.head} for {OUTCOMES[use.outcome]}, and {other.who} for "
                f"{OUTCOMES[other.outcome]}: give each a head of its own, or an evaluator of its kind"
            )


def known_classes(experiment: Experiment, run: Run | None) -> dict[str, tuple[str, ...]]:
    """Head -> its names, where its logits have an order already: in the run, or in what it starts from."""
    if run is not None and run.has_checkpoint():
        return run.classes() or from_huggingface(experiment)
    if not experiment.init_from:
        return {}
    kept = Run(experiment.init_from).classes() or from_huggingface(Run(experiment.init_from).experiment())
    heads = {head: names for head, names in kept.items() if head in experiment.model.heads}
    return {head: names for head, names in heads.items() if not _is_fresh(experiment, head)}


def _is_fresh(experiment: Experiment, head: str) -> bool:
    """Whether a head's last layer is initialised anew."""
    return any(match(pattern, f"heads_{head}/logits/kernel") for pattern in experiment.init_fresh)


def from_huggingface(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    """The names that a converted model says of its classes, unless they are HuggingFace's LABEL_0, LABEL_1, ..."""
    return names_of(experiment.model)


def names_of(model: Any) -> dict[str, tuple[str, ...]]:
    """The same of a model."""
    head = next((head for head in NAMED if head in model.heads), "")
    names = model.huggingface.get("id2label") if head else None
    if not names:
        return {}
    ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    if ordered == tuple(f"LABEL_{i}" for i in range(len(ordered))) or len(set(ordered)) < len(ordered):
        return {}
    return {head: ordered}


def match_classes(
    experiment: Experiment,
    datasets: Mapping[str, Dataset],
    known: Mapping[str, tuple[str, ...]],
    evaluators: Mapping[str, Any],
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Bring the labels of all data that a head is held against into the order of its logits.

    Args:
      known: head -> its names, where its logits have an order already; else they take that of the data it is trained on.

    Returns:
      (head -> names, lines about what was put into another order).

    Raises:
      UserError: data with a class that the head does not know.
    """
    found = dict(known)
    matched: dict[tuple[str, str], str] = {}
    lines = []
    for use in sorted(uses(experiment, evaluators), key=lambda use: not use.trains):
        own = datasets[use.data].names.get(use.label, ()) if use.data in datasets else ()
        if use.order and found.setdefault(use.head, use.order) != use.order:
            raise UserError(
                f"{use.who}: order is {some(use.order)}, and the classes of heads.{use.head} already are "
                f"{some(found[use.head])}"
            )
        if not own:
            continue
        if use.outcome == "ordered" and use.head not in found and not _ascending(own):
            raise UserError(
                f"{use.who}: data.{use.data} names its classes {some(own)}, which says nothing of their order: name them in "
                "order=(...) of the task's Ordinal, from the least to the greatest"
            )
        names = found.setdefault(use.head, own)
        if own == names:
            matched.setdefault((use.data, use.label), use.head)
            continue
        stranger = next((name for name in own if name not in names), None)
        if stranger is not None:
            raise UserError(_unknown(use, stranger, own, names, use.head in known))
        first = matched.setdefault((use.data, use.label), use.head)
        if first != use.head:
            raise UserError(
                f"data.{use.data}: heads {first!r} and {use.head!r} both read its {use.label!r} and have their classes in "
                "different orders; name the data twice"
            )
        datasets[use.data].match(use.label, names)
        lines.append(
            f"data.{use.data}: its classes are {some(own)}; matched by name to those of heads.{use.head}: {some(names)}"
        )
    return found, lines + _other_keys(experiment, datasets, matched)


def _ascending(names: Sequence[str]) -> bool:
    """Whether names are numbers that rise."""
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return False
    return numbers == sorted(set(numbers))


def _other_keys(experiment: Experiment, datasets: Mapping[str, Dataset], matched: Mapping[tuple[str, str], str]) -> list[str]:
    """Bring classes that no known head is held against into one order as well: whoever reads them means them by name."""
    lines = []
    for key in dict.fromkeys(key for dataset in datasets.values() for key in dataset.names):
        having = [name for name in (*experiment.task_data(), *datasets) if name in datasets and key in datasets[name].names]
        first = datasets[having[0]].names[key]
        for name in dict.fromkeys(having[1:]):
            own = datasets[name].names[key]
            if (name, key) not in matched and own != first and set(own) <= set(first) and datasets[name].can_match(key):
                datasets[name].match(key, first)
                lines.append(f"data.{name}: its {key} is {some(own)}; matched by name to {some(first)} of data.{having[0]}")
    return lines


def _unknown(use: Use, stranger: str, own: tuple[str, ...], names: tuple[str, ...], kept: bool) -> str:
    whose = f"the ones that heads.{use.head} starts with" if kept else f"those that heads.{use.head} is trained on"
    remedy = f"; init_fresh=('heads_{use.head}/*',) starts the head anew" if kept else ""
    return (
        f"{use.who}: data.{use.data} has the class {stranger!r}, which is not one of {whose}{nearest(stranger, names)}: its "
        f"classes are {some(own)}, and those are {some(names)}{remedy}"
    )


def some(names: Iterable[str]) -> str:
    """The first few names, and how many there are."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
