"""The compiled program that writes texts: prompts are read at once, then one token a turn of one loop, with a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Params
from mmjax.generate import greedy
from mmjax.generate.beams import search
from mmjax.generate.processors import Processor
from mmjax.generate.reading import Held, Reader, prefill, room
from mmjax.generate.rules import Rules
from mmjax.generate.settings import Settings, token_ids
from mmjax.generate.stops import after
from mmjax.generate.texts import Texts
from mmjax.generate.written import Written, begun
from mmjax.models import Multimodal


def decode(
    model: Multimodal,
    params: Params,
    decoder: str,
    batch: Batch,
    ids_BT: Array,
    mask_BT: Array,
    settings: Settings,
    ends: Sequence[int],
    pad: int,
    index_B: Array | None = None,
    stops: Sequence[np.ndarray] = (),
    own: Sequence[Processor] = (),
) -> Texts:
    """Write texts after each prompt, `num_return_sequences` of them. Traced: wrap it in `jax.jit`.

    Args:
      batch: what the decoder's context is encoded from; {} where it has none.
      ids_BT, mask_BT: int32 and bool, prompts that end together, padded on the left.
      ends: ids that end a text.
      pad: the id that follows an end.
      index_B: int32, the number of each row among all that are asked for, on which its draws depend; None: its place here.
      stops: of each string that ends a text too, its table (`stops.table`).
      own: what is done to the logits [R, V] after all that the settings ask for, `(logits, Written) -> logits`.

    Raises:
      UserError: tables that are not those of `settings.stop_strings`, or of too small a vocabulary.
    """
    rules = Rules(settings, ends, [jnp.asarray(one) for one in stops], own)
    logits_RV, written, cache, reader, index_B = _read(model, params, decoder, batch, ids_BT, mask_BT, rules, pad, index_B)
    if settings.num_beams > 1:
        return search(logits_RV, written, cache, reader, rules, index_B)
    first = greedy.begun(logits_RV, written, cache, reader, rules, index_B, pad)
    return greedy.texts(greedy.gone_on(first, reader, rules, pad), settings)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Going:
    """Texts that are being written, between two programs: the arrays of `more`."""

    turn: greedy.Turn
    held: Held


def begin(
    model: Multimodal,
    params: Params,
    decoder: str,
    batch: Batch,
    ids_BT: Array,
    mask_BT: Array,
    settings: Settings,
    ends: Sequence[int],
    pad: int,
    index_B: Array | None = None,
    stops: Sequence[np.ndarray] = (),
    own: Sequence[Processor] = (),
) -> Going:
    """`decode` up to the first token of each text, for those who want to see tokens as they are written (`more`).

    Raises:
      UserError: as `decode`; beams, of which none is the text before the last token.
    """
    if settings.num_beams > 1:
        raise UserError(f"num_beams={settings.num_beams}: beams are no text before all is written; stream with num_beams=1")
    rules = Rules(settings, ends, [jnp.asarray(one) for one in stops], own)
    logits_RV, written, cache, reader, index_B = _read(model, params, decoder, batch, ids_BT, mask_BT, rules, pad, index_B)
    return Going(greedy.begun(logits_RV, written, cache, reader, rules, index_B, pad), reader.held)


def more(
    model: Multimodal,
    decoder: str,
    going: Going,
    settings: Settings,
    ends: Sequence[int],
    pad: int,
    stops: Sequence[np.ndarray] = (),
    own: Sequence[Processor] = (),
) -> Going:
    """One token more of each text; traced, and `going` can be donated. The arguments are those that `begin` was given."""
    rules, turn, new = Rules(settings, ends, [jnp.asarray(one) for one in stops], own), going.turn, settings.max_new_tokens
    reader = Reader(model, decoder, going.held, room(turn.written.ids.shape[1] - new, new))
    return Going(greedy.gone_on(turn, reader, rules, pad, turn.written.count + 1), going.held)


def _read(
    model: Multimodal,
    params: Params,
    decoder: str,
    batch: Batch,
    ids_BT: Array,
    mask_BT: Array,
    rules: Rules,
    pad: int,
    index_B: Array | None,
) -> tuple[Array, Written, Any, Reader, Array]:
    """Prompts, a row for each text: logits [R, V] of the first token, what is written, the cache, the reader, numbers [B]."""
    s = rules.settings
    (B, _), each = ids_BT.shape, s.num_beams if s.num_beams > 1 else s.num_return_sequences
    if [one.shape[0] - 1 for one in rules.tables] != [len(one.encode()) for one in s.stop_strings]:
        raise UserError(f"stop_strings={s.stop_strings}: give decode a table of each (`generate.stops.tables`)")
    logits_RV, cache, reader = prefill(model, params, decoder, batch, ids_BT, mask_BT, s.max_new_tokens, each)
    if any(one.shape[1] < logits_RV.shape[-1] for one in rules.tables):
        raise UserError(f"stop strings of {rules.tables[0].shape[1]} tokens, and a model of {logits_RV.shape[-1]}")
    size = logits_RV.shape[-1]
    for name, tokens in ({**token_ids(s), "ends": tuple(rules.ends)}).items():
        if wrong := [token for token in tokens if not 0 <= token < size]:
            raise UserError(f"{name}: there is no token {wrong[0]}; decoders.{decoder} has 0 to {size - 1}")
    index_B = jnp.arange(B, dtype=jnp.int32) if index_B is None else index_B
    begin_BN = after(rules.tables, [one.encode() for one in s.stop_strings], ids_BT, mask_BT)
    written = begun(ids_BT, mask_BT, s.max_new_tokens, pad, begin_BN).rows(jnp.repeat(jnp.arange(B), each))
    return logits_RV, written, cache, reader, index_B
