"""Of its teachers a run keeps the parts that its objectives ask, found by tracing them: a CLIP whose text tower nobody asks is
its image tower."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.extend.core import Var

from mmjax.core.trees import leaves_by_path, size_bytes
from mmjax.core.types import Array, Params
from mmjax.models.forward import VARIABLES
from mmjax.train.setup import Setup
from mmjax.train.state import TEACHERS, teachers_of, with_teachers
from mmjax.train.step import forwards_of, losses_of


def only_asked(setup: Setup) -> tuple[Setup, list[str]]:
    """The setup without the parts of teachers that no task asks, and a line about each teacher that loses some.

    A teacher that nobody asks stays as it is; what it takes is said. Nothing is compiled.
    """
    whole = teachers_of(setup.abstract)
    if not whole:
        return setup, []
    read = _read(setup)
    kept, lines = {}, []
    for name, params in whole.items():
        own = {part: tree for part, tree in params.items() if part == VARIABLES or part in read.get(name, ())}
        spare = [part for part in params if part not in own]
        if name not in read:
            own = dict(params)
            lines.append(f"teachers.{name}: no task asks it, and it takes {_megabytes(params)}; leave it out")
        elif spare:
            lines.append(
                f"teachers.{name}: {_megabytes(own)} of its {_megabytes(params)} are kept; no task asks {', '.join(spare)}"
            )
        kept[name] = own
    return dataclasses.replace(setup, abstract=with_teachers(setup.abstract, kept)), lines


def _read(setup: Setup) -> dict[str, set[str]]:
    """Teacher -> the first names of its parameters that losses or figures of some task depend on."""
    model, teachers = setup.experiment.model, setup.teachings
    read: dict[str, set[str]] = {}
    for group in dict.fromkeys(setup.experiment.groups()):
        tasks = setup.tasks_of(group)

        def given(taught: Params, params: Params, batches: Any, key: Array, rest: Any, tasks: Any = tasks) -> Any:
            variables = {**rest, TEACHERS: taught}
            forwards = forwards_of(model, params, batches, key, variables, teachers=teachers)
            found = losses_of(tasks, forwards, key, variables)
            return [[getattr(loss, field.name) for field in dataclasses.fields(loss)] for loss in found.values()]

        rest = dict(setup.abstract.variables)
        taught, key = rest.pop(TEACHERS), jax.eval_shape(lambda: jax.random.key(0))
        traced = jax.make_jaxpr(given)(taught, setup.abstract.params, setup.batch_shapes(group), key, rest).jaxpr
        for path, live in zip(leaves_by_path(taught), live_inputs(traced), strict=False):
            if live:
                name, part, *_ = path.split("/")
                read.setdefault(name, set()).add(part)
    return read


def live_inputs(jaxpr: Any) -> list[bool]:
    """For each input of a program whether its results depend on it; what goes into a loop or a call counts as read there."""
    live = {var for var in jaxpr.outvars if isinstance(var, Var)}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(var in live for var in equation.outvars):
            live.update(var for var in equation.invars if isinstance(var, Var))
    return [var in live for var in jaxpr.invars]


def _megabytes(params: Params) -> str:
    return f"{size_bytes(params) / 1e6:.3g} MB"
