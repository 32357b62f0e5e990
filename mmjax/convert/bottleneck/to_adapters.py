"""The bottlenecks of a run -> a folder that the `adapters` library opens over the model that the run was adapted from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mmjax.adapt import is_adapter
from mmjax.convert.adapted import read_adapted
from mmjax.convert.bottleneck.layout import (
    ACTIVATIONS,
    CONFIG,
    FIXED,
    FLAGS,
    HEAD,
    HEAD_CONFIG,
    LEAVES,
    NAME,
    RANDOM,
    TENSORS,
    Place,
    check_beside,
    check_bottlenecks,
)
from mmjax.convert.card import bottleneck_card
from mmjax.convert.layout import Row
from mmjax.convert.staging import staged_folder
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.nn.adapters import BOTTLENECK
from mmjax.nn.bottleneck import ACTS


def to_adapters(source: str | Path, target: str | Path, base: str = "") -> tuple[str, int, str]:
    """Write the bottlenecks of a run as a folder of the library's; the HuggingFace class, how many numbers, over which model.

    Args:
      base: the model to load first, a folder or a name on a hub.

    Raises:
      UserError: the run has none, or is no HuggingFace class as a whole; what the library has no place for, by name.
    """
    own = read_adapted(source, "adapters")
    model, architecture = own.whole.model, own.whole.architecture
    config, tensors = adapter_of(model, architecture, own.params)
    beside = {path for path in own.trained if not is_adapter(path)}
    head = _head(model, architecture, leaves_by_path(own.params), beside) if beside else {}
    said = {
        "config": config,
        "name": NAME,
        "model_name": base or None,
        "model_type": model.huggingface["model_type"],
        "model_class": architecture,
        "hidden_size": model.huggingface.get("hidden_size") or model.huggingface.get("n_embd"),
        "version": "adapters.1.3.0",
    }
    labels = model.huggingface.get("id2label") or {}
    with staged_folder(Path(target)) as folder:
        (folder / CONFIG).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
        problem = model.huggingface.get("problem_type") or ""
        save_file(tensors, folder / TENSORS[0], {"format": "pt", "problem_type": problem, **own.mark})
        if head:
            about = {**said, "config": None, "name": None, "num_labels": len(labels)}
            about["label2id"] = {name: int(i) for i, name in labels.items()}
            (folder / HEAD_CONFIG).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
            save_file(head, folder / HEAD[0], {"format": "pt"})
        classes = list(labels.values())
        dtype = own.experiment.frozen_dtype
        card = bottleneck_card(architecture, base, bool(head), NAME, classes, problem, dtype)
        (folder / "README.md").write_text(card)
    return architecture, sum(x.size for x in (*tensors.values(), *head.values())), own.below


def adapter_of(model: Multimodal, architecture: str, params: Params) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The library's config of a model's bottlenecks, and its tensors.

    Raises:
      UserError: another method beside them, or none; branches that the library cannot adapt, or not so.
    """
    leaves = leaves_by_path(params)
    rooms = {path.rpartition("/")[0] for path in leaves if path.endswith("/bottleneck_kind")}
    others = sorted(path for path in leaves if is_adapter(path) and "/bottleneck_" not in path)
    known = check_bottlenecks(model, architecture, rooms, others)
    kinds = {leaves[f"{room}/bottleneck_kind"].shape[1:] for room in rooms}
    if len(kinds) > 1:
        raise UserError("adapt has bottlenecks that differ in activation or normed, and the library's folder holds one kind")
    ((act, normed),) = kinds
    used = [place for place in known if place.room in rooms]
    widths = {(place.room, n): width for place in used for n, width in _widths(place, leaves)}
    layers = {place.first + n for place in used for n in range(len(place.modules)) if (place.room, n) in widths}
    factors: dict[str, float] = {}
    tensors: dict[str, np.ndarray] = {}
    for place in used:
        down = np.asarray(leaves[f"{place.room}/bottleneck_down"])
        for n, module in enumerate(place.modules):
            if place.first + n not in layers:
                continue
            # Both branches of a layer have one width, and a branch that has none is given one that adds nothing.
            width = max(widths.get((other.room, n), 1) for other in used if other.first == place.first)
            factors[str(place.first + n)] = factor_of(down.shape[1], width)
            for name, theirs in LEAVES.items():
                x = np.asarray(leaves[f"{place.room}/{name}"][n], np.float32)
                tensors[f"{module}.{NAME}.{theirs}"] = np.ascontiguousarray(_of_width(name, x, width).T)
    every = {place.first + n for place in known for n in range(len(place.modules))}
    config = {
        **FIXED,
        **RANDOM,
        **{flag: any(place.branch == branch for place in used) for branch, flag in FLAGS.items()},
        "non_linearity": ACTIVATIONS[ACTS[act - 1]][0],
        "original_ln_before": normed == 2,
        "reduction_factor": next(iter(factors.values())) if len({*factors.values()}) == 1 else factors,
        "leave_out": sorted(every - layers),
    }
    return config, tensors


def _widths(place: Place, leaves: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Layer -> width, of the layers that have one: the last number that comes from the layer, or goes to it."""
    down, bias, up, last = (np.asarray(leaves[f"{place.room}/{name}"]) for name in BOTTLENECK)
    for n in range(down.shape[0]):
        used = np.flatnonzero(down[n].any(0) | up[n].any(1) | (bias[n] != 0))
        if used.size or last[n].any():
            yield n, int(used[-1]) + 1 if used.size else 1


def _of_width(name: str, x: np.ndarray, width: int) -> np.ndarray:
    """A leaf of one layer, its width cut or padded with zeros, which add nothing."""
    axes = {"bottleneck_down": 1, "bottleneck_down_bias": 0, "bottleneck_up": 0}
    if name not in axes:
        return x
    x = np.take(x, range(min(width, x.shape[axes[name]])), axis=axes[name])
    pad = [(0, 0)] * x.ndim
    pad[axes[name]] = (0, width - x.shape[axes[name]])
    return np.pad(x, pad)


def factor_of(size: int, width: int) -> float:
    """The reduction factor of which the library makes this width: size // factor."""
    factor = size / width
    while int(size // factor) < width:
        factor = math.nextafter(factor, 0.0)
    return factor


def _head(model: Multimodal, architecture: str, leaves: Mapping[str, Any], trained: set[str]) -> dict[str, np.ndarray]:
    """The tensors outside the class's body, all of them, of which some were trained."""
    rows = check_beside(model, architecture, trained)
    return {row.theirs: _tensor(row, leaves) for row in rows}


def _tensor(row: Row, leaves: Mapping[str, Any]) -> np.ndarray:
    return np.ascontiguousarray(row.join([np.asarray(leaves[path]) for path in row.ours]), np.float32)
