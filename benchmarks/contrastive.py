"""Memory of the contrastive loss by the number of chips, plain and round the ring, by the account of the TPU compiler.

    python benchmarks/contrastive.py [--steps]

Needs no TPU: `libtpu` (the extra `tpu`) compiles ahead of time for a topology. What is compiled is the loss alone, its value
and its gradient by both embeddings [N, 768], the scale and the bias, with examples split over all chips; the figure is the
bytes of temporaries that the program takes in one chip's HBM; what the compiler keeps in on-chip memory is not in it.

With `--steps` what is compiled is the whole step of SigLIP-B/16 at full depth, and the figure is all that it takes of a chip's
HBM: as shipped up to 128 examples a chip, with `remat="full"` above. Prints a table, and one JSON object on its last line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from importlib import metadata
from typing import Any, cast

# Read when libtpu is loaded, so they are set before JAX is imported: no TPU to ask for, and other compilations may run.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from mmjax.core.types import Array, Forward, Loss
from mmjax.objectives import Contrastive
from mmjax.parallel.mesh import Mesh, batch_sharding, replicated, use_mesh
from mmjax.plan.batches import batch_shapes, with_batch_per_chip
from mmjax.plan.compile import Worker, worker
from mmjax.plan.depths import map_stacks
from mmjax.plan.topology import Topology, parse_topology
from mmjax.train import Task
from mmjax.train.config_file import load_config

WIDTH = 768
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Given:
    """A forward that has the embeddings already."""

    embeddings: dict[str, Array]
    scalars: dict[str, Array]

    def embed(self, modality: str, fusion: str) -> Array:
        return self.embeddings[modality]

    def scalar(self, fusion: str, name: str) -> Array:
        return self.scalars[name]


def temporary_bytes(objective: Contrastive, mesh: jax.sharding.Mesh, per_chip: int) -> int:
    """Bytes of temporaries on each chip of the loss and its gradient."""
    rows, scalar = per_chip * mesh.size, jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    embedded = jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32, sharding=batch_sharding(mesh))

    def mean(embeddings: dict[str, Array], scalars: dict[str, Array]) -> tuple[Array, Loss]:
        loss = objective(cast(Forward, Given(embeddings, scalars)), {}, jax.random.key(0))
        return loss.sum / loss.count, loss

    inputs = (dict.fromkeys(objective.modalities, embedded), {"scale": scalar, "bias": scalar})
    shardings = jax.tree.map(lambda x: x.sharding, inputs)
    with use_mesh(mesh):
        step = jax.jit(jax.value_and_grad(mean, argnums=(0, 1), has_aux=True), out_shardings=(replicated(mesh), shardings))
        memory: Any = step.lower(*inputs).compile().memory_analysis()
        return int(memory.temp_size_in_bytes)


def losses(names: list[str], per_chips: list[int], tile: int) -> None:
    """Temporaries of the loss alone, by kind, exchange, examples a chip and topology."""
    meshes = {name: Mesh().build(topologies.get_topology_desc(name, "tpu").devices) for name in names}
    print("MiB of temporaries a chip".ljust(32) + "".join(name.rjust(12) for name in meshes) + "   largest / smallest")
    found = []
    for per_chip in per_chips:
        for kind in ("sigmoid", "softmax"):
            for exchange in ("plain", "ring"):
                objective = Contrastive(kind, exchange=exchange, tile=tile)
                sizes = {name: temporary_bytes(objective, mesh, per_chip) for name, mesh in meshes.items()}
                least, most = min(sizes.values()), max(sizes.values())
                spread = most / least if least else float("inf") if most else 1.0  # 0: all of it fits on the chip
                row = "".join(f"{size / MIB:12.2f}" for size in sizes.values())
                print(f"{kind:8} {exchange:6} {per_chip:5} a chip".ljust(32) + row + f"   {spread:.3f}", flush=True)
                found.append({"kind": kind, "exchange": exchange, "per_chip": per_chip, "bytes": sizes})
    print(json.dumps({"width": WIDTH, "tile": tile, "libtpu": metadata.version("libtpu"), "temporary_bytes": found}))


def step_bytes(process: Worker, kind: str, topology: Topology, per_chip: int) -> float:
    """Bytes of HBM on each chip of SigLIP-B/16's training step, or those that it would need."""
    shipped = with_batch_per_chip(load_config("siglip_b16"), topology.chips, per_chip)
    model = shipped.model if per_chip <= 128 else map_stacks(shipped.model, lambda stack: {"remat": "full"})
    experiment = dataclasses.replace(shipped, model=model, tasks={"contrastive": Task(Contrastive(kind=kind))})
    reply = process.ask(experiment, batch_shapes(experiment)[0], experiment.groups()[0], ["memory"])
    return float(reply.get("exceeds") or sum(reply["memory"].values()))


def whole_steps(names: list[str], sizes: list[int]) -> None:
    """Whether SigLIP-B/16's step fits, by kind of loss, examples a chip and topology."""
    topologies_by_name = {name: parse_topology(name) for name in names}
    print("GB of HBM a chip".ljust(32) + "".join(name.rjust(12) for name in names) + "   usable")
    found = []
    for per_chip in sizes:
        for kind in ("sigmoid", "softmax"):
            print(f"{kind:8} {per_chip:5} a chip".ljust(32), end="", flush=True)
            taken = {}
            for name, topology in topologies_by_name.items():
                with worker(topology) as process:
                    taken[name] = step_bytes(process, kind, topology, per_chip)
                print(f"{taken[name] / 1e9:12.2f}", end="", flush=True)
            usable = min(topology.chip.usable for topology in topologies_by_name.values())
            print(f"   {usable / 1e9:.2f}", flush=True)
            found.append({"kind": kind, "per_chip": per_chip, "bytes": taken, "fits": max(taken.values()) <= usable})
    print(json.dumps({"step_bytes": found}))


def main() -> None:
    """Compile every combination and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["v5e:4x4", "v5e:8x8", "v5e:16x16"])
    parser.add_argument("--per-chip", nargs="+", type=int, default=[128, 1024], help="examples a chip")
    parser.add_argument("--tile", type=int, default=Contrastive.tile)
    parser.add_argument("--steps", action="store_true", help="whole training steps instead of the loss alone")
    args = parser.parse_args()
    if args.steps:
        whole_steps(args.topologies, args.per_chip)
    else:
        losses(args.topologies, args.per_chip, args.tile)


if __name__ == "__main__":
    main()
