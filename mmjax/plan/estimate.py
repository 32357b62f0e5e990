"""What a candidate costs, without compiling it: scaled from programs that were compiled for another mesh and batch.

Ranking is all that it is for; what is reported of the best has been compiled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmjax.core.trees import leaves_by_path
from mmjax.parallel.mesh import AXES, Mesh
from mmjax.parallel.rules import spec
from mmjax.plan.candidates import Candidate
from mmjax.plan.compile import Measured
from mmjax.plan.fit import STATE
from mmjax.plan.topology import Topology
from mmjax.train.state import State
from mmjax.train.trained import ALL, Trained

# Of what an example keeps and moves in a layer, the part that a `tensor` axis does not split: the residual stream and its
# norms, about 4 D of the 12 D that they and queries, keys, values, their mix and a feed-forward layer 4 D wide make together.
WHOLE = 0.35
# HBM traffic of a step whatever its batch, in times the float32 parameters' bytes: AdamW's state and the gradients, which are
# split as the parameters are; and the bfloat16 weights, made and read by both passes, which fsdp does not split.
UPDATE, WEIGHTS = 8.5, 2.5
LOGITS = 4 * 4  # copies of float32 logits that the plain contrastive loss holds


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One choice of rematerialisation and attention, compiled at one batch on a mesh of data and fsdp alone.

    Attributes:
      candidate: what was compiled.
      measured: what that gave.
    """

    candidate: Candidate
    measured: Measured


def state_sizes(state: State, axes: Mapping[str, int], trained: Trained = ALL) -> dict[str, int]:
    """Bytes a chip of each part of the state, and of a gradient, on a mesh, by the one table of `parallel.rules`."""
    trees = {name: getattr(state, name) for name in STATE} | {"gradients": trained.of(state.params)}
    return {
        name: sum(bytes_a_chip(f"{name}/{path}", leaf, axes) for path, leaf in leaves_by_path(tree).items())
        for name, tree in trees.items()
    }


def bytes_a_chip(path: str, leaf: Any, axes: Mapping[str, int]) -> int:
    """Of one array of the state (`params/...`) on a mesh of axis -> size, {} for one chip."""
    split = [
        axis
        for entry in spec(path, leaf.shape, dict(axes))
        if entry
        for axis in ((entry,) if isinstance(entry, str) else entry)
    ]
    return leaf.size * leaf.dtype.itemsize // math.prod(axes[axis] for axis in split)


def axes_of(mesh: Mesh) -> dict[str, int]:
    """Axis -> size."""
    return {axis: getattr(mesh, axis) for axis in AXES}


def least_bytes(candidate: Candidate, sizes: Mapping[str, int], carried: float) -> float:
    """What a chip holds at least: the state, and each layer's input, which every rematerialisation keeps."""
    return sum(sizes[name] for name in STATE) + candidate.batch_per_chip * candidate.mesh.tensor * carried


def estimate(candidate: Candidate, base: Calibration, sizes: Mapping[str, int], topology: Topology) -> Measured:
    """A candidate of the same rematerialisation and attention as `base`, by proportion."""
    known, old = base.measured, base.candidate
    more = candidate.batch_per_chip / old.batch_per_chip
    times = more * (1 + WHOLE * (candidate.mesh.tensor - 1))
    gradients, old_gradients = sizes["gradients"], known.sizes["gradients"]
    kept = max(0.0, known.hbm - sum(known.sizes[name] for name in STATE) - old_gradients - logits_bytes(old, topology))
    moved = sum(known.traffic.values())
    update = min(_fixed_traffic(old_gradients, old.mesh.fsdp), moved)
    fixed = update * _fixed_traffic(gradients, candidate.mesh.fsdp) / _fixed_traffic(old_gradients, old.mesh.fsdp)
    traffic = fixed + (moved - update) * times + 2 * (logits_bytes(candidate, topology) - logits_bytes(old, topology))
    return dataclasses.replace(
        known,
        mesh=axes_of(candidate.mesh),
        examples=round(known.examples * more),
        sizes={**known.sizes, **sizes},
        model_flops=known.model_flops * more,
        hardware_flops=known.hardware_flops * more,
        memory={
            "arguments": sum(sizes[name] for name in STATE),
            "temporaries": int(gradients + kept * times + logits_bytes(candidate, topology)),
        },
        traffic={name: size / moved * traffic for name, size in known.traffic.items()},
        collectives=sent_bytes(candidate, gradients, known.carried),
    )


def _fixed_traffic(params: float, fsdp: int) -> float:
    """Of `params` bytes on a chip."""
    return (UPDATE + WEIGHTS * fsdp) * params


def logits_bytes(candidate: Candidate, topology: Topology) -> float:
    """What a contrastive loss holds of its logits on a chip."""
    rows = candidate.batch_per_chip * candidate.mesh.tensor * candidate.mesh.sequence
    columns = candidate.tile if candidate.exchange == "ring" else candidate.batch_per_chip * topology.chips
    return LOGITS * rows * columns if candidate.exchange else 0.0


def sent_bytes(candidate: Candidate, params: float, carried: float) -> dict[str, float]:
    """What a chip sends in a step: `params` bytes of float32 parameters lie on it, `carried` bytes an example enter layers.

    All in bfloat16. Over data and slices gradients are reduced; over fsdp weights are gathered twice and gradients scattered;
    over tensor each layer's two sums are reduced, forwards and backwards (Shoeybi 2019, section 3); over sequence keys and
    values are gathered, twice, and their derivatives scattered.
    """
    mesh, chips_batch = candidate.mesh, candidate.batch_per_chip
    data, fsdp, tensor, sequence = mesh.data, mesh.fsdp, mesh.tensor, mesh.sequence
    sent = {
        "all-reduce slice": (mesh.slice - 1) / mesh.slice * params / data,
        "all-reduce data": (data - 1) / data * params,
        "all-gather fsdp": (fsdp - 1) * 1.5 * params,
        "all-reduce tensor": 4 * 2 * (tensor - 1) * chips_batch * carried,
        "all-gather sequence": 6 * (sequence - 1) * chips_batch * carried,
    }
    return {name: size for name, size in sent.items() if size}
