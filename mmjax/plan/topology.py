"""The TPUs there are: what a chip has, and the shapes that slices come in."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from mmjax.core.errors import UserError, nearest

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip as its maker describes it.

    Attributes:
      hbm: bytes of HBM.
      usable: bytes of it that the compiler gives to a program; the rest is reserved.
      flops: peak bfloat16 FLOP/s.
      hbm_rate: HBM bytes/s.
      link_rate: bytes/s of one inter-chip link, one way.
      links: how many links a chip has.
      dcn_rate: bytes/s to other slices, one way, a chip's share of its host's network.
      shapes: the slices there are.
      accelerator: what `TPU_ACCELERATOR_TYPE` calls a slice of 8 cores.
      config: libtpu's name of how a chip's cores are used; "" for its default.
    """

    hbm: int
    usable: int
    flops: float
    hbm_rate: float
    link_rate: float
    links: int
    dcn_rate: float
    shapes: tuple[str, ...]
    accelerator: str
    config: str = ""


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

# FLOP/s, HBM and inter-chip figures: the page of Cloud TPU's documentation on each version, read in 2026; one link, one way, is
# the "bidirectional ICI bandwidth per chip" / links / 2. `usable`: what libtpu 0.0.52 names when a program exceeds it.
CHIPS = {
    # ICI and DCN of v4 are on no page of its own: 50 GB/s a link is table 4 of Jouppi 2023 (TPU v4), the network v5p's halved.
    "v4": Chip(32 * GIB, int(30.75 * GIB), 275e12, 1200e9, 50e9, 6, 3.125e9, CUBES, "v4-8", "megacore"),
    # DCN: 6.4 Tbps a pod of 256 chips.
    "v5e": Chip(16 * GIB, int(15.75 * GIB), 197e12, 819e9, 50e9, 4, 3.125e9, FLAT, "v5litepod-8"),
    # The documentation says 95 GiB, the compiler gives 95.73. DCN: 50 Gbps a chip.
    "v5p": Chip(96 * GIB, int(95.73 * GIB), 459e12, 2765e9, 100e9, 6, 6.25e9, (*CUBES, "16x16x16", "16x16x24"), "v5p-8"),
    # DCN: 25.6 Tbps a pod of 256 chips.
    "v6e": Chip(32 * GIB, int(31.24 * GIB), 918e12, 1638e9, 100e9, 4, 12.5e9, FLAT, "v6e-8"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one shape.

    Attributes:
      kind: a key of `CHIPS`, or `gpu`.
      shape: chips along each dim of a slice.
      slices: how many slices, joined by the data centre's network.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def name(self) -> str:
        """As the command line spells a slice."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    def libtpu_options(self) -> dict[str, Any]:
        """What `get_topology_desc` wants beside the name."""
        options: dict[str, Any] = {"chip_config_name": self.chip.config} if self.chip.config else {}
        if math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)  # libtpu takes a host to have four chips
        return options | ({"num_slices": self.slices} if self.slices > 1 else {})


def parse_topology(name: str, slices: int = 1) -> Topology:
    """`v5e:4x4`, `v5p:2x2x4`, `gpu:8` -> a topology.

    Raises:
      UserError: one that does not exist.
    """
    if slices < 1:
        raise UserError(f"--slices {slices}: use 1 or more")
    kind, _, shape = name.partition(":")
    if kind == "gpu":
        if not re.fullmatch(r"[1-9]\d*|", shape):
            raise UserError(f"--topology {name}: write gpu, or gpu:N for N GPUs")
        return Topology("gpu", (int(shape or 1),), slices)
    if kind not in CHIPS:
        raise UserError(f"--topology {name}: there are {', '.join(CHIPS)} and gpu{nearest(kind, CHIPS)}, for instance v5e:4x4")
    if shape not in CHIPS[kind].shapes:
        raise UserError(f"--topology {name}: {kind} comes as {', '.join(CHIPS[kind].shapes)}")
    return Topology(kind, tuple(map(int, shape.split("x"))), slices)


def topologies(kind: str) -> list[Topology]:
    """The single slices of a kind, smallest first."""
    return sorted((parse_topology(f"{kind}:{shape}") for shape in CHIPS[kind].shapes), key=lambda t: t.chips)
