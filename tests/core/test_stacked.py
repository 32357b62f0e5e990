"""A stacked parameter in parts against the array that the parts make."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.stacked import Stacked, is_stacked, joined, layers_of, segments

WHOLE = np.arange(24.0).reshape(8, 3)


def parted(*edges):
    return Stacked(tuple(WHOLE[a:b] for a, b in zip((0, *edges), (*edges, 8), strict=True)))


@given(st.sets(st.integers(1, 7)), st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda r: r[0] < r[1]))
def test_layers_are_those_of_the_array(edges, run):
    np.testing.assert_array_equal(layers_of(parted(*sorted(edges)), run), WHOLE[slice(*run)])
    np.testing.assert_array_equal(layers_of(WHOLE, run), WHOLE[slice(*run)])


def test_each_part_knows_its_layers():
    assert [run for run, _ in parted(2, 3).runs()] == [(0, 2), (2, 3), (3, 8)]


def test_segments_end_where_any_parameter_passes_to_its_next_part():
    tree = {"a": parted(2, 6), "b": parted(3), "c": WHOLE}
    assert segments(tree, 8) == [(0, 2), (2, 3), (3, 6), (6, 8)]
    assert segments(tree, 5) == [(0, 2), (2, 3), (3, 5)]
    assert segments({"c": WHOLE}, 8) == [(0, 8)] and segments({}, 8) == [(0, 8)]


def test_the_parts_are_its_leaves():
    assert len(jax.tree.leaves({"a": parted(2, 6)})) == 3
    assert [is_stacked(leaf) for leaf in jax.tree.leaves({"a": parted(2)}, is_leaf=is_stacked)] == [True]
    doubled = jax.tree.map(lambda x: 2 * x, parted(2))
    np.testing.assert_array_equal(joined(doubled.parts), 2 * WHOLE)


def test_one_part_is_not_copied_and_host_arrays_stay_on_the_host():
    assert joined([WHOLE]) is WHOLE
    assert isinstance(joined([WHOLE, WHOLE]), np.ndarray)
