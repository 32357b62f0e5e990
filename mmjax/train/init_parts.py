"""A run that begins with parts of others: a text tower of one, a sound tower of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from mmjax.adapt import is_adapter, merged, wide
from mmjax.core.config import leaves
from mmjax.core.errors import UserError, within
from mmjax.core.trees import leaves_by_path, map_with_path, match_any
from mmjax.core.types import Params
from mmjax.models.forward import VARIABLES
from mmjax.models.resize import resize_positions
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.run import Run
from mmjax.train.setup import Setup
from mmjax.train.state import State
from mmjax.train.taking import check_words, load_matching, taken_variables

FREE = (
    "unroll",
    "remat",
    "attention",
    "taps",
    *(f"{kind}dropout" for kind in ("", "embed_", "attention_", "mlp_")),
    "drop_path",
)


def with_parts(setup: Setup, run: Run | None, state: State, say: Callable[[str], None]) -> tuple[State, list[str]]:
    """The state with the parameters of `init_parts` in it, and the paths of these.

    Args:
      run: where it is written down what was taken; None for nowhere.

    Raises:
      UserError: a part that the model has not, no run or no such part there, or one that does not fit.
    """
    e = setup.experiment
    if not e.init_parts:
        return state, []
    loaded: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    about = {}
    for part, folder in e.init_parts.items():
        with within(f"init_parts.{part}"):
            own, variables, step = _part(setup, part, Run(folder), say)
        loaded |= own
        kept |= variables
        about[part] = {"run": Run(folder).name, "step": step, "loaded": list(own)}
        say(f"init_parts {part} from {Run(folder).name} at step {step}: {len(own)} loaded")
    if run is not None:
        run.write_json("init_parts.json", about)
    params = map_with_path(lambda path, x: jax.device_put(loaded[path], x.sharding) if path in loaded else x, state.params)
    ema = jax.tree.map(jax.numpy.copy, setup.trained().of(params)) if state.ema else {}
    state = dataclasses.replace(state, params=params, ema=ema)
    return dataclasses.replace(state, variables=taken_variables(setup, state, kept)), list(loaded)


def _part(setup: Setup, part: str, source: Run, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Path -> the parameters of a part, and what its modules keep; and the step they are of."""
    e, room = setup.experiment, part.replace(".", "_", 1)
    there = source.experiment()
    kept = Checkpoints(source.checkpoints, there.checkpoint, say, read_only=True)
    step = kept.best_step()
    if step is None:
        raise UserError(f"{source.name} has no checkpoint")
    params, _ = kept.params(step, setup.mesh)
    variables: Params = params.get(VARIABLES, {})
    params = wide({name: tree for name, tree in params.items() if name != VARIABLES})
    if any(is_adapter(path) for path in leaves_by_path(params)):
        params = merged(there.model, params)
    if room not in params:
        rooms = ", ".join(name.replace("_", ".", 1) for name in params)
        raise UserError(f"{source.name} has no such part; it has {rooms}")
    params, resized = resize_positions(params, there.model, e.model)
    for path in resized:
        if path.startswith(f"{room}/"):
            say(f"  {path} was resized for another size of image")
    fresh = tuple(pattern for pattern in e.init_fresh if pattern.startswith(f"{room}/"))
    loaded, new, left = load_matching({room: setup.abstract.params[room]}, {room: params[room]}, fresh)
    if stray := [path for path in new if not match_any(fresh, path)]:
        raise UserError(
            f"{stray[0]} is not there ({len(stray)} such in all): give the part the settings that it was trained with"
        )
    if left:
        raise UserError(
            f"{left[0]} has no place here ({len(left)} such in all): give the part the settings it was trained with"
        )
    check_words(setup, source, list(loaded))
    for line in differences(get_part(there.model, part), get_part(e.model, part)):
        say(f"  {part}: {line}")
    return loaded, {path: x for path, x in leaves_by_path(dict(variables)).items() if f"/{room}/" in f"/{path}"}, step


def get_part(model: Any, part: str) -> Any:
    """A part by its dotted place."""
    field, name = part.split(".", 1)
    return getattr(model, field)[name]


def differences(there: Any, here: Any) -> list[str]:
    """In what settings two parts differ, but for those that only training or speed knows."""
    before, now = leaves(there), leaves(here)
    names = [name for name in {**before, **now} if name.rpartition(".")[2] not in FREE]
    kind = [f"it is a {type(there).__name__} there and a {type(here).__name__} here"] * (type(there) is not type(here))
    return kind + [f"{n}={before.get(n)!r} there, {now.get(n)!r} here" for n in names if before.get(n) != now.get(n)]
