"""What is there already: prompts, and what was written after them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.core.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Written:
    """Rows of texts, of one length: R rows, S slots.

    Attributes:
      ids: [R, S] int32, prompts, which end together, and what follows them.
      real: [R, S] bool, the slots that hold a token.
      slot: [] int32, where the next token goes.
      count: [] int32, how many have been written after the prompts.
      stops: [R, n] int32, how much of each stop string a row's tokens end with (`stops.table`).
    """

    ids: Array
    real: Array
    slot: Array
    count: Array
    stops: Array

    def rows(self, index_R: Array) -> Written:
        """Those rows."""
        return dataclasses.replace(self, ids=self.ids[index_R], real=self.real[index_R], stops=self.stops[index_R])

    def last(self) -> Array:
        """[R] int32, the tokens written last."""
        return jnp.take(self.ids, self.slot - 1, axis=1)


def begun(ids_BT: Array, mask_BT: Array, new: int, pad: int, stops_BN: Array) -> Written:
    """Prompts, with slots after them for so many tokens.

    Args:
      stops_BN: [B, n] int32, how much of each stop string they end with.
    """
    more = ((0, 0), (0, new))
    ids, real = jnp.pad(ids_BT, more, constant_values=pad), jnp.pad(mask_BT, more)
    slot, count = jnp.asarray(ids_BT.shape[1], jnp.int32), jnp.zeros((), jnp.int32)
    return Written(ids, real, slot, count, stops_BN)
