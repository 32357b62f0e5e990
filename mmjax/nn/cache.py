"""What attention has read: keys and values of earlier tokens, an argument and a result, never hidden state."""

from __future__ import annotations

from typing import Any

import jax

from mmjax.core.types import Array
from mmjax.nn.attend import attend

Kept = tuple[Array, Array]  # keys and values [B, S, G, K] of one attention
Cache = Any  # name of an attention of the layers -> keys and values [L, B, S, G, K], whole or in parts (`core.stacked`)


def write(old_BSGK: Array, new_B1GK: Array, index: Array) -> Array:
    """[B, S, G, K]: what was kept, with one token's in a slot: one number for all rows."""
    zero = jax.numpy.zeros((), index.dtype)
    return jax.lax.dynamic_update_slice(old_BSGK, new_B1GK.astype(old_BSGK.dtype), (zero, index, zero, zero))


def attend_one(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask_BS: Array | None) -> Array:
    """[B, T, H, K]: every query sees all slots of the mask. The query heads of a key's head are read as so many tokens, so that
    keys and values are not repeated for them."""
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    q = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 1, 3, 2, 4).reshape(B, T * (H // G), G, K)
    mixed = attend(q, k_BSGK, v_BSGK, mask_BS, kind="plain")
    return mixed.reshape(B, T, H // G, G, K).transpose(0, 1, 3, 2, 4).reshape(B, T, H, K)
