"""Beam search as `transformers` does it: of each prompt the N likeliest beginnings go on, and the best that ended are kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.types import Array
from mmjax.generate.filters import filtered, row_keys
from mmjax.generate.reading import Reader
from mmjax.generate.rules import Rules
from mmjax.generate.settings import Settings
from mmjax.generate.texts import Texts
from mmjax.generate.written import Written

LOW = -1e9  # of what cannot be taken; not -inf, since such scores are compared with one another


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Finished:
    """The best texts that have ended, B prompts, N beams each, the best first.

    Attributes:
      ids: [B, N, S] int32, prompts and what follows.
      scores: [B, N] float32, length-penalised; LOW where there is no text yet.
      there: [B, N] bool, whether there is a text.
      lengths: [B, N] int32, its tokens after the prompt.
    """

    ids: Array
    scores: Array
    there: Array
    lengths: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turn:
    """What a turn of the loop starts from.

    Attributes:
      written, cache: of the B * N beams that go on.
      scores: [B, N] float32, the sum of the log-likelihoods of each one's tokens.
      hopeful: [B] bool, whether a beam of the prompt may still become better than a text that has ended.
      over: [] bool, whether nothing goes on.
    """

    written: Written
    cache: Any
    scores: Array
    finished: Finished
    hopeful: Array
    over: Array


def search(logits_RV: Array, written: Written, cache: Any, reader: Reader, rules: Rules, index_B: Array) -> Texts:
    """The best `num_return_sequences` texts of each prompt.

    Args:
      logits_RV: [B * N, V] float32 of the first token, equal within a prompt's beams.
      written, cache: of the prompts, a row a beam.
    """
    settings = rules.settings
    N, B = settings.num_beams, len(index_B)
    start = written.ids.shape[1] - settings.max_new_tokens
    none = Finished(written.ids.reshape(B, N, -1), jnp.full((B, N), LOW), jnp.zeros((B, N), bool), jnp.zeros((B, N), jnp.int32))
    scores_BN = jnp.where(jnp.arange(N)[None] == 0, 0.0, LOW) * jnp.ones((B, 1))  # all beams are one at first

    def chosen(logits_RV: Array, state: Turn) -> tuple[Turn, Array]:
        likely_RV = rules.processed(jax.nn.log_softmax(logits_RV, axis=-1), state.written)
        if settings.do_sample:
            likely_RV = filtered(likely_RV, settings, least=len(rules.ends) + 1)
        found, scores_BC, beam_BC = _candidates(likely_RV, state, rules, index_B)
        return _gone_on(found, scores_BC, beam_BC, state, rules)

    def turn(state: Turn) -> Turn:
        logits_RV, new = reader.step(state.written, state.cache)
        then, beam_BN = chosen(logits_RV, state)
        kept = reader.keep(state.cache, new, state.written.slot - 1, then.over)
        return dataclasses.replace(then, cache=_of_beams(kept, beam_BN))

    begun = Turn(written, cache, scores_BN, none, jnp.ones(B, bool), jnp.zeros((), bool))
    first, _ = chosen(logits_RV, begun)  # beams of a prompt have the same cache still
    last = jax.lax.while_loop(lambda state: ~state.over, turn, first).finished
    R = settings.num_return_sequences
    ids = last.ids[:, :R, start:].reshape(B * R, -1)
    return Texts(ids, last.lengths[:, :R].reshape(-1), last.scores[:, :R].reshape(-1))


def _candidates(likely_RV: Array, state: Turn, rules: Rules, index_B: Array) -> tuple[Written, Array, Array]:
    """Of each prompt the C likeliest beginnings that are one token longer, as rows, their scores and their beams [B, C].

    C is such that N of them have not ended, however many ends there are. Drawn ones are so without putting back (Kool 2019).
    """
    (B, N), V, settings = state.scores.shape, likely_RV.shape[-1], rules.settings
    C = min(max(2, 1 + len(rules.ends)) * N, N * V)
    scores_BM = (likely_RV.reshape(B, N, V) + state.scores[:, :, None]).reshape(B, N * V)
    if settings.do_sample:
        keys = row_keys(settings.seed, state.written.count, index_B)
        drawn_BM = scores_BM + jax.vmap(lambda key: jax.random.gumbel(key, (N * V,)))(keys)
        taken_BC = jax.lax.top_k(drawn_BM, C)[1]
        scores_BC = jnp.take_along_axis(scores_BM, taken_BC, axis=1)
        order_BC = jnp.argsort(-scores_BC, axis=1, stable=True)
        scores_BC, taken_BC = (jnp.take_along_axis(x, order_BC, axis=1) for x in (scores_BC, taken_BC))
    else:
        scores_BC, taken_BC = jax.lax.top_k(scores_BM, C)
    beam_BC, token_BC = taken_BC // V, (taken_BC % V).astype(jnp.int32)
    rows = (jnp.arange(B)[:, None] * N + beam_BC).reshape(-1)
    return rules.appended(state.written.rows(rows), token_BC.reshape(-1)), scores_BC, beam_BC


def _gone_on(found: Written, scores_BC: Array, beam_BC: Array, state: Turn, rules: Rules) -> tuple[Turn, Array]:
    """The next turn's state, but for its cache; and from which beams [B, N] those that go on come."""
    settings = rules.settings
    (B, N), C, most = state.scores.shape, scores_BC.shape[1], settings.max_new_tokens
    full = found.count == most
    hits_BC = rules.ended(found, found.last()).reshape(B, C) | full
    running_BN, place_BN = jax.lax.top_k(scores_BC + _low(hits_BC), N)
    rows = (jnp.arange(B)[:, None] * C + place_BN).reshape(-1)
    finished = _ended_now(found, scores_BC, hits_BC, state, settings)
    far = most if settings.early_stopping == "never" and settings.length_penalty > 0 else None
    best_B = running_BN[:, 0] / _penalties(settings)[found.count if far is None else far]
    worst_BN = jnp.where(finished.there, jnp.min(finished.scores, axis=1, keepdims=True), LOW)
    hopeful = state.hopeful & jnp.any(best_B[:, None] > worst_BN, axis=1)
    closed = jnp.all(finished.there) & (settings.early_stopping is True)
    over = ~jnp.any(hopeful) | closed | jnp.all(hits_BC)
    beam_BN = jnp.take_along_axis(beam_BC, place_BN, axis=1)
    return Turn(found.rows(rows), state.cache, running_BN, finished, hopeful, over), beam_BN


