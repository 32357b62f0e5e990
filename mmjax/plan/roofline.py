"""From counts to time: each resource at its peak, all of them at work at once, and the slowest decides (Williams 2009)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mmjax.plan.compile import Measured
from mmjax.plan.topology import Topology

SLOW_AXIS = "slice"  # the one axis that crosses the data centre's network
LINKS = 2  # of a chip that one axis is given: a ring along one dim of the torus, both ways at once


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a step will take. A floor: nothing runs above its peak, and what overlaps least here overlaps fully.

    Attributes:
      seconds: resource -> seconds of it in a step: `compute`, `hbm`, and each group of axes that collectives run over.
      step_seconds: of the slowest.
      bound: the name of the slowest.
      examples_per_second: of one chip.
      mfu: model FLOPs, without recomputation, over what the chips could do in that time (Chowdhery 2022, section 4.1); of
        three times the forward's, no more than the step has.
      hours, chip_hours: of all steps of the experiment.
    """

    seconds: Mapping[str, float]
    step_seconds: float
    bound: str
    examples_per_second: float
    mfu: float
    hours: float
    chip_hours: float


def predict(measured: Measured, topology: Topology, steps: int) -> Prediction:
    """The roofline of a measured step."""
    chip = topology.chip
    seconds = {
        "compute": measured.hardware_flops / topology.chips / chip.flops,
        "hbm": sum(measured.traffic.values()) / chip.hbm_rate,
        **collective_seconds(measured.collectives, topology),
    }
    bound = max(seconds, key=lambda name: seconds[name])
    step = seconds[bound]
    hours = steps * step / 3600
    return Prediction(
        seconds=seconds,
        step_seconds=step,
        bound=bound,
        examples_per_second=measured.examples / step / topology.chips,
        mfu=min(measured.model_flops, measured.hardware_flops) / (step * topology.chips * chip.flops),
        hours=hours,
        chip_hours=hours * topology.chips,
    )


def collective_seconds(collectives: Mapping[str, float], topology: Topology) -> dict[str, float]:
    """`ici axis` or `dcn axis` -> seconds of sending, by what the collectives run over; those over the same links add up."""
    chip = topology.chip
    found: dict[str, float] = {}
    for name, size in collectives.items():
        axes = name.partition(" ")[2]
        slow = SLOW_AXIS in axes.split("+")
        rate = chip.dcn_rate if slow else LINKS * chip.link_rate
        key = f"{'dcn' if slow else 'ici'} {axes}"
        found[key] = found.get(key, 0.0) + size / rate
    return found
