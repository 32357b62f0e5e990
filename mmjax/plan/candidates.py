"""The ways to run an experiment on a topology that a search tries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax.core.config import leaves, replace
from mmjax.nn.stack import REMAT
from mmjax.parallel.mesh import BATCH, Mesh
from mmjax.plan.depths import map_stacks, stacks
from mmjax.plan.topology import Topology
from mmjax.train.experiment import Experiment

BATCHES = tuple(1 << power for power in range(13))  # examples a chip
ATTENTION = ("auto", "plain")
TILES = (256, 1024, 4096)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run.

    Attributes:
      mesh: sizes of the axes, none of them left open.
      batch_per_chip: examples of all batches in a step over all chips, for each chip.
      remat, attention: of every stack; see `nn.stack`.
      exchange, tile: of every contrastive objective that has them; "" and 0 where none has.
    """

    mesh: Mesh
    batch_per_chip: int
    remat: str
    attention: str
    exchange: str = ""
    tile: int = 0

    def apply(self, experiment: Experiment, topology: Topology) -> Experiment:
        """The experiment run this way. Evaluation's batches are rounded up to what the mesh divides."""
        rows = self.batch_per_chip * topology.chips
        ways = math.prod(getattr(self.mesh, axis) for axis in BATCH)
        trained = experiment.task_data()
        data = {
            name: dataclasses.replace(d, batch_size=rows if name in trained else -(-d.batch_size // ways) * ways)
            for name, d in experiment.data.items()
        }
        model = map_stacks(experiment.model, lambda stack: {"remat": self.remat, "attention": self.attention})
        tasks = {name: self._exchanging(task) for name, task in experiment.tasks.items()}
        return dataclasses.replace(experiment, mesh=self.mesh, data=data, model=model, tasks=tasks)

    def flags(self, experiment: Experiment, topology: Topology) -> str:
        """What to add to the command line to run this way."""
        before, after = leaves(experiment), leaves(self.apply(experiment, topology))
        return " ".join(f"--{path} {value}" for path, value in after.items() if before[path] != value)

    def _exchanging(self, task: Any) -> Any:
        if not exchanges(task.objective):
            return task
        objective = replace(task.objective, "exchange", self.exchange)
        return replace(task, "objective", replace(objective, "tile", self.tile) if self.exchange == "ring" else objective)


def exchanges(objective: Any) -> bool:
    """Whether an objective can be told how its devices meet each other's examples."""
    return hasattr(objective, "exchange") and hasattr(objective, "tile")


def candidates(experiment: Experiment, topology: Topology, batches: Sequence[int] = ()) -> Iterator[Candidate]:
    """Every way: meshes whose `tensor` axis divides all heads x batches x rematerialisation x attention x exchange and tile.

    Args:
      batches: the examples a chip to try; () for `BATCHES`.
    """
    ring = any(exchanges(task.objective) for task in experiment.tasks.values())
    loss = [("plain", 0), *(("ring", tile) for tile in TILES)] if ring else [("", 0)]
    for mesh in meshes(experiment, topology):
        for batch in batches or BATCHES:
            ways = math.prod(getattr(mesh, axis) for axis in BATCH)
            if batch * topology.chips % (ways * experiment.optimizer.accumulate):
                continue
            for remat in REMAT:
                for attention in ATTENTION:
                    for exchange, tile in loss:
                        yield Candidate(mesh, batch, remat, attention, exchange, tile)


def meshes(experiment: Experiment, topology: Topology) -> list[Mesh]:
    """Every split of a slice's chips over data, fsdp, tensor and sequence."""
    chips = topology.chips // topology.slices
    heads = math.gcd(*(n for stack in stacks(experiment.model).values() if stack.depth for n in (stack.heads, stack.kv_heads)))
    return [
        Mesh(chips // (fsdp * tensor * sequence), fsdp, tensor, sequence, topology.slices)
        for tensor in _divisors(chips)
        if heads % tensor == 0
        for sequence in _divisors(chips // tensor)
        for fsdp in _divisors(chips // tensor // sequence)
    ]


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
