"""Blocks and shares: every record once an epoch, as often as its weight says, and close together where blocks are."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.order import Bits, Order
from mmjax.data.turns import PERIOD, Blocks, InTurn, Shares, Shuffled, Stored, whole_weights
from mmjax.data.types import Share

SIZES = np.array([3, 0, 5, 1, 4, 7, 2], np.int64)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    window=st.integers(1, 14),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 10**9),
)
def test_an_epoch_of_blocks_has_each_record_once_and_so_many_blocks_at_a_time(sizes, window, seed, epoch):
    sizes = np.array(sizes, np.int64)
    turn, size = Blocks(sizes, window, Bits(seed, "order")), int(sizes.sum())
    found = turn.at(np.arange(epoch * size, (epoch + 1) * size))
    assert sorted(found.tolist()) == list(range(size))
    block = np.searchsorted(np.cumsum(sizes), found, side="right")
    met = list(dict.fromkeys(block.tolist()))  # in the order of their first record
    place = 0
    while place < size:  # a window ends where no block of it has a record left
        own = set(met[:window])
        count = int(sizes[list(own)].sum())
        if len(met) >= window and 0 not in sizes:
            assert set(block[place : place + count].tolist()) == own
        met, place = met[window:], place + count


def test_any_stretch_of_blocks_is_part_of_the_same_stream():
    turn = Blocks(SIZES, 2, Bits(3, "order"))
    whole = turn.at(np.arange(100))
    for start in (0, 1, 21, 22, 43, 60):
        np.testing.assert_array_equal(Blocks(SIZES, 2, Bits(3, "order")).at(np.arange(start, 100)), whole[start:])
    again = pickle.loads(pickle.dumps(turn))
    assert not again._kept
    np.testing.assert_array_equal(again.at(np.arange(100)), whole)
    assert whole[:22].tolist() != whole[22:44].tolist()


def test_the_stored_order_is_what_it_was():
    """The permutation of runs from before: numpy's of all records, by the same bits."""
    bits = Bits(5, "order")
    expected = np.concatenate([np.random.Generator(bits(epoch)).permutation(50) for epoch in range(3)])
    np.testing.assert_array_equal(Stored(50, bits).at(np.arange(150)), expected)


def shares(weights, sizes):
    starts = np.cumsum([0, *sizes])
    return [
        Share(str(i), weight, range(int(start), int(start) + size))
        for i, (weight, start, size) in enumerate(zip(weights, starts, sizes, strict=False))
    ]


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.1, 0.25, 1.0, 2.0, 3.0, 7.5, 1 / 3]), min_size=1, max_size=5),
    start=st.integers(0, 10**6),
)
def test_over_any_stretch_a_share_has_what_its_weight_says(weights, start):
    sizes = [5 + i for i in range(len(weights))]
    own = shares(weights, sizes)
    turn = Shares(own, [InTurn(size) for size in sizes])
    found = turn.at(np.arange(start, start + 400))
    ends = np.cumsum(sizes)
    for length in (1, 10, 100, 400):
        counts = np.bincount(np.searchsorted(ends, found[:length], side="right"), minlength=len(weights))
        expected = length * np.array(weights) / sum(weights)
        assert np.abs(counts - expected).max() <= 1 + len(weights)
    period = sum(whole_weights(weights))
    if period < 400:
        counts = np.bincount(np.searchsorted(ends, found[:period], side="right"), minlength=len(weights))
        assert counts.tolist() == whole_weights(weights)


def test_each_share_is_read_in_its_own_order_whatever_the_others():
    a = Shuffled(10, Bits(0, "a"))
    alone = a.at(np.arange(60))
    for weights in ((3.0, 1.0), (1.0, 5.0), (0.5, 0.5)):
        found = Shares(shares(weights, (10, 4)), [a, Shuffled(4, Bits(0, "b"))]).at(np.arange(400))
        np.testing.assert_array_equal(found[found < 10][:60], alone)


def test_weights_are_taken_as_they_are_written():
    assert whole_weights([0.1, 0.3]) == [1, 3] and whole_weights([1 / 3, 2 / 3]) == [1, 2] and whole_weights([4.0]) == [1]
    near = whole_weights([0.123456789, 0.876543211])
    assert sum(near) <= PERIOD and near[0] / sum(near) == pytest.approx(0.123456789, abs=2e-6)


def test_another_of_the_same_share_stands_in():
    class Two:
        def __len__(self):
            return 14

        def shares(self):
            return shares((1.0, 9.0), (10, 4))

    order = Order.of(Two(), 0, True)
    assert {order.replacement(2, attempt) for attempt in range(200)} == set(range(10))
    assert {order.replacement(12, attempt) for attempt in range(200)} == {10, 11, 12, 13}
