import zlib

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.random import example_keys, example_uniform, fold_name


def bits(key):
    return jax.random.key_data(key).tolist()


def test_a_names_key_is_its_checksum_folded_in():
    key = jax.random.key(3)
    assert bits(fold_name(key, "caption")) == bits(jax.random.fold_in(key, zlib.crc32(b"caption") & 0x7FFFFFFF))


def test_names_and_keys_give_different_streams():
    keys = [fold_name(jax.random.key(seed), name) for seed in (0, 1) for name in ("a", "b", "ab", "")]
    assert len({tuple(bits(key)) for key in keys}) == len(keys)


def test_an_examples_draw_depends_on_its_index_alone():
    key = jax.random.key(0)
    whole = example_uniform(key, jnp.arange(8), (3,))
    shuffled = jnp.array([5, 2, 7])
    np.testing.assert_array_equal(example_uniform(key, shuffled, (3,)), whole[shuffled])
    np.testing.assert_array_equal(whole[4], jax.random.uniform(jax.random.fold_in(key, 4), (3,)))


def test_draws_are_uniform():
    draws = np.asarray(example_uniform(jax.random.key(0), jnp.arange(4000)))
    assert draws.dtype == np.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose([draws.mean(), draws.var()], [1 / 2, 1 / 12], atol=0.01)


def test_example_keys_are_one_a_row():
    keys = example_keys(jax.random.key(0), jnp.array([3, 3, 4]))
    assert keys.shape == (3,)
    assert bits(keys[0]) == bits(keys[1]) != bits(keys[2])
