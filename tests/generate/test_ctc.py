"""Texts of letters a frame: the likeliest frames against a few lines of Python, beams against all there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.generate.ctc import transcribed

T, V = 5, 3
program = jax.jit(transcribed, static_argnums=(2, 3))


def texts(found):
    return [tuple(ids[:n].tolist()) for ids, n in zip(np.asarray(found.ids), np.asarray(found.lengths), strict=True)]


def collapsed(way, blank):
    return tuple(one for one, _ in itertools.groupby(way) if one != blank)


def likelihoods(logits, blank):
    """Each text -> the log of the sum over all ways to it, in float64."""
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = {}
    for way in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        text = collapsed(way, blank)
        found[text] = np.logaddexp(found.get(text, -np.inf), sum(log_p[t, one] for t, one in enumerate(way)))
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), blank=st.sampled_from((0, 2)), frames=st.integers(0, T), scale=st.sampled_from((0.3, 3.0)))
def test_with_beams_enough_the_text_is_the_likeliest_of_all(seed, blank, frames, scale):
    logits = (scale * np.random.default_rng(seed).normal(size=(1, T, V))).astype(np.float32)
    found = program(jnp.asarray(logits), jnp.arange(T)[None] < frames, blank, 64)
    every = likelihoods(logits[0, :frames].astype(np.float64), blank)
    (text,) = texts(found)
    assert every[text] >= max(every.values()) - 1e-5, "ties may fall either way"
    assert float(found.scores[0]) == pytest.approx(every[text], abs=1e-5)


def searched(logits, blank, beams):
    """Hannun's search by dictionaries: the best text, and its score."""
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    never, found = -np.inf, {(): [0.0, -np.inf]}
    for frame in log_p:
        after = {}
        for text, (by_blank, by_letter) in found.items():
            for one, score in enumerate(frame):
                whole = np.logaddexp(by_blank, by_letter)
                steps = [(text, 0, whole)] if one == blank else [((*text, one), 1, whole)]
                if text and one == text[-1]:
                    steps = [(text, 1, by_letter), ((*text, one), 1, by_blank)]
                for to, kind, before in steps:
                    own = after.setdefault(to, [never, never])
                    own[kind] = np.logaddexp(own[kind], before + score)
        ranked = sorted(after, key=lambda text: -np.logaddexp(*after[text]))
        found = {text: after[text] for text in ranked[:beams]}
    best = next(iter(found))
    return best, np.logaddexp(*found[best])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), blank=st.sampled_from((0, 2)))
def test_few_beams_are_those_of_a_search_by_dictionaries(seed, blank):
    """A text that is come to in two ways takes one beam."""
    logits = np.random.default_rng(seed).normal(size=(3, 9, V)).astype(np.float32)
    found = program(jnp.asarray(logits), jnp.ones((3, 9), bool), blank, 3)
    for row, text, score in zip(logits, texts(found), np.asarray(found.scores), strict=True):
        expected, value = searched(row.astype(np.float64), blank, 3)
        assert text == expected and float(score) == pytest.approx(value, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), blank=st.sampled_from((0, 2)))
def test_the_likeliest_class_of_each_frame_without_repeats_and_blanks(seed, blank):
    rng = np.random.default_rng(seed)
    logits, real = rng.normal(size=(4, 9, V)).astype(np.float32), rng.random((4, 9)) < 0.7  # also holes among the frames
    found = program(jnp.asarray(logits), jnp.asarray(real), blank, 1)
    best = logits.argmax(-1)
    assert texts(found) == [collapsed(row[mask], blank) for row, mask in zip(best, real, strict=True)]
    log_p = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(found.scores, np.where(real, log_p.max(-1), 0).sum(1), rtol=1e-5)


def test_beams_find_what_the_likeliest_frames_miss():
    """Graves's example: each frame's best is the blank, and the letter is the likelier text: 0.64 against 0.36."""
    logits = np.log(np.array([[[0.6, 0.4], [0.6, 0.4]]], np.float32))
    real = jnp.ones((1, 2), bool)
    assert texts(program(logits, real, 0, 1)) == [()]
    found = program(logits, real, 0, 2)
    assert texts(found) == [(1,)] and float(jnp.exp(found.scores[0])) == pytest.approx(0.64)


@pytest.mark.parametrize("beams", [0, -1, 2.0, True])
def test_beams_are_a_number(beams):
    with pytest.raises(UserError, match=rf"^beams={beams!r}: use a whole number from 1 up$"):
        transcribed(jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool), 0, beams)
