"""What adapts the kernels of a model, as the tensors of a peft folder: LoRA and IA3."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.convert.family import Family
from mmjax.convert.layout import Conv1D, Linear, Patches, Row
from mmjax.convert.peft import layout
from mmjax.core.errors import UserError
from mmjax.nn.adapters import joined_factors

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a peft folder holds: tensors by module and suffix, and the fields of its config.json that are not defaults."""

    tensors: Mapping[str, Tensors]
    fields: Mapping[str, Any]


def check_modules(family: Family, architecture: str, rows: Sequence[Row], rooms: Iterable[str]) -> None:
    """Raises UserError unless each of these adapted kernels lies in a module that peft can adapt.

    Args:
      rooms: paths of the kernels, without their last name.
    """
    held: dict[str, Row] = {}
    for row in rows:
        for path in row.ours:
            if path.rpartition("/")[2] in ("kernel", "table"):
                held[path.rpartition("/")[0]] = row
    bare = {row.theirs.removesuffix("in_proj_weight") for row in rows if row.theirs.endswith(".in_proj_weight")}
    for room in sorted(rooms):
        theirs = held[room].theirs if room in held else ""
        module = theirs.removesuffix(".weight")
        if not theirs:
            reason = "it has no module for it"
        elif not theirs.endswith(".weight"):
            reason = f"it keeps {theirs} as a bare matrix"
        elif any(module.startswith(first) for first in bare):
            reason = f"{module} is inside torch's own attention, which passes over an adapter"
        elif "" in layout.spellings(family, architecture, module):
            reason = f"{theirs} is several modules in memory"
        else:
            continue
        raise UserError(
            f"{architecture}: peft cannot adapt {room}: {reason}. Leave it out of adapt, or write the run whole (to-hf)"
        )


def lora(names: Mapping[str, layout.Module], leaves: Mapping[str, Any]) -> Adapter:
    """LoRA and DoRA of every adapted module; of none, one that adds nothing, with which peft has biases and whole modules."""
    tensors: dict[str, Tensors] = {}
    ranks: dict[str, tuple[int, float]] = {}
    dora = False
    for name, module in names.items():
        found = [_factors(module, path, leaves) for path in module.row.ours]
        if all(part is None for part in found):
            continue
        widths = [int(np.prod(module.of(leaves[path]).shape[1:])) for path in module.row.ours]
        a, b, scale = layout.fused(found, widths)
        tensors[name] = layout.lora_tensors(module, a, b)
        ranks[name] = (a.shape[1], scale * a.shape[1])
        magnitudes = [path.rpartition("/")[0] + "/dora_magnitude" for path in module.row.ours]
        if magnitudes[0] in leaves:
            if len(magnitudes) > 1:
                raise UserError(
                    f"DoRA of {name}: it holds {len(magnitudes)} of our kernels, whose ranks peft's DoRA cannot part"
                )
            length = module.of(leaves[magnitudes[0]]).reshape(-1)
            shape = (1, -1, 1, 1) if isinstance(module.row.layout, Patches) else (-1,)
            tensors[name]["lora_magnitude_vector"] = np.ascontiguousarray(length.reshape(shape), np.float32)
            dora = True
    if len({"lora_magnitude_vector" in own for own in tensors.values()}) > 1:
        raise UserError(
            "adapt has LoRA with dora and without, and a peft folder holds one of the two: convert to-hf merges both"
        )
    if not ranks:  # biases, and whatever else is trained beside: peft has them with LoRA, of which there must be one
        name = next(name for name, m in names.items() if isinstance(m.row.layout, Linear | Conv1D) and m.row.depth)
        module = names[name]
        width, out = _sizes(module, leaves)
        tensors[name] = layout.lora_tensors(module, np.zeros((width, 1), np.float32), np.zeros((1, out), np.float32))
        ranks[name] = (1, 1.0)
    r, alpha = max(ranks.values(), key=list(ranks.values()).count)
    fields = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "use_dora": dora,
        "fan_in_fan_out": any(isinstance(names[name].row.layout, Conv1D) for name in ranks),
        "rank_pattern": {name: own[0] for name, own in ranks.items() if own[0] != r},
        "alpha_pattern": {name: own[1] for name, own in ranks.items() if own[1] != alpha},
    }
    return Adapter(tensors, fields)


def _sizes(module: layout.Module, leaves: Mapping[str, Any]) -> tuple[int, int]:
    """How many numbers a module takes and gives."""
    shapes = [module.of(leaves[path]).shape for path in module.row.ours]
    their = module.row.their_shape(shapes)
    out = module.row.layout.out_dim
    return int(their[1 - out]), int(their[out])


def _factors(module: layout.Module, path: str, leaves: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, float] | None:
    """A [in, r], B [r, out] and the scale of one kernel in one layer, without ranks that are all zero; None without."""
    room = path.rpartition("/")[0]
    if f"{room}/lora_a" not in leaves or path.rpartition("/")[2] not in ("kernel", "table"):
        return None
    a, b = (module.of(leaves[f"{room}/lora_{name}"]) for name in "ab")
    scale = float(module.of(leaves[f"{room}/lora_scale"]))
    if scale == 0.0:  # of a layer that was not adapted
        return None
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1)
    if f"{room}/lora_a0" in leaves:
        a0, b0 = (module.of(leaves[f"{room}/lora_{name}"]) for name in ("a0", "b0"))
        a, b = joined_factors(a, b, a0.reshape(-1, a0.shape[-1]), b0.reshape(b0.shape[0], -1))
    used = np.any(a != 0, axis=0) | np.any(b != 0, axis=1)
    used[0] = True
    return a[:, used], b[used], scale


def ia3(names: Mapping[str, layout.Module], leaves: Mapping[str, Any]) -> Adapter:
    """IA3 of every adapted module."""
    tensors: dict[str, Tensors] = {}
    inputs: list[str] = []
    for name, module in names.items():
        rooms = [path.rpartition("/")[0] for path in module.row.ours]
        if any(f"{room}/ia3_out" in leaves for room in rooms):
            widths = [int(np.prod(module.of(leaves[path]).shape[1:])) for path in module.row.ours]
            given = [
                module.of(leaves[f"{room}/ia3_out"]).reshape(-1) if f"{room}/ia3_out" in leaves else np.ones(width, np.float32)
                for room, width in zip(rooms, widths, strict=True)
            ]
            tensors[name] = {"ia3_l": np.concatenate(given).reshape(-1, 1)}
        elif f"{rooms[0]}/ia3_in" in leaves:
            if len(rooms) > 1 and len({f"{room}/ia3_in" in leaves for room in rooms}) > 1:
                raise UserError(f"IA3 of the input of {name}: all of its {len(rooms)} kernels read one input, so adapt all")
            tensors[name] = {"ia3_l": module.of(leaves[f"{rooms[0]}/ia3_in"]).reshape(1, -1)}
            inputs.append(name)
    conv1d = any(isinstance(names[name].row.layout, Conv1D) for name in tensors)
    return Adapter(tensors, {"peft_type": "IA3", "feedforward_modules": inputs, "fan_in_fan_out": conv1d})
