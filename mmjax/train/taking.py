"""What a run takes of another one's parameters: for `init_from` and `init_parts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mmjax.core.errors import UserError, nearest
from mmjax.core.trees import leaves_by_path, map_with_path, match, match_any
from mmjax.core.types import Array
from mmjax.train.run import Run
from mmjax.train.setup import Setup, task_shapes
from mmjax.train.sources import readers
from mmjax.train.state import State, task_variables, together


def load_matching(target: Any, source: Any, fresh: tuple[str, ...]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Which of `source`'s arrays a model can start from.

    Args:
      target: the model's parameters or their shapes.
      source: another run's parameters.
      fresh: patterns of parameters to leave as initialised.

    Returns:
      (loaded by path, paths that stay new, paths of `source` left over).

    Raises:
      UserError: an array of another shape that `fresh` does not cover; a pattern that matches nothing; or nothing in common.
    """
    want, have = leaves_by_path(target), leaves_by_path(source)
    for pattern in fresh:
        if not any(match(pattern, path) for path in want):
            raise UserError(
                f"init_fresh={pattern!r} matches no parameter{nearest(pattern, want)}; there is {next(iter(want))!r}"
            )
    loaded = {}
    for path, leaf in want.items():
        if path not in have or any(match(pattern, path) for pattern in fresh):
            continue
        if have[path].shape != leaf.shape:
            shapes, room = (tuple(have[path].shape), tuple(leaf.shape)), path.split("/")[0]
            deeper = "/layers/" in path and shapes[0][1:] == shapes[1][1:] and shapes[0][0] > shapes[1][0]
            if path.endswith("/bottleneck_kind"):
                raise UserError(
                    f"init_from: {path.rpartition('/')[0]} has a bottleneck of another activation there, or normed otherwise: "
                    "give Bottleneck the activation and normed that it was trained with"
                )
            remedy = f"take some of its layers, --init_layers '{room}/*[:{leaf.shape[0]}]'" if deeper else "change the model"
            raise UserError(
                f"init_from: {path} has shape {shapes[0]} there and {shapes[1]} here; {remedy}, or initialise it anew with "
                f"--init_fresh '{path}'"
            )
        loaded[path] = have[path]
    if not loaded:
        raise UserError(f"init_from: no parameter in common; there {sorted(have)[0]!r} ..., here {sorted(want)[0]!r} ...")
    return loaded, [p for p in want if p not in loaded], [p for p in have if p not in loaded]


def check_words(setup: Setup, source: Run, loaded: Sequence[str]) -> None:
    """Raises `UserError` where a table of words is loaded for a tokenizer that numbers them otherwise: its rows would be other
    words'."""
    theirs = [tokenizer.huggingface.get_vocab() for tokenizer in source.tokenizers().values()]
    texts = setup.texts()
    for path, modality, _ in readers(setup.experiment.model):
        part = path.replace(".", "_", 1)
        if not theirs or modality not in texts or f"{part}/words/table" not in loaded:
            continue
        own = texts[modality][0].huggingface.get_vocab()
        if not any(all(own.get(word) == place for word, place in vocabulary.items()) for vocabulary in theirs):
            raise UserError(
                f"init_from={source.name}: its table of words is that of its own tokenizer, and that of {modality!r} here "
                f"numbers words otherwise: leave tokenizer away, which takes the run's, or use init_fresh=('{part}/words/*',)"
            )


def taken_variables(setup: Setup, state: State, there: Mapping[str, Any]) -> dict[str, Any]:
    """What modules keep, as it was there where it is of the same shape; what objectives keep, made of the parameters taken."""
    known = leaves_by_path(there)

    def taken(path: str, own: Array) -> Array:
        found = known.get(path)
        if match_any(setup.experiment.init_fresh, path.partition("/")[2]):  # a part that begins anew
            return own
        return own if found is None or found.shape != own.shape else jax.device_put(found, own.sharding)

    model = map_with_path(taken, state.variables.get("model", {}))
    e = setup.experiment
    objectives = {name: task.objective for name, task in e.tasks.items()}
    tasks = task_variables(objectives, state.params, task_shapes(e, setup.datasets))
    tasks = jax.tree.map(lambda new, own: jax.device_put(new, own.sharding), tasks, state.variables.get("tasks", {}))
    return {**state.variables, **together(model, tasks)}
