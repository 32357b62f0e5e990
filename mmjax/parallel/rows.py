"""Which part of a global array a process holds, and how it hands that part over."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from mmjax.core.types import Batch
from mmjax.parallel.mesh import batch_sharding, batch_ways


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[int, ...]:
    """The rows of a global batch that this process's devices hold, in increasing order.

    They follow the mesh: processes that share an example over `tensor` or `sequence` have the same rows, and rows need not be
    contiguous.
    """
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted({row for part in parts if part for row in range(*part[0].indices(batch_size))}))


def place_rows(mesh: jax.sharding.Mesh, batch: Mapping[str, np.ndarray]) -> Batch:
    """The rows of `local_rows` (`index` tells which), [b, ...] each -> the global batch [B, ...], rows over the mesh."""
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)
    rows = np.asarray(batch["index"])
    ways = batch_ways(mesh)
    size = len(rows) * ways // len(local_rows(mesh, ways))

    def global_array(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(size)
            first = int(np.searchsorted(rows, start))
            return x[first : first + stop - start]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, part)

    return {name: global_array(x) for name, x in batch.items()}
