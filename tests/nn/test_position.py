import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.nn.position import Table, resize_grid, resize_grid_linear, rotary_frequencies, rotate, sincos_1d, sincos_2d

DRAW = np.random.default_rng(0).normal
SIDE = st.integers(1, 9)


@settings(max_examples=8)
@given(old=st.tuples(SIDE, SIDE), new=st.tuples(SIDE, SIDE))
@example(old=(7, 7), new=(14, 10))
@example(old=(9, 8), new=(4, 8))
def test_resizing_is_torchs_bicubic_interpolation(old, new):
    table = DRAW(size=(old[0] * old[1], 3)).astype(np.float32)
    grid = torch.from_numpy(table).reshape(1, *old, 3).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    resized = jax.jit(resize_grid, static_argnums=(1, 2))(table, old, new)
    np.testing.assert_allclose(resized, expected.permute(0, 2, 3, 1).reshape(-1, 3), rtol=1e-5, atol=1e-5)


@settings(max_examples=8)
@given(old=st.tuples(SIDE, SIDE), new=st.tuples(SIDE, SIDE), room=st.tuples(SIDE, SIDE))
@example(old=(7, 7), new=(14, 10), room=(1, 1))
@example(old=(9, 8), new=(1, 4), room=(1, 8))
def test_linear_resizing_is_torchs_with_corners_kept(old, new, room):
    room = tuple(max(sizes) for sizes in zip(new, room, strict=True))
    table = DRAW(size=(old[0] * old[1], 3)).astype(np.float32)
    grid = torch.from_numpy(table).reshape(1, *old, 3).permute(0, 3, 1, 2)
    expected = np.zeros((2, *room, 3))
    for row, size in enumerate([new, room]):  # each example has a size of its own
        own = torch.nn.functional.interpolate(grid, size=size, mode="bilinear", align_corners=True)
        expected[row, : size[0], : size[1]] = own[0].permute(1, 2, 0)
    sizes = [jnp.array(both) for both in zip(new, room, strict=True)]

    @jax.jit
    def both(table, sizes):
        return tuple(resize_grid_linear(table, old, room, each) for each in (sizes, new))

    resized, one = both(table, sizes)
    np.testing.assert_allclose(resized, expected.reshape(2, -1, 3), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one, resized[0], rtol=1e-5, atol=1e-5)


def test_resizing_keeps_a_constant_and_the_dtype():
    resized = resize_grid(jnp.full((12, 2), 0.5, jnp.bfloat16), (3, 4), (5, 9))
    assert resized.dtype == jnp.bfloat16
    np.testing.assert_array_equal(resized, np.full((45, 2), 0.5))
    table = jnp.ones((12, 2))
    assert resize_grid(table, (3, 4), (3, 4)) is table


def test_sines_and_cosines_by_formula():
    table = sincos_1d(5, 6)
    for t in range(5):
        for i in range(3):
            angle = t / 10000 ** (i / 3)
            np.testing.assert_allclose(table[t, i], math.sin(angle), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(table[t, i + 3], math.cos(angle), rtol=1e-6, atol=1e-7)
    assert table.dtype == np.float32


def test_two_dims_are_the_row_and_the_column():
    table = sincos_2d(3, 4, 8)
    for row in range(3):
        for column in range(4):
            expected = np.concatenate([sincos_1d(3, 4)[row], sincos_1d(4, 4)[column]])
            np.testing.assert_array_equal(table[row * 4 + column], expected)


def test_widths_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="width=5: sincos positions need an even width"):
        sincos_1d(3, 5)
    with pytest.raises(UserError, match="width=6: 2-D sincos positions need a multiple of 4"):
        sincos_2d(2, 2, 6)


@given(shift=st.integers(0, 50))
def test_rotated_products_depend_on_distance_alone(shift):
    q, k = (jnp.asarray(np.random.default_rng(i).normal(size=(1, 4, 1, 8)), jnp.float32) for i in (1, 2))
    places = jnp.arange(4)[None]

    @jax.jit
    def products(moved):
        return jnp.einsum("bthk,bshk->ts", rotate(q, places + moved), rotate(k, places + moved))

    np.testing.assert_allclose(products(shift), products(0), rtol=1e-4, atol=2e-5)


def test_rotation_keeps_lengths_and_place_zero():
    x = jnp.asarray(DRAW(size=(1, 4, 2, 8)), jnp.float32)
    y = rotate(x, jnp.arange(4)[None])
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-6)
    assert rotate(x.astype(jnp.bfloat16), jnp.arange(4)[None]).dtype == jnp.bfloat16


def test_a_pair_of_dims_turns_from_the_first_half_towards_the_second():
    places = np.arange(4)
    units = jnp.broadcast_to(jnp.eye(2)[None, None], (1, 4, 2, 2))  # of two heads, one along each of the two dims
    cos, sin = np.cos(places), np.sin(places)  # the first frequency is one radian a token
    expected = np.stack([np.stack([cos, sin], axis=1), np.stack([-sin, cos], axis=1)], axis=1)
    np.testing.assert_allclose(rotate(units, jnp.asarray(places)[None])[0], expected, atol=1e-6)


def test_frequencies_are_scaled_by_one_factor_or_by_their_turns():
    plain = rotary_frequencies(8, 1000.0)
    np.testing.assert_allclose(plain, [1000.0 ** (-i / 8) for i in range(8)], rtol=1e-12)
    np.testing.assert_allclose(rotary_frequencies(8, 1000.0, (4.0,)), plain / 4, rtol=1e-12)
    scaled = rotary_frequencies(8, 1000.0, (4.0, 1.0, 3.0, 100.0))
    for before, after in zip(plain, scaled, strict=True):
        turns = 100 * before / (2 * math.pi)
        kept = 1.0 if turns > 3 else 0.0 if turns < 1 else (turns - 1) / 2
        assert after == pytest.approx(before * kept + before / 4 * (1 - kept), rel=1e-12)
    assert scaled[0] == plain[0] and scaled[-1] == plain[-1] / 4


def test_rotation_takes_the_scaled_frequencies():
    x = jnp.asarray(DRAW(size=(1, 8, 1, 6)), jnp.float32)
    slower = rotate(x[:, ::2], 2 * jnp.arange(4)[None], scaling=(2.0,))
    np.testing.assert_allclose(slower, rotate(x[:, ::2], jnp.arange(4)[None]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ((2.0, 1.0), "rotary_scaling=.2.0, 1.0.: use .., .factor,. or"),
        ((0.0,), "rotary_scaling=.0.0,.: use .., .factor,. or"),
        ((2.0, 4.0, 4.0, 9.0), "the turns of its third value must be more than those of its second"),
    ],
)
def test_scalings_that_make_no_sense_are_refused(scaling, said):
    with pytest.raises(UserError, match=said):
        rotary_frequencies(8, 1000.0, scaling)


def test_a_table_gives_one_row_an_id():
    table = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(
        Table(4, 3).apply({"params": {"table": table}}, jnp.array([[3, 0]])), table[None, jnp.array([3, 0])]
    )
