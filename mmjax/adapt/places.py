"""Where a model can be adapted: the kernels of its linear layers and its tables, with the dims that they take and give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax

from mmjax.core.remember import once_each
from mmjax.core.trees import leaves_by_path, match
from mmjax.models import Multimodal
from mmjax.nn.linear import Linear

LINEAR, TABLE = "linear", "table"


@dataclasses.dataclass(frozen=True)
class Place:
    """A kernel, or a table.

    Attributes:
      path: of the kernel or the table.
      kind: `linear` or `table`.
      layers: L of a stack; 0 where it is in none.
      inputs: the dims that it takes, [in...]; of a table its rows.
      outputs: the dims that it gives, [out...].
      entry: whether a tower's input comes in here, so that a prompt can lie beside it.
    """

    path: str
    kind: str
    layers: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    entry: bool = False

    @property
    def room(self) -> str:
        """Path of the module, to which the names of its leaves are added."""
        return self.path.rpartition("/")[0]

    @property
    def lead(self) -> tuple[int, ...]:
        """The dims that come first: (L,) in a stack."""
        return (self.layers,) if self.layers else ()


def places_of(model: Multimodal) -> dict[str, Place]:
    """Path -> place, of every kernel of a `Linear` and every learned table. Nothing is computed, and of equal models the model
    is traced once."""
    return dict(_places_of(model))


@once_each
def _places_of(model: Multimodal) -> dict[str, Place]:
    axes: dict[str, int] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, Linear):
            axes["/".join(context.module.path)] = context.module.axes
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        shapes = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}))["params"]
    parts = {f"{room}_{name}": part for room in ("encoders", "decoders") for name, part in getattr(model, room).items()}
    entries = {f"{room}/{part.entry}" for room, part in parts.items() if getattr(part, "entry", "")}
    found = {}
    for path, leaf in leaves_by_path(nn.meta.unbox(shapes)).items():
        room, _, name = path.rpartition("/")
        layers = leaf.shape[0] if "/layers/" in path else 0
        own = leaf.shape[1:] if layers else leaf.shape
        if name == "kernel" and room in axes:
            found[path] = Place(path, LINEAR, layers, own[: axes[room]], own[axes[room] :], path in entries)
        elif name == "table" and not room.endswith("/fixed_position"):  # which nothing trains
            found[path] = Place(path, TABLE, layers, own[:1], own[1:], path in entries)
    return found


def inner(places: Iterable[str]) -> list[str]:
    """What "all-linear" stands for: kernels of encoders, fusions and decoders, outputs to words left out, as in peft."""
    rooms = ("encoders_*/kernel", "fusions_*/kernel", "decoders_*/kernel")
    return [path for path in places if any(match(room, path) for room in rooms) and not match("*/logits/kernel", path)]
