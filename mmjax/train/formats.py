"""What checkpoints hold, format by format, and how an older one is read today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.train.state import State

FORMAT = 2  # of what a checkpoint holds; raise it with every change, and say in `RENAMED` what became of old names
FROZEN_APART = 2  # the first format that keeps frozen parameters apart, and watches groups of streams one by one
RENAMED: tuple[tuple[int, str, str], ...] = ()  # (last format with it, old name of a part of a path, new name)


def rename(tree: Any, found: int, back: bool = False) -> Any:
    """A tree saved in the format `found` under today's names; with `back`, today's tree under the names it had then."""
    steps = [(old, new) for last, old, new in RENAMED if found <= last]
    for old, new in [(new, old) for old, new in reversed(steps)] if back else steps:
        tree = _rename(tree, old, new)
    return tree


def _rename(tree: Any, old: str, new: str) -> Any:
    if isinstance(tree, Mapping):
        return {(new if name == old else name): _rename(child, old, new) for name, child in tree.items()}
    if isinstance(tree, tuple):  # optax's states are named tuples
        children = [_rename(child, old, new) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)
    return tree


def watch_of(abstract: State, found: int) -> dict[str, Any]:
    """`State.watch` as a format has it."""
    if found >= FROZEN_APART or "seen" not in abstract.watch:
        return abstract.watch
    one = {"mean": abstract.watch["mean"].dtype, "good": abstract.watch["good"].dtype}
    place = abstract.watch["good"].sharding
    return {name: jax.ShapeDtypeStruct((), dtype, sharding=place) for name, dtype in one.items()}


def widened(watch: dict[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """One mean for all groups of streams, as older formats have it, as one for each; they begin to be watched anew."""
    if "seen" not in like or "seen" in watch:
        return watch
    none = {name: jnp.zeros(like[name].shape, like[name].dtype, device=like[name].sharding) for name in ("mean", "seen")}
    return {**watch, **none}
