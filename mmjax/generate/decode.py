"""The compiled program that writes texts: prompts are read at once, then one token a turn of one loop, with a cache."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Params
from mmjax.generate import greedy
from mmjax.generate.beams import search
from mmjax.generate.reading import Held, Reader, prefill, room
from mmjax.generate.rules import Rules
from mmjax.generate.texts import Texts
from mmjax.generate.written import Written
from mmjax.models import Multimodal

Read = tuple[Array, Written, Any, Reader]  # logits [R, V] of the token after the prompts, prompts, their cache, what reads on


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Going:
    """Texts that are being written, between two programs."""

    turn: greedy.Turn
    held: Held


def decode(
    model: Multimodal,
    params: Params,
    decoder: str,
    batch: Batch,
    ids_BT: Array,
    mask_BT: Array,
    rules: Rules,
    index_B: Array | None = None,
) -> Texts:
    """Write texts after each prompt, `num_return_sequences` of them. Traced: wrap it in `jax.jit`.

    Args:
      batch: what the decoder's context is encoded from; {} where it has none.
      ids_BT, mask_BT: int32 and bool, prompts that end together, padded on the left.
      rules: how they are written, and when they end.
      index_B: int32, the number of each row among all that are asked for, on which its draws depend; None: its place here.

    Raises:
      UserError: rules that name tokens which the decoder has not.
    """
    index_B = jnp.arange(len(ids_BT), dtype=jnp.int32) if index_B is None else index_B
    logits_RV, written, cache, reader = _read(model, params, decoder, batch, ids_BT, mask_BT, rules)
    if rules.settings.num_beams > 1:
        return search(logits_RV, written, cache, reader, rules, index_B)
    return greedy.texts(greedy.gone_on(greedy.begun(logits_RV, written, cache, rules, index_B), reader, rules), rules)


def begin(model: Multimodal, params: Params, decoder: str, batch: Batch, ids_BT: Array, mask_BT: Array, rules: Rules) -> Going:
    """`decode` up to the first token of each text, for those who want to see tokens as they are written (`more`).

    Raises:
      UserError: as `decode`; beams, of which none is the text before the last token.
    """
    if (beams := rules.settings.num_beams) > 1:
        raise UserError(f"num_beams={beams}: beams are no text before all is written; stream with num_beams=1")
    logits_RV, written, cache, reader = _read(model, params, decoder, batch, ids_BT, mask_BT, rules)
    index_B = jnp.arange(len(ids_BT), dtype=jnp.int32)
    return Going(greedy.begun(logits_RV, written, cache, rules, index_B), reader.held)


def more(model: Multimodal, decoder: str, going: Going, rules: Rules) -> Going:
    """One token more of each text; traced, and `going` can be donated. The rules are those that `begin` was given."""
    turn, new = going.turn, rules.settings.max_new_tokens
    reader = Reader(model, decoder, going.held, room(turn.written.ids.shape[1] - new, new))
    return Going(greedy.gone_on(turn, reader, rules, turn.written.count + 1), going.held)


def _read(model: Multimodal, params: Params, decoder: str, batch: Batch, ids_BT: Array, mask_BT: Array, rules: Rules) -> Read:
    """Prompts, a row for each text."""
    s, B = rules.settings, len(ids_BT)
    each = s.num_beams if s.num_beams > 1 else s.num_return_sequences
    logits_RV, cache, reader = prefill(model, params, decoder, batch, ids_BT, mask_BT, s.max_new_tokens, each)
    rules.check(logits_RV.shape[-1], decoder)
    return logits_RV, rules.begun(ids_BT, mask_BT).rows(jnp.repeat(jnp.arange(B), each)), cache, reader
