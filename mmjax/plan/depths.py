"""Programs of one and of two layers, and what they say of the whole depth.

A stack whose layers are looped over is read as it is, its body times its trips. One whose layers are laid out takes long to
compile: it is read with every stack cut to one layer; then, for each depth that stacks have, to two layers in those. What a
layer more adds is taken to be the same for every layer: total = one + sum over depths L of (L - 1) (two_L - one).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.core.config import children, replace
from mmjax.nn.stack import StackFields
from mmjax.train.experiment import Experiment

Numbers = Mapping[str, float]


def stack_depths(model: Any) -> tuple[int, ...]:
    """The depths that the model's stacks have, each once, ascending; stacks without layers left out."""
    return tuple(sorted({stack.depth for stack in stacks(model).values() if stack.depth}))


def laid_out(model: Any) -> bool:
    """Whether a stack of several layers is laid out rather than looped over."""
    return any(stack.unroll and stack.depth > 1 for stack in stacks(model).values())


def stacks(spec: Any, path: str = "") -> dict[str, StackFields]:
    """Every module with a stack, by its dotted path."""
    found = {path: spec} if isinstance(spec, StackFields) else {}
    for name, child in children(spec).items():
        found |= stacks(child, f"{path}.{name}" if path else name)
    return found


def map_stacks(spec: Any, change: Any) -> Any:
    """The same spec with `change(stack) -> {field: value}` applied to every module that holds a stack."""
    for name, child in children(spec).items():
        if children(child):
            spec = replace(spec, name, map_stacks(child, change))
    if not isinstance(spec, StackFields):
        return spec
    for field, value in change(spec).items():
        spec = replace(spec, field, value)
    return spec


def cut(experiment: Experiment, two: int = 0) -> Experiment:
    """One layer in every stack, two in those of depth `two`, all laid out."""

    def layers(stack: StackFields) -> dict[str, Any]:
        return {"depth": min(stack.depth, 2 if stack.depth == two else 1), "unroll": True}

    return dataclasses.replace(experiment, model=map_stacks(experiment.model, layers))


def plainest(experiment: Experiment) -> Experiment:
    """The same mathematics without kernels, rings or rematerialisation."""
    model = map_stacks(experiment.model, lambda stack: {"attention": "plain", "remat": "none"})
    tasks = {
        name: replace(task, "objective", replace(task.objective, "exchange", "plain"))
        if hasattr(task.objective, "exchange")
        else task
        for name, task in experiment.tasks.items()
    }
    return dataclasses.replace(experiment, model=model, tasks=tasks)


def whole(one: Numbers, twos: Sequence[Numbers], depths: Sequence[int]) -> dict[str, float]:
    """Figures of the full depth from those of one layer and, for each depth, of two layers there. A missing figure is 0."""
    names = dict.fromkeys([*one, *(name for two in twos for name in two)])
    return {
        name: max(
            0.0,
            one.get(name, 0.0)
            + sum((depth - 1) * (two.get(name, 0.0) - one.get(name, 0.0)) for two, depth in zip(twos, depths, strict=True)),
        )
        for name in names
    }
