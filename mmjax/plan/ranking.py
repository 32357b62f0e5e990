"""What a search prints beside the report of its best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.plan.report import gib
from mmjax.plan.search import Found
from mmjax.plan.topology import Topology
from mmjax.train.experiment import Experiment

SHOWN = 12


def ranking(found: Sequence[Found]) -> str:
    """The first rows of a ranking: what was compiled, then the best estimates."""
    head = ("predicted", "examples/s/chip", "bound by", "HBM a chip", "mesh", "batch a chip", "remat", "attention", "loss")
    rows = [head, *(_row(one) for one in found[:SHOWN])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"of {len(found)} candidates that could fit; another batch is another training run"])


def ranking_json(experiment: Experiment, topology: Topology, found: Sequence[Found]) -> list[dict[str, Any]]:
    """The same rows as data."""
    return [
        {
            "flags": one.candidate.flags(experiment, topology),
            "compiled": one.compiled,
            "examples_per_second_per_chip": one.predicted.examples_per_second,
            "hbm": one.measured.hbm,
            "bound": one.predicted.bound,
        }
        for one in found[:SHOWN]
    ]


def _row(one: Found) -> tuple[str, ...]:
    c = one.candidate
    sizes = {axis: getattr(c.mesh, axis) for axis in ("slice", "data", "fsdp", "tensor", "sequence")}
    return (
        one.kind,
        f"{one.predicted.examples_per_second:.1f}",
        one.predicted.bound,
        gib(one.measured.hbm),
        " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one chip",
        str(c.batch_per_chip),
        c.remat,
        c.attention,
        f"{c.exchange} {c.tile or ''}".strip() or "-",
    )
