"""By what rules texts are written: what a turn does to the logits before a token is taken, and whether it was the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.generate.processors import Processor, processors
from mmjax.generate.settings import Settings, token_ids
from mmjax.generate.stops import after
from mmjax.generate.written import Written, begun


@dataclasses.dataclass(frozen=True)
class Rules:
    """What greedy writing, drawing and beams share.

    Attributes:
      settings: how texts are written.
      ends: ids that end a text.
      pad: the id that follows an end.
      tables: of each string that ends a text too, in their order, `stops.table`: [states, V].
      own: what is done to the logits [R, V] after all that the settings ask for, `(logits, Written) -> logits`.
      most: a text ends too where it and its prompt have so many tokens; 0 for any number.

    Raises:
      UserError: tables that are not those of `settings.stop_strings`.
    """

    settings: Settings
    ends: Sequence[int]
    pad: int
    tables: Sequence[np.ndarray] = ()
    own: Sequence[Processor] = ()
    most: int = 0

    def __post_init__(self) -> None:
        strings = self.settings.stop_strings
        if [one.shape[0] - 1 for one in self.tables] != [len(one.encode()) for one in strings]:
            raise UserError(f"stop_strings={strings}: give a table of each (`generate.stops.tables`)")

    def check(self, size: int, decoder: str) -> None:
        """Raises `UserError` for tables of too small a vocabulary, and for a token that there is not."""
        if any(one.shape[1] < size for one in self.tables):
            raise UserError(f"stop strings of {self.tables[0].shape[1]} tokens, and a model of {size}")
        for name, tokens in {**token_ids(self.settings), "ends": tuple(self.ends)}.items():
            if wrong := [token for token in tokens if not 0 <= token < size]:
                raise UserError(f"{name}: there is no token {wrong[0]}; decoders.{decoder} has 0 to {size - 1}")

    def begun(self, ids_BT: Array, mask_BT: Array) -> Written:
        """Prompts that end together, with slots for what follows them."""
        texts = [one.encode() for one in self.settings.stop_strings]
        stops_BN = after(self.tables, texts, ids_BT, mask_BT)
        return begun(ids_BT, mask_BT, self.settings.max_new_tokens, self.pad, stops_BN)

    def processed(self, logits_RV: Array, written: Written) -> Array:
        """What all processors make of the logits."""
        for apply in processors(self.settings, self.ends, self.own):
            logits_RV = apply(logits_RV, written)
        return logits_RV

    def appended(self, written: Written, token_R: Array) -> Written:
        """One token more in each row."""
        ids = jax.lax.dynamic_update_slice_in_dim(written.ids, token_R[:, None], written.slot, axis=1)
        real = jax.lax.dynamic_update_slice_in_dim(written.real, jnp.ones((len(token_R), 1), bool), written.slot, axis=1)
        states = [jnp.asarray(table)[written.stops[:, n], token_R].astype(jnp.int32) for n, table in enumerate(self.tables)]
        stops = jnp.stack(states, axis=1) if states else written.stops
        return Written(ids, real, written.slot + 1, written.count + 1, stops)

    def ended(self, written: Written, token_R: Array) -> Array:
        """[R] bool: rows whose last token, which this is, is an end, or with which a stop string is complete or it full."""
        found = jnp.isin(token_R, jnp.asarray(list(self.ends), jnp.int32)) if self.ends else jnp.zeros(token_R.shape, bool)
        for n, table in enumerate(self.tables):
            found |= written.stops[:, n] == table.shape[0] - 1
        return found | (jnp.sum(written.real, axis=1) >= self.most) if self.most else found
