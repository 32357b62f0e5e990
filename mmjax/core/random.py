"""Randomness that belongs to an example, not to a place in memory.

A key folded with an example's row in the global batch gives the same draw on any mesh, for any number of micro-batches.
"""

from __future__ import annotations

import zlib

import jax

from mmjax.core.types import Array


def fold_name(key: Array, name: str) -> Array:
    """A key of its own for a name: adding a name changes no other's randomness."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def example_keys(key: Array, index_B: Array) -> Array:
    """[B] keys, one for each row of the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index_B)


def example_uniform(key: Array, index_B: Array, shape: tuple[int, ...] = ()) -> Array:
    """[B, *shape] float32 in [0, 1), each row drawn from its example's own key."""
    return jax.vmap(lambda k: jax.random.uniform(k, shape))(example_keys(key, index_B))
