"""What no step changes of a run, its frozen parameters and its teachers': written once, under the name of what it holds, and
shared by its checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Array, Params
from mmjax.parallel.multihost import gather
from mmjax.train.array_folder import METADATA, restored, shapes_in
from mmjax.train.reading import names_in

FOLDER = "frozen"  # beside the checkpoints of a run
LANES = (0x9E3779B9, 0x85EBCA6B)  # two sums of 32 bits over an array's numbers, each mixed with its place


def fingerprint(tree: Params) -> str:
    """32 hex digits that tell trees of arrays apart by names, shapes, dtypes and every bit; the same on every mesh.

    The numbers are mixed with their places (by the last steps of MurmurHash3: Appleby 2011) and added up modulo 2^32, which no
    order changes, where they lie.
    """
    sums = jax.device_get(_sums_by_path(tree))
    lines = [f"{path} {x.shape} {x.dtype} {sums[path].tolist()}" for path, x in sorted(leaves_by_path(tree).items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def write(folder: Path, tree: Params) -> str:
    """See to it that `folder` holds the tree; returns the name it has there. All processes call it together."""
    name = fingerprint(tree)
    # What process 0 sees counts for all, which must either all write or all not.
    if not gather("frozen parameters", METADATA in names_in(folder / name))[0]:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
            writer.save(folder / name, args=ocp.args.PyTreeSave(tree), force=True)
    return name


def read(path: Path, mesh: jax.sharding.Mesh | None = None) -> Params:
    """The tree of `path`: as host arrays, or with a mesh in their places on it.

    Raises:
      Exception: orbax's, where it is damaged or cannot be reached.
    """
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    return restored(reader, path, shapes_in(reader, path), mesh)


@jax.jit
def _sums_by_path(tree: Params) -> dict[str, Array]:
    return {path: _sums(x) for path, x in leaves_by_path(tree).items()}


def _sums(x: Array) -> Array:
    """[2] uint32."""
    narrow = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    whole = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    bits = jax.lax.bitcast_convert_type(whole, narrow).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for dim, length in enumerate(bits.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim)
    return jnp.stack([jnp.sum(_mixed(bits ^ _mixed(place + jnp.uint32(lane)))) for lane in LANES])


def _mixed(x: Array) -> Array:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x ^ (x >> jnp.uint32(16))
