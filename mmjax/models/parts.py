"""Parts of sequences: some of its tokens; several inputs of one modality in an example (NLVR2's two images), side by side in
the sequence or each a row of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.core.types import Array, Tokens


def take(x: Array, places_BK: Array | None) -> Array:
    """[B, K, ...]: of each example, the tokens of x [B or 1, T, ...] at its places, in that order; None: x itself."""
    if places_BK is None:
        return x
    return jnp.take_along_axis(x, places_BK.reshape(*places_BK.shape, *[1] * (x.ndim - 2)), axis=1)


def split(tokens: Tokens, parts: int) -> Tokens:
    """[B, N * T, D] -> [B * N, T, D]."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * parts, x.shape[1] // parts, *x.shape[2:]), tokens)


def rejoin(tokens: Tokens, parts: int) -> Tokens:
    """[B * N, T, D] -> [B, N * T, D]."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, x.shape[1] * parts, *x.shape[2:]), tokens)
