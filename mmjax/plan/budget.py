"""What a config's step may cost: figures kept in a file, that a later step must not exceed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.plan.compile import Measured

MAY_GROW = 1.03


def figures(measured: Measured) -> dict[str, float]:
    """What is held: bytes of one chip, in use, across HBM, and sent along each group of axes."""
    sent: dict[str, float] = {}
    for name, size in measured.collectives.items():
        axes = name.partition(" ")[2]
        sent[f"sent {axes}"] = sent.get(f"sent {axes}", 0.0) + size
    return {"hbm": float(measured.hbm), "traffic": sum(measured.traffic.values()), **sent}


def write(path: str | Path, words: Sequence[str], measured: Measured) -> None:
    """Keep a step's figures, and the words after `mmjax plan` that give them."""
    budget = {"plan": list(words), "figures": {name: round(size) for name, size in figures(measured).items()}}
    try:
        Path(path).write_text(json.dumps(budget, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--write_budget {path}: {error.strerror}") from None


def grown(budget: dict[str, Any], found: dict[str, float]) -> list[str]:
    """One line for each figure above its budget by more than 3%, and for each that has none."""
    kept = budget["figures"]
    return [
        f"{name}: {size:.4g} bytes, and its budget is {kept.get(name, 0):.4g}"
        for name, size in found.items()
        if size > MAY_GROW * kept.get(name, 0)
    ]
