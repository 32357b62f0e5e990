"""What attention has read: keys and values of earlier tokens, an argument and a result, never hidden state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.stacked import Stacked, is_stacked
from mmjax.core.types import Array
from mmjax.nn.product import product

Kept = tuple[Array, Array]  # keys and values [B, G, S, K] of one attention: by head, as its products read them
Cache = Any  # name of an attention of the layers -> keys and values [L, B, G, S, K], whole or in parts (`core.stacked`)


def by_head(new_BTGK: Array) -> Array:
    """[B, G, T, K]: keys or values as they are kept."""
    return new_BTGK.transpose(0, 2, 1, 3)


def write(cache: Cache, new: Cache, index: Array) -> Cache:
    """The cache with the keys and values of one token more, `[L, B, G, 1, K]`.

    Args:
      new: of those attentions that read the token; all else stays.
      index: int32, the slot: [] one for all rows, or [B] each row's own.
    """
    return {
        name: jax.tree.map(lambda old, one: _written(old, one, index), kept, new[name], is_leaf=is_stacked)
        if name in new
        else kept
        for name, kept in cache.items()
    }


def _written(old: Any, new: Any, index: Array) -> Any:
    if isinstance(old, Stacked):
        return Stacked(tuple(_written(a, b, index) for a, b in zip(old.parts, new.parts, strict=True)))
    put = jax.lax.dynamic_update_slice_in_dim
    if index.ndim:
        return jax.vmap(lambda x, one, at: put(x, one, at, axis=2), in_axes=(1, 1, 0), out_axes=1)(
            old, new.astype(old.dtype), index
        )
    return put(old, new.astype(old.dtype), index, axis=3)


def attend_one(
    q_BTHK: Array,
    kept: Kept,
    mask_BS: Array | None,
    new: Kept | None = None,
    index: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """[B, T, H, K]: every query sees all slots of the mask. The query heads of a key's head are read as so many tokens, so that
    keys and values are not repeated for them; likewise consecutive rows that share what is kept (the beams of a context).

    Args:
      new: keys and values [B, G, 1, K] of the token that belongs into slot `index`. They are read from here and written when
        all layers have read: XLA copies a cache, in each layer, that is read after it was written.
      bias: [b, H, T, S], b of 1 or B, added to the logits, of rows that share nothing.
    """
    B, T, H, K = q_BTHK.shape
    k_BGSK, v_BGSK = kept
    rows, G, S = k_BGSK.shape[:3]
    beams, each = B // rows, H // G
    q = (q_BTHK * K**-0.5).reshape(rows, beams, T, G, each, K).transpose(0, 3, 1, 2, 4, 5).reshape(rows, G, -1, K)
    logits_BGTS = _by_keys(q, k_BGSK)
    if new is not None and index is not None:
        own_BS = jnp.arange(S)[None] == index.reshape(-1, 1)
        own_BGTS = own_BS[:, None, None]
        logits_BGTS = jnp.where(own_BGTS, _by_keys(q, new[0].astype(k_BGSK.dtype)), logits_BGTS)
    if bias is not None:
        assert beams == 1
        bias_BGTS = bias.reshape(-1, G, each, T, S).swapaxes(2, 3).reshape(-1, G, T * each, S)
        logits_BGTS = logits_BGTS + bias_BGTS.astype(jnp.float32)
    if mask_BS is not None:
        logits_BGTS = jnp.where(mask_BS[:, None, None], logits_BGTS, jnp.finfo(jnp.float32).min)
    weights_BGTS = jax.nn.softmax(logits_BGTS, axis=-1)
    if new is None:
        mixed = _by_values(weights_BGTS, v_BGSK)
    else:
        own_BGT1 = jnp.sum(jnp.where(own_BGTS, weights_BGTS, 0), axis=-1, keepdims=True)
        mixed = _by_values(jnp.where(own_BGTS, 0, weights_BGTS), v_BGSK) + own_BGT1.astype(v_BGSK.dtype) * new[1]
    return mixed.reshape(rows, G, beams, T, each, K).transpose(0, 2, 3, 1, 4, 5).reshape(B, T, H, K)


def _by_keys(q_BGTK: Array, k_BGSK: Array) -> Array:
    return product(q_BGTK, k_BGSK, (((3,), (3,)), ((0, 1), (0, 1))), jnp.float32)


def _by_values(weights_BGTS: Array, v_BGSK: Array) -> Array:
    return product(weights_BGTS.astype(v_BGSK.dtype), v_BGSK, (((3,), (2,)), ((0, 1), (0, 1))))
