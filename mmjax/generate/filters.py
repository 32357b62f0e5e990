"""Which tokens are drawn from, and how: `transformers`' warpers, in its order."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.core.types import Array
from mmjax.generate.settings import Settings


def filtered(logits_BV: Array, settings: Settings, least: int = 1) -> Array:
    """[B, V] float32 logits of the tokens that are drawn from; -inf for all others.

    Args:
      least: so many tokens are left at any rate; of beams, more than there are ends.
    """
    s = settings
    if s.temperature != 1.0:
        logits_BV = logits_BV / s.temperature
    if s.top_k and s.top_k < logits_BV.shape[-1]:
        logits_BV = _at_least(logits_BV, jax.lax.top_k(logits_BV, max(s.top_k, least))[0][:, -1:])
    if s.top_p < 1.0:
        logits_BV = top_p(logits_BV, s.top_p, least)
    if s.min_p:
        share_BV = jax.nn.softmax(logits_BV, axis=-1)
        kept_BV = share_BV >= s.min_p * jnp.max(share_BV, axis=-1, keepdims=True)
        kept_BV |= share_BV >= jax.lax.top_k(share_BV, least)[0][:, -1:]
        logits_BV = jnp.where(kept_BV, logits_BV, -jnp.inf)
    return logits_BV


def top_p(logits_BV: Array, share: float, least: int = 1) -> Array:
    """The fewest of the likeliest tokens whose chances add up to `share`; of equal ones those of lower ids go first."""
    order_BV = jnp.argsort(logits_BV, axis=-1, stable=True)  # the likeliest last
    below_BV = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1), axis=-1)
    dropped_BV = (below_BV <= 1 - share).at[:, -least:].set(False)
    rows = jnp.arange(logits_BV.shape[0])[:, None]
    return jnp.where(jnp.zeros_like(dropped_BV).at[rows, order_BV].set(dropped_BV), -jnp.inf, logits_BV)


def _at_least(logits_BV: Array, least_B1: Array) -> Array:
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


def row_keys(seed: int, count: Array, index_R: Array) -> Array:
    """[R] keys of a turn: a row's depends on its number among all that are asked for, not on the batch that it stands in."""
    key = jax.random.fold_in(jax.random.key(seed), count)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index_R)
