"""Texts read from the frames of a sound: the likeliest class of each, or the likeliest text by prefix beam search.

Both are float32 programs over whole batches, compiled with the model. A text has no more letters than there are frames, so that
ids are [B, T]. Legend: B rows, T frames, V classes, N beams.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.generate.texts import Texts

NEVER = -1e30  # log(0)
State = tuple[Array, Array, Array, Array]  # of beams, see `_next`


def transcribed(logits_BTV: Array, frames_BT: Array, blank_id: int, beams: int = 1) -> Texts:
    """The text of each row, without blanks, 0 after its end.

    Args:
      logits_BTV: float, of each frame.
      frames_BT: bool, True = a real frame; the others say nothing.
      blank_id: of the class that is no letter.
      beams: 1 for the likeliest class of each frame; else so many texts are followed at once, by the sum over all the ways in
        which their letters can stand in the frames. With as many beams as there are texts that is exact.

    Returns:
      `ids` [B, T] int32, `lengths` [B] int32, and `scores` [B] float32: the log-likelihood of the one way that was taken, and
      with beams of all ways to the text that were followed.

    Raises:
      UserError: beams below 1.
    """
    if not isinstance(beams, int) or isinstance(beams, bool) or beams < 1:
        raise UserError(f"beams={beams!r}: use a whole number from 1 up")
    log_p_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    if beams == 1:
        return _greedy(log_p_BTV, frames_BT, blank_id)
    ids_BT, lengths_B, scores_B = jax.vmap(lambda log_p_TV, real_T: _searched(log_p_TV, real_T, blank_id, beams))(
        log_p_BTV, frames_BT
    )
    return Texts(ids_BT, lengths_B, scores_B)


def _greedy(log_p_BTV: Array, frames_BT: Array, blank_id: int) -> Texts:
    """Runs of a class become one, and blanks are dropped."""
    best_BT = jnp.argmax(log_p_BTV, axis=-1).astype(jnp.int32)
    scores_B = jnp.sum(jnp.where(frames_BT, jnp.max(log_p_BTV, axis=-1), 0.0), axis=1)
    # Real frames side by side, should they not be: what comes before one is then its neighbour.
    order_BT = jnp.argsort(~frames_BT, axis=1, stable=True)
    best_BT, real_BT = (jnp.take_along_axis(x, order_BT, axis=1) for x in (best_BT, frames_BT))
    before_BT = jnp.pad(best_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    kept_BT = real_BT & (best_BT != blank_id) & (best_BT != before_BT)
    lengths_B = jnp.sum(kept_BT, axis=1, dtype=jnp.int32)
    order_BT = jnp.argsort(~kept_BT, axis=1, stable=True)
    within_BT = jnp.arange(best_BT.shape[1])[None] < lengths_B[:, None]
    return Texts(jnp.where(within_BT, jnp.take_along_axis(best_BT, order_BT, axis=1), 0), lengths_B, scores_B)


def _searched(log_p_TV: Array, real_T: Array, blank_id: int, beams: int) -> tuple[Array, Array, Array]:
    """Prefix beam search of one row (Hannun 2014, arXiv:1408.2873, algorithm 1, without a language model): ids [T], length [],
    and score [] of the best text."""
    N, T = beams, log_p_TV.shape[0]

    def frame(state: State, now: tuple[Array, Array]) -> tuple[State, None]:
        log_p_V, real = now
        new = _next(state, log_p_V, blank_id, N)
        kept: State = jax.tree.map(lambda there, before: jnp.where(real, there, before), new, state)
        return kept, None

    # One text, the empty one; the other beams are copies of it that nothing leads to.
    first = jnp.arange(N) == 0
    start = (
        jnp.zeros((N, T), jnp.int32),
        jnp.zeros(N, jnp.int32),
        jnp.where(first, 0.0, NEVER),
        jnp.full(N, NEVER),
    )
    (ids_NT, lengths_N, blank_N, letter_N), _ = jax.lax.scan(frame, start, (log_p_TV, real_T))
    scores_N = jnp.logaddexp(blank_N, letter_N)
    best = jnp.argmax(scores_N)
    return ids_NT[best], lengths_N[best], scores_N[best]


def _next(state: State, log_p_V: Array, blank_id: int, N: int) -> State:
    """The N likeliest texts one frame later.

    `state` and what is returned: ids [N, T], lengths [N], and the log-likelihoods [N] of all ways to each text that end with a
    blank, and that end with its last letter.
    """
    ids_NT, lengths_N, blank_N, letter_N = state
    T, V = ids_NT.shape[1], log_p_V.shape[0]
    alive_N = jnp.logaddexp(blank_N, letter_N) > NEVER / 2
    last_N = jnp.where(lengths_N > 0, jnp.take_along_axis(ids_NT, jnp.maximum(lengths_N - 1, 0)[:, None], axis=1)[:, 0], -1)
    either_N = jnp.logaddexp(blank_N, letter_N)
    # The text stays as it is: a blank, or its last letter goes on.
    stay_blank_N = either_N + log_p_V[blank_id]
    stay_letter_N = jnp.where(last_N >= 0, letter_N + log_p_V[jnp.maximum(last_N, 0)], NEVER)
    # It gets one more letter: the same as its last one only after a blank.
    same_NV = jnp.arange(V)[None] == last_N[:, None]
    longer_NV = jnp.where(same_NV, blank_N[:, None], either_N[:, None]) + log_p_V[None]
    longer_NV = jnp.where(jnp.arange(V)[None] == blank_id, NEVER, longer_NV)
    # Where that is one of the other texts, it is one more way to it.
    place_T = jnp.arange(T)[None, None]
    begins_NN = jnp.all((ids_NT[:, None] == ids_NT[None]) | (place_T >= lengths_N[:, None, None]), axis=2)
    leads_NN = begins_NN & (lengths_N[:, None] + 1 == lengths_N[None]) & alive_N[:, None] & alive_N[None]
    into_NN = jnp.where(leads_NN, longer_NV[:, jnp.maximum(last_N, 0)], NEVER)
    stay_letter_N = jnp.logaddexp(stay_letter_N, jnp.max(into_NN, axis=0))  # one text leads to each at most
    taken_NV = jnp.any(leads_NN[:, :, None] & (last_N[None, :, None] == jnp.arange(V)[None, None]), axis=1)
    longer_NV = jnp.where(taken_NV | ~alive_N[:, None], NEVER, longer_NV)
    stay_N = jnp.where(alive_N, jnp.logaddexp(stay_blank_N, stay_letter_N), NEVER)
    _, chosen_N = jax.lax.top_k(jnp.concatenate([stay_N, longer_NV.reshape(-1)]), N)
    stays_N = chosen_N < N
    from_N = jnp.where(stays_N, chosen_N, (chosen_N - N) // V)
    added_N = jnp.where(stays_N, 0, (chosen_N - N) % V).astype(jnp.int32)
    end_NT = (place_T[0] == lengths_N[from_N][:, None]) & ~stays_N[:, None]
    return (
        jnp.where(end_NT, added_N[:, None], ids_NT[from_N]),
        lengths_N[from_N] + (~stays_N).astype(jnp.int32),
        jnp.where(stays_N, stay_blank_N[from_N], NEVER),
        jnp.where(stays_N, stay_letter_N[from_N], longer_NV.reshape(-1)[jnp.maximum(chosen_N - N, 0)]),
    )


def text_of(tokenizer: Any, ids: Any) -> str:
    """A text of the letters' ids: without special tokens, and without spaces around it."""
    return str(tokenizer.decode(ids)).strip()
