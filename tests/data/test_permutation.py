"""Permutations that are computed: each number once, and no order likelier than another."""

import collections
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from mmjax.data.permutation import Permutation


def bits(*words):
    return np.random.Philox(np.random.SeedSequence(words))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**32))
@example(1, 0)
@example(2, 0)
@example(3, 0)
@example(1023, 0)
@example(1024, 0)
@example(1025, 0)
@example(4095, 1)
@example(4097, 1)
def test_each_number_comes_once(size, seed):
    found = Permutation(size, bits(seed))(np.arange(size))
    assert sorted(found.tolist()) == list(range(size))


def test_a_place_has_its_number_whatever_is_asked_beside_it():
    whole = Permutation(1000, bits(7))(np.arange(1000))
    some = np.array([[999, 0, 3], [500, 3, 3]])
    np.testing.assert_array_equal(Permutation(1000, bits(7))(some), whole[some])
    assert not np.array_equal(Permutation(1000, bits(8))(np.arange(1000)), whole)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_orders_of_few_are_equally_likely(size):
    draws = 12000
    found = collections.Counter(tuple(Permutation(size, bits(seed, 1))(np.arange(size)).tolist()) for seed in range(draws))
    expected = draws / math.factorial(size)
    distance = sum((found[order] - expected) ** 2 / expected for order in itertools.permutations(range(size)))
    assert distance < chi2.ppf(0.999, math.factorial(size) - 1)


def test_every_number_is_equally_likely_at_every_place_and_after_every_other():
    size, draws = 64, 3000
    found = np.array([Permutation(size, bits(seed, 2))(np.arange(size)) for seed in range(draws)])
    at = np.stack([np.bincount(own, minlength=size) for own in found.T])
    assert ((at - draws / size) ** 2 / (draws / size)).sum() < chi2.ppf(0.999, (size - 1) ** 2)
    after = np.bincount(((found[:, 1:] - found[:, :-1]) % size).reshape(-1), minlength=size)[1:]  # neighbours' distance
    expected = draws  # each of size - 1 distances, at size - 1 places
    assert ((after - expected) ** 2 / expected).sum() < chi2.ppf(0.999, size - 2)


def test_many_take_no_memory_and_a_batch_of_them_is_a_batch():
    tracemalloc.start()
    permutation = Permutation(10**12, bits(0))
    found = permutation(np.arange(10**11, 10**11 + 4096))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert len(set(found.tolist())) == 4096 and found.min() >= 0 and found.max() < 10**12
    assert abs(found.mean() / 10**12 - 0.5) < 0.02
