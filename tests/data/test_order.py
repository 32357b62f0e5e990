"""The order of the stream and the numbers of a place, as pure functions of (seed, position)."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.order import Draws, Order


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 30), seed=st.integers(0, 2**40), start=st.integers(0, 100), count=st.integers(0, 100))
def test_any_stretch_is_part_of_the_same_stream(size, seed, start, count):
    whole = Order(size, seed, True).indices(0, start + count)
    assert Order(size, seed, True).indices(start, start + count) == whole[start:]
    for epoch in range((start + count) // size):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ():
    order = Order(50, 0, True)
    assert order.indices(0, 50) != order.indices(50, 100)
    assert order.indices(0, 50) != Order(50, 1, True).indices(0, 50)
    assert Order(5, 0, False).indices(3, 12) == [3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_far_away_costs_nothing_and_pickling_keeps_the_order():
    order = Order(7, 3, True)
    far = 7 * 10**12
    assert sorted(order.indices(far, far + 7)) == list(range(7))
    assert pickle.loads(pickle.dumps(order)).indices(3, 30) == order.indices(3, 30)


def test_replacements_are_fixed_and_spread():
    order = Order(100, 0, True)
    found = [order.replacement(5, attempt) for attempt in range(20)]
    assert found == [Order(100, 0, True).replacement(5, attempt) for attempt in range(20)]
    assert len(set(found)) > 12 and found != [order.replacement(6, attempt) for attempt in range(20)]


def test_draws_depend_on_the_place_alone():
    there, back = Draws(0, "train"), Draws(0, "train")
    first = {place: there.at(place).random(3).tolist() for place in range(20)}
    there.at(4).integers(10)  # half a 64-bit number is left over, and must not reach the next place
    for place in reversed(range(20)):
        assert back.at(place).random(3).tolist() == first[place] == there.at(place).random(3).tolist()
    assert len({tuple(numbers) for numbers in first.values()}) == 20
    assert Draws(0, "pass").at(0).random() != Draws(0, "train").at(0).random() != Draws(1, "train").at(0).random()


def test_draws_are_uniform_across_places():
    draws = Draws(0, "train")
    numbers = np.array([draws.at(place).random() for place in range(4000)])
    assert np.mean(numbers) == pytest.approx(0.5, abs=0.02) and np.var(numbers) == pytest.approx(1 / 12, abs=0.004)
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.04
