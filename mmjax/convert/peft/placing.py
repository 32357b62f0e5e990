"""Tensors of a peft folder, put beside the kernels that they adapt, or in the place of what they replace."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.adapt import IA3, LoRA
from mmjax.convert.adapted import runs_of_layers
from mmjax.convert.layout import Row
from mmjax.convert.peft import layout
from mmjax.core.errors import UserError

Found = Mapping[str, Mapping[str, np.ndarray]]  # module -> suffix -> tensor


def place_lora(
    folder: Path,
    methods: Mapping[str, LoRA],
    found: Found,
    modules: Mapping[str, layout.Module],
    leaves: dict[str, Any],
) -> dict[str, Any]:
    """Put A, B and scales beside the kernels; pattern -> LoRA."""
    given: dict[str, dict[int, tuple[np.ndarray, np.ndarray, Any, Any]]] = collections.defaultdict(dict)
    for name, tensors in found.items():
        module = modules[name]
        a, b = layout.lora_factors(module, tensors)
        r, method = a.shape[1], methods[name]
        shapes = [leaves[path].shape[1:] if module.row.depth else leaves[path].shape for path in module.row.ours]
        lead = [_inputs(module, shape) for shape in shapes]
        widths = [math.prod(shape[axes:]) for shape, axes in zip(shapes, lead, strict=True)]
        if (a.shape[0], b.shape[1]) != (math.prod(shapes[0][: lead[0]]), sum(widths)):
            raise UserError(
                f"{folder}: the adapter of {name} is for a kernel of {a.shape[0]} by {b.shape[1]}, and the base's is "
                f"{math.prod(shapes[0][: lead[0]])} by {sum(widths)}: it belongs to another base"
            )
        magnitude = tensors.get("lora_magnitude_vector")
        ends = np.cumsum(widths)[:-1].tolist()
        parts = zip(
            module.row.ours,
            shapes,
            lead,
            np.split(b, ends, axis=1),
            np.split(magnitude.reshape(-1), ends) if magnitude is not None else [None] * len(widths),
            strict=True,
        )
        if magnitude is not None and len(widths) > 1:
            raise UserError(
                f"{folder}: DoRA of {name}, which holds {len(widths)} kernels of ours with one A: not supported here"
            )
        for path, shape, axes, part, length in parts:
            own = None if length is None else length.reshape(shape[axes:])
            given[path][module.layer] = (a.reshape(*shape[:axes], r), part.reshape(r, *shape[axes:]), method, own)
    adapt: dict[str, Any] = {}
    for path, layers in given.items():
        adapt |= _put(folder, path, layers, leaves)
    return adapt


def _put(folder: Path, path: str, layers: Mapping[int, Any], leaves: dict[str, Any]) -> dict[str, Any]:
    """Put what the layers of one kernel have been given beside it, the rank padded; pattern -> method."""
    room, kernel = path.rpartition("/")[0], leaves[path]
    stacked = "/layers/" in path
    depth = kernel.shape[0] if stacked else 1
    first = next(iter(layers.values()))
    most = max(own[0].shape[-1] for own in layers.values())
    a = np.zeros((depth, *first[0].shape[:-1], most), np.float32)
    b = np.zeros((depth, most, *first[1].shape[1:]), np.float32)
    scale, dropout = np.zeros(depth, np.float32), np.zeros(depth, np.float32)
    for layer, (own_a, own_b, method, _) in layers.items():
        a[layer, ..., : own_a.shape[-1]], b[layer, : own_b.shape[0]] = own_a, own_b
        scale[layer], dropout[layer] = method.scale, method.dropout
    own = {"lora_a": a, "lora_b": b, "lora_scale": scale}
    if dropout.any():
        own["lora_dropout"] = dropout
    if first[3] is not None:
        if len(layers) < depth:
            raise UserError(f"{folder}: DoRA on {len(layers)} of {depth} layers of {path}: a stack has one structure here")
        own["dora_magnitude"] = np.stack([layers[layer][3] for layer in range(depth)])
    leaves |= {f"{room}/{name}": jnp.asarray(x if stacked else x[0]) for name, x in own.items()}
    return runs_of_layers(path, {layer: own[2] for layer, own in layers.items()}, depth, stacked)


def place_ia3(
    folder: Path,
    found: Found,
    modules: Mapping[str, layout.Module],
    leaves: dict[str, Any],
) -> dict[str, Any]:
    """Put the factors beside the kernels; pattern -> IA3."""
    given: dict[str, dict[int, tuple[Any, np.ndarray]]] = collections.defaultdict(dict)
    for name, tensors in found.items():
        if "ia3_l" not in tensors:
            continue
        module, factor = modules[name], tensors["ia3_l"]
        shapes = [leaves[path].shape[1:] if module.row.depth else leaves[path].shape for path in module.row.ours]
        axes = [_inputs(module, shape) for shape in shapes]
        side = "output" if factor.shape[-1] == 1 and factor.shape[0] != 1 else "input"
        dims = [shape[n:] if side == "output" else shape[:n] for shape, n in zip(shapes, axes, strict=True)]
        sizes = [math.prod(own) for own in dims]
        if factor.size != (sum(sizes) if side == "output" else sizes[0]):
            raise UserError(
                f"{folder}: ia3_l of {name} has {factor.size} numbers, and the base's kernel is another's: {shapes}"
            )
        flat = factor.reshape(-1)
        parts = np.split(flat, np.cumsum(sizes)[:-1].tolist()) if side == "output" else [flat] * len(sizes)
        for path, own, part in zip(module.row.ours, dims, parts, strict=True):
            given[path][module.layer] = (IA3(side), part.reshape(own))
    adapt: dict[str, Any] = {}
    for path, layers in given.items():
        stacked = "/layers/" in path
        depth = leaves[path].shape[0] if stacked else 1
        method, one = next(iter(layers.values()))
        if {own[0] for own in layers.values()} != {method}:
            raise UserError(f"{folder}: IA3 of {path} scales the input in some layers and the output in others")
        whole = np.ones((depth, *one.shape), np.float32)
        for layer, (_, part) in layers.items():
            whole[layer] = part
        name = "ia3_in" if method.side == "input" else "ia3_out"
        leaves[f"{path.rpartition('/')[0]}/{name}"] = jnp.asarray(whole if stacked else whole[0])
        adapt |= runs_of_layers(path, {layer: own[0] for layer, own in layers.items()}, depth, stacked)
    return adapt


def place_whole(folder: Path, found: Found, rows: Sequence[Row], leaves: dict[str, Any]) -> tuple[str, ...]:
    """Take what the adapter has of the model itself: modules trained whole, biases, norms; the paths that it changed."""
    changed: list[str] = []
    for row in rows:
        for layer, name in enumerate(row.names()):
            module, _, kind = name.rpartition(".")
            own = found.get(module, {})
            x = next((own[s] for s in (kind, f"base_layer.{kind}", f"ln_tuning_layers.{kind}") if s in own), None)
            if x is None:
                continue
            shapes = [leaves[path].shape[1:] if row.depth else leaves[path].shape for path in row.ours]
            try:
                parts = row.split(x, shapes)
            except ValueError:
                own_shape = row.their_shape(shapes)
                raise UserError(
                    f"{folder}: {name} has shape {x.shape}, and the base's is {own_shape}: it belongs to another base"
                ) from None
            for path, part in zip(row.ours, parts, strict=True):
                leaf = jnp.asarray(leaves[path])
                leaves[path] = leaf.at[layer].set(part) if row.depth else jnp.asarray(part, leaf.dtype)
                changed.append(path)
    return tuple(dict.fromkeys(changed))


def _inputs(module: layout.Module, shape: tuple[int, ...]) -> int:
    """How many dims of our kernel are its inputs."""
    axes: int = getattr(module.row.layout, "axes", 1)
    return axes
