"""Randomness that belongs to an example, not to a place in memory.

A key folded with an example's row in the global batch gives the same draw on any mesh, for any number of micro-batches.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp

from mmjax.core.packed import packed_places
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


def packed_uniform(key: Array, index_B: Array, lengths_BS: Array, tokens: int) -> Array:
    """[B, T] float32 in [0, 1) for rows of several texts: text n of row r has the draws of the example r S + n, from its first
    token on; padding has 1."""
    many = lengths_BS.shape[1]
    index_BS = index_B[:, None] * many + jnp.arange(many, dtype=index_B.dtype)[None]
    draws_BSU = example_uniform(key, index_BS.reshape(-1), (tokens,)).reshape(*lengths_BS.shape, tokens)
    text_BT, place_BT = packed_places(lengths_BS, tokens)
    flat_BT = jnp.maximum(text_BT, 0) * tokens + place_BT
    drawn_BT = jnp.take_along_axis(draws_BSU.reshape(index_B.shape[0], -1), flat_BT, axis=1)
    return jnp.where(text_BT >= 0, drawn_BT, 1.0)
