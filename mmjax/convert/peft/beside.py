"""What an adapted run trained of the model itself, as the tensors of a peft folder: norms, biases, whole modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.convert.layout import Row
from mmjax.convert.peft.tensors import Adapter, Tensors
from mmjax.core.errors import UserError


def norms_alone(trained: set[str]) -> bool:
    """Whether what is trained, heads aside, are norms."""
    own = {path for path in trained if not path.startswith("heads_")}
    return bool(own) and all(map(_is_norm, own))


def _is_norm(path: str) -> bool:
    return re.search(r"norm/(scale|bias)$", path) is not None


def with_trained(
    adapter: Adapter, rows: Sequence[Row], leaves: Mapping[str, Any], trained: set[str], architecture: str
) -> Adapter:
    """The adapter with what is trained of the model itself: norms, biases, whole modules."""
    tensors: dict[str, Tensors] = {name: dict(own) for name, own in adapter.tensors.items()}
    fields: dict[str, Any] = dict(adapter.fields)
    held = _trained_tensors(rows, leaves, trained, architecture)
    if fields["peft_type"] == "LN_TUNING":
        norms = {module for module, own in held.items() if any(_is_norm(path) for path, _ in own.values())}
        for module in norms:
            tensors[module] = {f"ln_tuning_layers.{kind}": x for kind, x in _module(rows, leaves, module).items()}
        held = {module: own for module, own in held.items() if module not in norms}
    alone = [module for module, own in held.items() if all(kind.endswith("bias") for kind in own)]
    if alone:
        _check_biases(rows, trained, fields["peft_type"])
        fields["bias"] = "all"
        for module in alone:
            wrapped = "base_layer." if module in adapter.tensors else ""
            tensors.setdefault(module, {}).update({wrapped + kind: x for kind, (_, x) in held.pop(module).items()})
    if both := sorted(held.keys() & adapter.tensors.keys()):
        raise UserError(f"{both[0]} is adapted and trained whole: peft does one of the two")
    whole = {module: _module(rows, leaves, module) for module in held}
    targets = list(tensors) if fields["peft_type"] == "LN_TUNING" else list(adapter.tensors)
    return Adapter({**tensors, **whole}, fields | {"modules_to_save": list(whole) or None, "targets": targets})


def whole_modules(
    rows: Sequence[Row], leaves: Mapping[str, Any], trained: set[str], architecture: str, also: tuple[str, ...]
) -> dict[str, Tensors]:
    """The modules of which anything is trained, and those whose names begin with one of `also`, with all of their tensors."""
    held = list(_trained_tensors(rows, leaves, trained, architecture))
    named = [name.rpartition(".")[0] for row in rows for name in row.names() if name.split(".")[0] in also]
    return {module: _module(rows, leaves, module) for module in dict.fromkeys([*held, *named])}


def _trained_tensors(
    rows: Sequence[Row], leaves: Mapping[str, Any], trained: set[str], architecture: str
) -> dict[str, dict[str, tuple[str, np.ndarray]]]:
    """Module -> `weight` or `bias` -> the path that was trained and the tensor, of every layer.

    Raises:
      UserError: what has no tensor, or is in no module.
    """
    held = {path: row for row in rows for path in row.ours}
    found: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    for path in sorted(trained):
        if path not in held:
            raise UserError(f"{architecture} has no tensor for {path}, which is trained: write the run whole (to-hf)")
        for layer, name in enumerate(held[path].names()):
            module, _, kind = name.rpartition(".")
            if kind != "weight" and not kind.endswith("bias"):
                raise UserError(f"{architecture} keeps {name} outside any module, and it is trained: peft has no place for it")
            found.setdefault(module, {})[kind] = (path, _tensor(held[path], leaves, layer))
    return found


def _tensor(row: Row, leaves: Mapping[str, Any], layer: int) -> np.ndarray:
    parts = [np.asarray(leaves[path][layer] if row.depth else leaves[path]) for path in row.ours]
    return np.ascontiguousarray(row.join(parts), np.float32)


def _module(rows: Sequence[Row], leaves: Mapping[str, Any], module: str) -> Tensors:
    """All tensors of a module, by their last names."""
    return {
        name.rpartition(".")[2]: _tensor(row, leaves, layer)
        for row in rows
        for layer, name in enumerate(row.names())
        if name.rpartition(".")[0] == module
    }


def _check_biases(rows: Sequence[Row], trained: set[str], method: str) -> None:
    """Raises UserError where biases are trained by themselves, and not all of the model's are."""
    biases = {path for row in rows for path in row.ours if path.endswith(("/bias", "/tied_bias"))}
    missing = sorted(biases - trained)
    if missing:
        raise UserError(f"some biases are trained and {missing[0]} is not: peft trains all of a model's or none")
    if method != "LORA":
        raise UserError(f"biases are trained beside {method}, and peft has that with LoRA alone: write the run whole (to-hf)")
