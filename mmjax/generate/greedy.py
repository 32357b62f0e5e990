"""One text a row, or several drawn ones: the likeliest token of each turn, or a drawn one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.types import Array
from mmjax.generate.filters import filtered, row_keys
from mmjax.generate.reading import Reader
from mmjax.generate.rules import Rules
from mmjax.generate.settings import Settings
from mmjax.generate.texts import Texts
from mmjax.generate.written import Written


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turn:
    """What a turn of the loop starts from, R rows.

    Attributes:
      written, cache: so far.
      rows: [R] int32, the number of each row among all that are asked for, on which its draws depend.
      done: [R] bool, texts that have ended.
      lengths, scores: as `Texts` has them.
    """

    written: Written
    cache: Any
    rows: Array
    done: Array
    lengths: Array
    scores: Array


def begun(logits_RV: Array, written: Written, cache: Any, rules: Rules, index_B: Array) -> Turn:
    """With the first token."""
    rows = len(written.ids)
    each = rows // len(index_B)
    index_R = jnp.repeat(index_B, each) * each + jnp.tile(jnp.arange(each, dtype=jnp.int32), len(index_B))
    none = jnp.zeros(rows, jnp.int32)
    return _taken(logits_RV, Turn(written, cache, index_R, jnp.zeros(rows, bool), none, jnp.zeros(rows)), rules)


def gone_on(first: Turn, reader: Reader, rules: Rules, until: Array | None = None) -> Turn:
    """The likeliest token of each row, or a drawn one, until every text has ended or has so many tokens; None: all it may."""
    most = rules.settings.max_new_tokens if until is None else until

    def turn(state: Turn) -> Turn:
        logits_RV, new = reader.step(state.written, state.cache)
        then = _taken(logits_RV, state, rules)
        kept = reader.keep(state.cache, new, state.written.slot - 1, jnp.all(then.done))
        return dataclasses.replace(then, cache=kept)

    return jax.lax.while_loop(lambda state: (state.written.count < most) & ~jnp.all(state.done), turn, first)


def texts(last: Turn, rules: Rules) -> Texts:
    """What was written after the prompts."""
    start = last.written.ids.shape[1] - rules.settings.max_new_tokens
    return Texts(last.written.ids[:, start:], last.lengths, last.scores)


def _taken(logits_RV: Array, state: Turn, rules: Rules) -> Turn:
    """With one token more in each row; padding in those that have ended."""
    token_R, likely_R = _one(rules.processed(logits_RV, state.written), rules.settings, state.written.count, state.rows)
    token_R = jnp.where(state.done, rules.pad, token_R)
    now = rules.appended(state.written, token_R)
    done = state.done | rules.ended(now, token_R)
    lengths = state.lengths + (~state.done).astype(jnp.int32)
    scores = state.scores + jnp.where(state.done, 0.0, likely_R)
    return dataclasses.replace(state, written=now, done=done, lengths=lengths, scores=scores)


def _one(scores_RV: Array, settings: Settings, count: Array, index_R: Array) -> tuple[Array, Array]:
    """[R] int32 the likeliest token, or one drawn with a key of the row's and the turn's own; and its log-likelihood."""
    if settings.do_sample:
        keys = row_keys(settings.seed, count, index_R)
        token_R = jax.vmap(jax.random.categorical)(keys, filtered(scores_RV, settings)).astype(jnp.int32)
    else:
        token_R = jnp.argmax(scores_RV, axis=-1).astype(jnp.int32)
    own_R = jnp.take_along_axis(scores_RV, token_R[:, None], axis=1)[:, 0]
    return token_R, own_R - jax.nn.logsumexp(scores_RV, axis=-1)
