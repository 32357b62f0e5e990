"""Several texts in one row, one after another: which of them a token is of, and its place in it.

`MODALITY_lengths` [B, S] int32 says how long each text of a row is, 0 where there are no more: the whole of a row's layout.
"""

from __future__ import annotations

import jax.numpy as jnp

from mmjax.core.types import Array


def packed_places(lengths_BS: Array, tokens: int) -> tuple[Array, Array]:
    """Of rows of so many tokens: the number of each token's text in its row, and its place in that text, [B, T] int32 each.

    Padding, which follows the last text, has the number -1 and the place 0.
    """
    ends_BS = jnp.cumsum(lengths_BS, axis=1)
    place_T = jnp.arange(tokens, dtype=ends_BS.dtype)
    ended_BTS = ends_BS[:, None, :] <= place_T[None, :, None]
    text_BT = jnp.sum(ended_BTS, axis=2, dtype=jnp.int32)
    start_BT = jnp.max(jnp.where(ended_BTS, ends_BS[:, None, :], 0), axis=2)
    real_BT = place_T[None] < ends_BS[:, -1:]
    return jnp.where(real_BT, text_BT, -1), jnp.where(real_BT, place_T[None] - start_BT, 0).astype(jnp.int32)
