"""By what rules texts are written: what a turn does to the logits before a token is taken, and whether it was the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmjax.core.types import Array
from mmjax.generate.processors import Processor, processors
from mmjax.generate.settings import Settings
from mmjax.generate.written import Written


@dataclasses.dataclass(frozen=True)
class Rules:
    """What greedy writing, drawing and beams share.

    Attributes:
      settings: how texts are written.
      ends: ids that end a text.
      tables: of each stop string, in their order, `stops.table`: [states, V].
      own: the user's processors, after those of the settings.
    """

    settings: Settings
    ends: Sequence[int]
    tables: Sequence[Array] = ()
    own: Sequence[Processor] = ()

    def processed(self, logits_RV: Array, written: Written) -> Array:
        """What all processors make of the logits."""
        for apply in processors(self.settings, self.ends, self.own):
            logits_RV = apply(logits_RV, written)
        return logits_RV

    def appended(self, written: Written, token_R: Array) -> Written:
        """One token more in each row."""
        ids = jax.lax.dynamic_update_slice_in_dim(written.ids, token_R[:, None], written.slot, axis=1)
        real = jax.lax.dynamic_update_slice_in_dim(written.real, jnp.ones((len(token_R), 1), bool), written.slot, axis=1)
        states = [table[written.stops[:, n], token_R].astype(jnp.int32) for n, table in enumerate(self.tables)]
        stops = jnp.stack(states, axis=1) if states else written.stops
        return Written(ids, real, written.slot + 1, written.count + 1, stops)

    def ended(self, written: Written, token_R: Array) -> Array:
        """[R] bool: rows whose last token, which this is, is an end, or with which a stop string is complete."""
        found = jnp.isin(token_R, jnp.asarray(list(self.ends), jnp.int32)) if self.ends else jnp.zeros(token_R.shape, bool)
        for n, table in enumerate(self.tables):
            found |= written.stops[:, n] == table.shape[0] - 1
        return found
