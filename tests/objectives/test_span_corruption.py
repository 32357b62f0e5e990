"""Span corruption beside the same written out for one row in plain Python, and beside what it promises."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.core.random import example_uniform
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.multimodal import init_params
from mmjax.objectives.span_corruption import SpanCorruption, counts_of

T, ROWS, FIRST = 24, 16, 2  # FIRST is a token before each text, as BERT's
SENTINELS = (99, 98, 97, 96, 95, 94, 93, 92)
KEY = jax.random.key(3)


def spec(**changes):
    return SpanCorruption(**{"sentinel_ids": SENTINELS, "special_ids": (0, 1, 2), "density": 0.3, "mean_span": 2.0} | changes)


def texts(lengths):
    """Rows of the first token, so many tokens, and the end; each token once."""
    ids = np.zeros((len(lengths), T), np.int32)
    for row, n in zip(ids, lengths, strict=True):
        row[: n + 2] = [FIRST, *range(10, 10 + n), 1]
    return ids, np.arange(T)[None] < np.array(lengths)[:, None] + 2


@functools.cache
def program(one):
    return jax.jit(one.corrupt)


def corrupted(one, ids, real, index=None):
    index = np.arange(len(ids), dtype=np.int32) if index is None else index
    return [np.asarray(x) for x in program(one)(*map(jnp.asarray, (ids, real, index)), KEY)]


def parted(draws, items, parts):
    """Lengths of parts: an item ends one where its draw is among the smallest of all but the last item's."""
    ends = sorted(sorted(range(items - 1), key=lambda n: draws[n])[: parts - 1])
    return np.diff([0, *[n + 1 for n in ends], items]).tolist()


def by_hand(one, tokens, noise_draws, rest_draws):
    """What is read and written of one text, span by span."""
    n = len(tokens)
    hidden = min(max(round(n * one.density), 1), n - 1)
    spans = min(max(round(hidden / one.mean_span), 1), n - hidden)
    read, written, place = [], [], 0
    pairs = zip(parted(rest_draws, n - hidden, spans), parted(noise_draws, hidden, spans), strict=True)
    for sentinel, (seen, gone) in zip(one.sentinel_ids, pairs, strict=False):
        read += [*tokens[place : place + seen], sentinel]
        written += [sentinel, *tokens[place + seen : place + seen + gone]]
        place += seen + gone
    assert place == n
    return read, [*written, one.end_id]


@given(st.lists(st.integers(0, T - 2), min_size=ROWS, max_size=ROWS))
@settings(deadline=None, max_examples=30)
def test_it_is_what_is_written_out_by_hand(lengths):
    one, (ids, real) = spec(), texts(lengths)
    shown, seen, written, said = corrupted(one, ids, real)
    index = jnp.arange(ROWS)
    draws = [np.asarray(example_uniform(key, index, (T,))) for key in jax.random.split(KEY)]
    for row, n in enumerate(lengths):
        tokens = list(range(10, 10 + n))
        own, out = shown[row][seen[row]].tolist(), written[row][said[row]].tolist()
        if n < 2:
            assert own == [FIRST, *tokens, 1] and out == []
            continue
        read, told = by_hand(one, tokens, draws[0][row], draws[1][row])
        assert (own, out) == ([FIRST, *read, 1], told)
        joined, rest = [], out[:-1]  # each sentinel of what is read is replaced by what was written after it
        for token in own:
            if token in SENTINELS:
                at = rest.index(token) + 1
                last = next((i for i in range(at, len(rest)) if rest[i] in SENTINELS), len(rest))
                joined += rest[at:last]
            else:
                joined.append(token)
        assert joined == [FIRST, *tokens, 1]


def test_the_shares_are_the_papers():
    hidden, spans = counts_of(512, 0.15, 3.0)
    assert (hidden[512], spans[512]) == (77, 26) and (hidden[100], spans[100]) == (15, 5)
    assert (hidden[:4].tolist(), spans[:4].tolist()) == ([0, 0, 1, 1], [0, 0, 1, 1])
    ids, real = texts([22] * ROWS)
    assert corrupted(spec(), ids, real)[2].shape == (ROWS, hidden_and_spans() + 1)


def hidden_and_spans():
    hidden, spans = counts_of(T, 0.3, 2.0)
    return int(hidden.max() + spans.max())


def test_draws_belong_to_the_example():
    ids, real = texts(list(range(4, 4 + ROWS)))
    once = corrupted(spec(), ids, real)
    turned = corrupted(spec(), ids[::-1], real[::-1], np.arange(ROWS, dtype=np.int32)[::-1].copy())
    for a, b in zip(once, turned, strict=True):
        np.testing.assert_array_equal(a[::-1], b)


def test_every_way_to_part_a_text_is_as_likely():
    """Of 8 tokens 4 are hidden in 2 spans: 3 x 3 ways."""
    rows = 3600
    ids, real = texts([8] * rows)
    shown, seen, *_ = corrupted(spec(density=0.5), ids, real)
    ways = Counter(tuple(row[mask]) for row, mask in zip(shown, seen, strict=True))
    assert len(ways) == 9
    assert sum((count - rows / 9) ** 2 / (rows / 9) for count in ways.values()) < 26.1  # chi-square, 8 degrees: p = 0.001


def test_it_trains_an_encoder_and_a_decoder():
    size = {"vocab_size": 100, "max_length": T, "width": 8, "depth": 1, "heads": 2, "positions": "relative"}

    def model(**changes):
        decoder = TextDecoder(
            **{"context": ("text",), "writes": "target", "words_of": "text", "start_token": 0, **size} | changes
        )
        return Multimodal(encoders={"text": TextTransformer(**size)}, decoders={"target": decoder}, dtype="float32")

    ids, real = texts([20, 1, 9, 14])
    batch = {"text": jnp.asarray(ids), "text_mask": jnp.asarray(real), "index": jnp.arange(4), "valid": jnp.arange(4) < 3}
    own = model()
    params = init_params(own, jax.random.key(0))
    loss = jax.jit(lambda params: spec()(BoundForward(own, params, batch), batch, KEY))(params)
    said = corrupted(spec(), ids, real)[3]
    assert float(loss.count) == said[:3].sum() > 0 and 3 < float(loss.sum / loss.count) < 6  # log 100 is 4.6
    for wrong, line in (
        (model(start_token=None), "decoder='target' has start_token=None"),
        (model(context=()), r"has start_token=0 and context=\(\)"),
    ):
        with pytest.raises(UserError, match=line):
            spec()(BoundForward(wrong, {}, batch), batch, KEY)
    forward = BoundForward(own, params, batch)
    with pytest.raises(UserError, match="sentinel_ids: 2 sentinels, and a text of 24 tokens has 4 spans"):
        spec(sentinel_ids=(99, 98))(forward, batch, KEY)
    with pytest.raises(UserError, match="the rows of 'text' hold several texts"):
        spec()(forward, {**batch, "text_lengths": jnp.ones((4, 2), jnp.int32)}, KEY)
