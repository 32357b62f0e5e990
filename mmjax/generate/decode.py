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
from mmjax.generate.beams import search
from mmjax.generate.filters import filtered, row_keys
from mmjax.generate.processors import Processor
from mmjax.generate.reading import Reader, prefill
from mmjax.generate.rules import Rules
from mmjax.generate.settings import Settings
from mmjax.generate.texts import Texts
from mmjax.generate.written import Written, begun
from mmjax.models import Multimodal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turn:
    """What a turn of the loop starts from."""

    written: Written
    cache: Any
    done: Array
    lengths: Array
    scores: Array


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
    s, rules = settings, Rules(settings, ends, [jnp.asarray(one) for one in stops], own)
    (B, _), each = ids_BT.shape, s.num_beams if s.num_beams > 1 else s.num_return_sequences
    if [one.shape[0] - 1 for one in rules.tables] != [len(one.encode()) for one in s.stop_strings]:
        raise UserError(f"stop_strings={s.stop_strings}: give decode a table of each (`generate.stops.tables`)")
    logits_RV, cache, reader = prefill(model, params, decoder, batch, ids_BT, mask_BT, s.max_new_tokens, each)
    if any(one.shape[1] < logits_RV.shape[-1] for one in rules.tables):
        raise UserError(f"stop strings of {rules.tables[0].shape[1]} tokens, and a model of {logits_RV.shape[-1]}")
    index_B = jnp.arange(B, dtype=jnp.int32) if index_B is None else index_B
    written = begun(ids_BT, mask_BT, s.max_new_tokens, pad, len(rules.tables)).rows(jnp.repeat(jnp.arange(B), each))
    if s.num_beams > 1:
        return search(logits_RV, written, cache, reader, rules, index_B)
    index_R = jnp.repeat(index_B, each) * each + jnp.tile(jnp.arange(each, dtype=jnp.int32), B)
    return _one_by_one(logits_RV, written, cache, reader, rules, index_R, pad)


def _one_by_one(
    logits_RV: Array, written: Written, cache: Any, reader: Reader, rules: Rules, index_R: Array, pad: int
) -> Texts:
    """The likeliest token of each row, or a drawn one, until every text has ended."""
    settings, rows = rules.settings, len(index_R)
    start = written.ids.shape[1] - settings.max_new_tokens

    def taken(logits_RV: Array, state: Turn) -> Turn:
        token_R, likely_R = _taken(rules.processed(logits_RV, state.written), settings, state.written.count, index_R)
        token_R = jnp.where(state.done, pad, token_R)
        now = rules.appended(state.written, token_R)
        done = state.done | rules.ended(now, token_R)
        lengths = state.lengths + (~state.done).astype(jnp.int32)
        return Turn(now, state.cache, done, lengths, state.scores + jnp.where(state.done, 0.0, likely_R))

    def turn(state: Turn) -> Turn:
        logits_RV, new = reader.step(state.written, state.cache)
        then = taken(logits_RV, state)
        kept = reader.keep(state.cache, new, state.written.slot - 1, jnp.all(then.done))
        return dataclasses.replace(then, cache=kept)

    none = jnp.zeros(rows, jnp.int32)
    first = taken(logits_RV, Turn(written, cache, jnp.zeros(rows, bool), none, jnp.zeros(rows, jnp.float32)))
    going = lambda state: (state.written.count < settings.max_new_tokens) & ~jnp.all(state.done)  # noqa: E731
    last = jax.lax.while_loop(going, turn, first)
    return Texts(last.written.ids[:, start:], last.lengths, last.scores)


def _taken(scores_RV: Array, settings: Settings, count: Array, index_R: Array) -> tuple[Array, Array]:
    """[R] int32 the likeliest token, or one drawn with a key of the row's and the turn's own; and its log-likelihood."""
    if settings.do_sample:
        keys = row_keys(settings.seed, count, index_R)
        token_R = jax.vmap(jax.random.categorical)(keys, filtered(scores_RV, settings)).astype(jnp.int32)
    else:
        token_R = jnp.argmax(scores_RV, axis=-1).astype(jnp.int32)
    own_R = jnp.take_along_axis(scores_RV, token_R[:, None], axis=1)[:, 0]
    return token_R, own_R - jax.nn.logsumexp(scores_RV, axis=-1)
