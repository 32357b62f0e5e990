"""What a chip must hold at least, and the smallest topology that could."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.core.errors import UserError
from mmjax.plan.compile import Measured
from mmjax.plan.report import gib
from mmjax.plan.topology import CHIPS, Topology, topologies

STATE = ("params", "optimizer", "ema")


def smallest(measured: Measured, topology: Topology, kinds: Sequence[str]) -> tuple[Topology | None, float]:
    """The smallest topology that a step which exceeds this one could fit, and the bytes that a chip there would hold.

    A bound by proportion: the state is split over all chips (`mesh.fsdp`), and what else the step takes shrinks with the
    examples a chip has, the batch staying as it is. Without one that would do: None, and the least bytes on any.
    """
    ways = {name: measured.mesh.get(name, 1) for name in ("fsdp", "tensor")}
    here = sum(measured.sizes[name] for name in STATE)
    state = here * ways["fsdp"] * ways["tensor"]
    rest = (measured.exceeds - here) * topology.chips
    candidates = sorted((t for kind in kinds for t in topologies(kind)), key=lambda t: (t.chips, t.chip.hbm))
    needs = {t: (state + rest) / t.chips for t in candidates if measured.examples % t.chips == 0}
    for t, need in needs.items():
        if need <= t.chip.usable:
            return t, need
    return None, min(needs.values(), default=measured.exceeds)


def nothing_fits(least: float, topology: Topology, what: str = "state") -> UserError:
    """One line for an experiment of which `what` is more than a topology has, `least` bytes a chip however it is split."""
    whole = least * topology.chips
    for kind in (topology.kind, *CHIPS):
        for other in topologies(kind):
            if whole / other.chips <= other.chip.usable:
                where = f"the smallest {kind} where it could be held is {other.name}, with --mesh.fsdp {other.chips}"
                return UserError(
                    f"its {what} takes {gib(least)} of the {gib(topology.chip.usable)} of a chip of {topology}; {where}"
                )
    return UserError(f"its {what} takes {gib(whole)} and no topology has as much: use a smaller model")


def too_large(name: str, measured: Measured, topology: Topology) -> UserError:
    """One line for a step that does not fit."""
    said = f"{name} on {topology} takes {gib(measured.exceeds)} of the {gib(topology.chip.usable)} that a chip has"
    same, _ = smallest(measured, topology, [topology.kind])
    if same:
        return UserError(
            f"{said}; the smallest {topology.kind} where it could fit is {same.name}, with --mesh.fsdp {same.chips}"
        )
    other, least = smallest(measured, topology, list(CHIPS))
    if other:
        return UserError(
            f"{said}, and it fits no {topology.kind}; the smallest where it could: {other.name}, with --mesh.fsdp {other.chips}"
        )
    return UserError(
        f"{said}, and at least {gib(least)} a chip on any topology: use --batch_per_chip, remat or a smaller model"
    )
