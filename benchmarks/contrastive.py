"""Memory of the contrastive loss by the number of chips, plain and round the ring, by the account of the TPU compiler.

    python benchmarks/contrastive.py

Needs no TPU: `libtpu` (the extra `tpu`) compiles ahead of time for a topology. What is compiled is the loss alone, its value
and its gradient by both embeddings [N, 768], the scale and the bias, with examples split over all chips; the figure is the
bytes of temporaries that the program takes in one chip's HBM; what the compiler keeps in on-chip memory is
not in it. Prints a table, and one JSON object on its last line.
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


def main() -> None:
    """Compile every combination and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["v5e:4x4", "v5e:8x8", "v5e:16x16"])
    parser.add_argument("--per-chip", nargs="+", type=int, default=[128, 1024], help="examples a chip")
    parser.add_argument("--tile", type=int, default=Contrastive.tile)
    args = parser.parse_args()
    meshes = {name: Mesh().build(topologies.get_topology_desc(name, "tpu").devices) for name in args.topologies}
    print("MiB of temporaries a chip".ljust(32) + "".join(name.rjust(12) for name in meshes) + "   largest / smallest")
    found = []
    for per_chip in args.per_chip:
        for kind in ("sigmoid", "softmax"):
            for exchange in ("plain", "ring"):
                objective = Contrastive(kind, exchange=exchange, tile=args.tile)
                sizes = {name: temporary_bytes(objective, mesh, per_chip) for name, mesh in meshes.items()}
                spread = max(sizes.values()) / min(sizes.values())
                row = "".join(f"{size / MIB:12.2f}" for size in sizes.values())
                print(f"{kind:8} {exchange:6} {per_chip:5} a chip".ljust(32) + row + f"   {spread:.3f}", flush=True)
                found.append({"kind": kind, "exchange": exchange, "per_chip": per_chip, "bytes": sizes, "spread": spread})
    print(json.dumps({"width": WIDTH, "tile": args.tile, "libtpu": metadata.version("libtpu"), "temporary_bytes": found}))


if __name__ == "__main__":
    main()
