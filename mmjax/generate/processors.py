"""What is done to the logits of the next token before one is taken, in the order of `transformers.generate`.

Each is a pure function of the logits `[B, V]` float32 and of what is there already, `Written`. A row's padding is no token to
any of them, so a row in a batch is what it is alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from mmjax.core.types import Array
from mmjax.generate.settings import Settings
from mmjax.generate.written import Written

NEVER = -jnp.inf


Processor = Callable[[Array, Written], Array]


def processors(settings: Settings, ends: Sequence[int], own: Sequence[Processor] = ()) -> list[Processor]:
    """Those that the settings ask for, in order, and the user's own after them."""
    s, last = settings, settings.max_new_tokens - 1
    found: list[Processor | None] = [
        repetition_penalty(s.repetition_penalty) if s.repetition_penalty != 1.0 else None,
        no_repeat_ngram(s.no_repeat_ngram_size) if s.no_repeat_ngram_size else None,
        bad_words(s.bad_words_ids, ends) if s.bad_words_ids else None,
        min_length(s.min_length, ends) if s.min_length and not s.min_new_tokens else None,
        min_new_tokens(s.min_new_tokens, ends) if s.min_new_tokens else None,
        forced_first(s.forced_bos_token_id) if s.forced_bos_token_id is not None else None,
        forced_at(last, s.forced_eos_token_id) if s.forced_eos_token_id is not None else None,
        suppress(s.suppress_tokens) if s.suppress_tokens else None,
        suppress_at_begin(s.begin_suppress_tokens) if s.begin_suppress_tokens else None,
    ]
    return [*[one for one in found if one is not None], *own]


def repetition_penalty(penalty: float) -> Processor:
    """Keskar 2019, section 4.1, with its sign kept: what was there gets less likely whatever the sign of its logit."""

    def apply(logits_BV: Array, written: Written) -> Array:
        rows = jnp.arange(logits_BV.shape[0])[:, None]
        seen_BV = jnp.zeros(logits_BV.shape, bool).at[rows, written.ids].max(written.real, mode="drop")
        return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)

    return apply


def no_repeat_ngram(size: int) -> Processor:
    """No run of `size` tokens comes twice (Paulus 2018, section 2.5)."""

    def apply(logits_BV: Array, written: Written) -> Array:
        ids_BS, real_BS = written.ids, written.real
        length = ids_BS.shape[1]
        if length < size:
            return logits_BV
        follow_BS = real_BS
        for back in range(1, size):  # slot s follows the tokens that stand last now
            tail_B1 = jnp.take(ids_BS, jnp.maximum(written.slot - back, 0), axis=1)[:, None]
            before_BS = jnp.pad(ids_BS, ((0, 0), (back, 0)))[:, :length]
            there_BS = jnp.pad(real_BS, ((0, 0), (back, 0)))[:, :length]
            follow_BS &= there_BS & (before_BS == tail_B1) & (jnp.arange(length)[None] >= back)
        enough_B = jnp.sum(real_BS, axis=1) + 1 >= size
        rows = jnp.arange(logits_BV.shape[0])[:, None]
        banned_BV = jnp.zeros(logits_BV.shape, bool).at[rows, ids_BS].max(follow_BS & enough_B[:, None], mode="drop")
        return jnp.where(banned_BV, NEVER, logits_BV)

    return apply


def bad_words(runs: Sequence[Sequence[int]], ends: Sequence[int]) -> Processor:
    """The last token of each run where those before it stand last; a run of an end alone is none, as in `transformers`."""
    runs = [run for run in runs if tuple(run) not in {(end,) for end in ends}]

    def apply(logits_BV: Array, written: Written) -> Array:
        for run in runs:
            matched_B = jnp.ones(logits_BV.shape[0], bool)
            for back, token in enumerate(reversed(run[:-1]), 1):
                at = jnp.maximum(written.slot - back, 0)
                there_B = jnp.take(written.real, at, axis=1) & (written.slot >= back)
                matched_B &= there_B & (jnp.take(written.ids, at, axis=1) == token)
            logits_BV = logits_BV.at[:, run[-1]].set(jnp.where(matched_B, NEVER, logits_BV[:, run[-1]]))
        return logits_BV

    return apply


def min_length(least: int, ends: Sequence[int]) -> Processor:
    """No end before a text has so many tokens, its prompt's among them."""
    return lambda logits_BV, written: _without(logits_BV, ends, (jnp.sum(written.real, axis=1) < least)[:, None])


def min_new_tokens(least: int, ends: Sequence[int]) -> Processor:
    """No end before so many tokens were written."""
    return lambda logits_BV, written: _without(logits_BV, ends, written.count < least)


def forced_first(token: int) -> Processor:
    """The token that follows a text of one token."""
    return lambda logits_BV, written: jnp.where(
        (jnp.sum(written.real, axis=1) == 1)[:, None], _only(logits_BV, token), logits_BV
    )


def forced_at(count: int, token: int) -> Processor:
    """The token that is written after `count` others."""
    return lambda logits_BV, written: jnp.where(written.count == count, _only(logits_BV, token), logits_BV)


def suppress(tokens: Sequence[int]) -> Processor:
    """Tokens that are never written."""
    return lambda logits_BV, written: _without(logits_BV, tokens, jnp.ones((), bool))


def suppress_at_begin(tokens: Sequence[int]) -> Processor:
    """Tokens that are not written first."""
    return lambda logits_BV, written: _without(logits_BV, tokens, written.count == 0)


def _without(logits_BV: Array, tokens: Sequence[int], where: Array) -> Array:
    listed_V = np.zeros(logits_BV.shape[-1], bool)
    listed_V[list(tokens)] = True
    return jnp.where(jnp.asarray(listed_V)[None] & where, NEVER, logits_BV)


def _only(logits_BV: Array, token: int) -> Array:
    return jnp.full_like(logits_BV, NEVER).at[:, token].set(0.0)