def _ended_now(found: Written, scores_BC: Array, hits_BC: Array, state: Turn, settings: Settings) -> Finished:
    """The best N of those that had ended and of those that end now, among the N likeliest."""
    (B, N), C, old = state.scores.shape, scores_BC.shape[1], state.finished
    new_BC = hits_BC & (jnp.arange(C)[None] < N)
    scores_BC = scores_BC / _penalties(settings)[found.count]
    closed_B = jnp.all(old.there, axis=1) & (settings.early_stopping is True)
    scores_BC += _low(closed_B[:, None])
    scores_BC += _low(~state.hopeful[:, None])
    scores_BC += _low(~new_BC)
    scores = jnp.concatenate([old.scores, scores_BC], axis=1)
    scores_BN, place_BN = jax.lax.top_k(scores, N)
    ids = jnp.concatenate([old.ids, found.ids.reshape(B, C, -1)], axis=1)
    there = jnp.concatenate([old.there, new_BC], axis=1)
    lengths = jnp.concatenate([old.lengths, jnp.broadcast_to(found.count, (B, C))], axis=1)
    return Finished(
        jnp.take_along_axis(ids, place_BN[:, :, None], axis=1),
        scores_BN,
        jnp.take_along_axis(there, place_BN, axis=1),
        jnp.take_along_axis(lengths, place_BN, axis=1),
    )


def _low(out: Array) -> Array:
    """What is added to a score so that it is not taken."""
    return jnp.where(out, LOW, 0.0)


def _penalties(settings: Settings) -> Array:
    """[max_new_tokens + 1] float32: by what the score of a text of so many tokens is divided."""
    lengths = np.arange(settings.max_new_tokens + 1, dtype=np.float64)
    return jnp.asarray(np.maximum(lengths, 1) ** settings.length_penalty, jnp.float32)


def _of_beams(cache: Any, beam_BN: Array) -> Any:
    """The cache of the beams that go on; each prompt's among its own, so that a mesh need not move rows."""
    B, N = beam_BN.shape

    def picked(x: Array) -> Array:
        rows = x.reshape(B, N, *x.shape[2:])
        return jax.vmap(lambda own, index: own[index])(rows, beam_BN).reshape(x.shape)

    return {name: jax.tree.map(picked, kept) if name == "attention" else kept for name, kept in cache.items()}
