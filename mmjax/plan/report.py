"""What the command prints: a table, then one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mmjax.plan.compile import Measured
from mmjax.plan.roofline import Prediction
from mmjax.plan.topology import GIB, Topology

Row = tuple[str, str, str]  # what, how much, how it came about
HELD = ("params", "optimizer", "ema", "teachers", "batch")  # on a chip, all the time


def as_json(
    name: str, topology: Topology, measured: Measured, predicted: Prediction | None, shapes_from: str
) -> dict[str, Any]:
    """Everything that the table says, and the figures behind it. Bytes, FLOPs and seconds, none of them rounded."""
    head = {"config": name, "topology": topology.name, "slices": topology.slices, "chips": topology.chips}
    return head | {
        "batch_shapes_from": shapes_from,
        "batch_per_chip": measured.examples / topology.chips,
        "measured": dataclasses.asdict(measured) | {"hbm": measured.hbm},
        "predicted": dataclasses.asdict(predicted) if predicted else None,
    }


def table(name: str, topology: Topology, measured: Measured, predicted: Prediction | None, shapes_from: str) -> str:
    """The report for a reader."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in measured.mesh.items() if size > 1) or "one chip"
    lines = [
        f"{name} on {topology}: {topology.chips} chips, {mesh}; {measured.examples} examples a step",
        f"batch shapes from {shapes_from}",
        "",
    ]
    rows = _sizes(measured)
    if predicted:
        rows += [*_memory(measured, topology), *_work(measured, topology), *_time(measured, predicted)]
    else:
        rows += _flops(measured)
    lines += said(rows)
    if not predicted:
        lines += ["", "No GPU program is compiled: memory, traffic and time are not known here."]
    return "\n".join(lines)


def said(rows: Sequence[Row]) -> list[str]:
    """The lines of a table."""
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return [f"{what:<{widths[0]}}  {much:>{widths[1]}}  {how}".rstrip() for what, much, how in rows]


def _sizes(measured: Measured) -> list[Row]:
    sizes = measured.sizes
    return [
        ("predicted parameters", f"{sizes['parameters'] / 1e6:.1f} M", ""),
        *[(f"predicted {name}", gib(sizes[name]), "a chip") for name in HELD if sizes.get(name)],
    ]


def _memory(measured: Measured, topology: Topology) -> list[Row]:
    chip, memory = topology.chip, measured.memory
    share = measured.hbm / chip.usable
    reserved = f"{gib(chip.hbm)} a chip, less {gib(chip.hbm - chip.usable)} reserved"
    return [
        ("predicted temporaries", gib(memory["temporaries"]), "a chip: activations, gradients"),
        ("predicted HBM in use", gib(measured.hbm), f"a chip, {share:.0%} of {gib(chip.usable)} ({reserved})"),
    ]


def _flops(measured: Measured) -> list[Row]:
    return [
        (
            "predicted model FLOPs",
            tera(measured.model_flops),
            "a step, all chips: the forward's products, and their backward's",
        ),
        ("predicted FLOPs", tera(measured.hardware_flops), "a step, all chips: the traced step's, recomputation included"),
    ]


def _work(measured: Measured, topology: Topology) -> list[Row]:
    traffic = measured.traffic
    crossed = f"a chip and step, {giga(traffic['read'])} read, {giga(traffic['written'])} written"
    return [
        *_flops(measured),
        ("predicted HBM traffic", giga(sum(traffic.values())), crossed),
        *[(f"predicted {name}", giga(size), "a chip and step") for name, size in measured.collectives.items() if size >= 5e5],
    ]


def _time(measured: Measured, predicted: Prediction) -> list[Row]:
    rows = [
        (f"predicted time of {name}", f"{1e3 * seconds:.2f} ms", "at peak")
        for name, seconds in predicted.seconds.items()
        if seconds >= 5e-6
    ]
    return [
        *rows,
        ("predicted step", f"{1e3 * predicted.step_seconds:.2f} ms", f"at least; bound by {predicted.bound}"),
        ("predicted examples/s/chip", f"{predicted.examples_per_second:.1f}", "at most"),
        ("predicted MFU", f"{predicted.mfu:.1%}", "at most"),
        ("predicted hours", f"{predicted.hours:.2f}", f"at least, for all steps; {predicted.chip_hours:.1f} chip-hours"),
    ]


def gib(size: float) -> str:
    """Bytes of memory."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.2f} MiB"


def giga(size: float) -> str:
    """Bytes that move."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def tera(count: float) -> str:
    """FLOPs."""
    return f"{count / 1e12:.3f} TFLOP"
