"""How an adapter lies in a peft folder: what its tensors are called, and how each of them is turned.

A row of a family (`layout.Row`) says which kernels of ours a HuggingFace tensor holds; the adapter of that tensor's module
holds theirs. One that holds several (GPT-2's fused q, k, v) has one A and one B for all of them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.convert.family import Family
from mmjax.convert.layout import Patches, Row, Table

FIRST = "base_model.model."  # before the name of every module
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SUFFIXES = (
    *("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"),
    *("lora_magnitude_vector", "lora_magnitude_vector.weight"),
    *("ia3_l", "ln_tuning_layers.weight", "ln_tuning_layers.bias", "base_layer.bias", "weight", "bias", "in_proj_bias"),
)


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of HuggingFace's whose weight is a row of ours, in one layer.

    Attributes:
      name: as files have it, without `.weight`.
      row, layer: which of ours it is.
    """

    name: str
    row: Row
    layer: int

    @property
    def table(self) -> bool:
        return isinstance(self.row.layout, Table)

    def of(self, leaf: Any) -> np.ndarray:
        """A leaf of ours in this layer."""
        return np.asarray(leaf[self.layer] if self.row.depth else leaf)


def modules(rows: Iterable[Row]) -> dict[str, Module]:
    """Name of a module -> module, of all that have a `.weight`."""
    found = {}
    for row in rows:
        for layer, name in enumerate(row.names()):
            if name.endswith(".weight"):
                found[name.removesuffix(".weight")] = Module(name.removesuffix(".weight"), row, layer)
    return found


def spellings(family: Family, architecture: str, name: str) -> list[str]:
    """What a module is called: as in files, which is how older versions call it in memory too, and as this version does."""
    now = f"{name}."
    for pattern, replacement in family.modules(architecture):
        now = re.sub(pattern, replacement, now)
    return list(dict.fromkeys([name, now.removesuffix(".")]))


def lora_tensors(module: Module, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """A [in, r] and B [r, out] as peft's tensors, by suffix."""
    layout = module.row.layout
    if module.table:
        return {"lora_embedding_A": _whole(a.T), "lora_embedding_B": _whole(b.T)}
    if isinstance(layout, Patches):
        return {"lora_A.weight": _whole(layout.theirs(a)), "lora_B.weight": _whole(b.T[:, :, None, None])}
    return {"lora_A.weight": _whole(a.T), "lora_B.weight": _whole(b.T)}


def lora_factors(module: Module, tensors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """peft's tensors, by suffix, as A [in, r] and B [r, out]."""
    layout = module.row.layout
    if module.table:
        return tensors["lora_embedding_A"].T, tensors["lora_embedding_B"].T
    a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
    if isinstance(layout, Patches):
        return layout.ours(a, (math.prod(a.shape[1:]), a.shape[0])), b.reshape(b.shape[0], -1).T
    return a.T, b.T


def fused(parts: Sequence[tuple[np.ndarray, np.ndarray, float] | None], widths: Sequence[int]) -> tuple[Any, Any, float]:
    """One A [in, R], B [R, out], scale for kernels that lie one after another in one module: block by block, so that each part
    gives its own outputs and no other. A part without an adapter has none, and its outputs stay as they are."""
    own = [part for part in parts if part is not None]
    scale = own[0][2]
    if len(parts) == 1:
        return own[0]
    a = np.concatenate([part[0] for part in own], axis=1)
    b, row, column = np.zeros((a.shape[1], sum(widths)), np.float32), 0, 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            r = part[0].shape[1]
            b[row : row + r, column : column + width] = part[1] * np.float32(part[2] / scale)
            row += r
        column += width
    return a, b, scale


def _whole(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32)
