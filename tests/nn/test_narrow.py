import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.nn.linear import Linear
from mmjax.nn.narrow import SCALE, quantised, widened


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**16))
def test_each_number_is_off_by_half_a_step_at_most_and_the_largest_of_an_output_by_nothing(size, outputs, seed):
    kernel = np.random.default_rng(seed).normal(size=(2, size, 3, outputs)).astype(np.float32)
    whole, scale = quantised(kernel, (1, 2))
    assert whole.dtype == np.int8 and scale.shape == (2, outputs) and scale.dtype == np.float32
    back = widened(whole, scale, True)
    assert (np.abs(back - kernel) <= 0.5001 * scale[:, None, None]).all()
    np.testing.assert_allclose(np.abs(back).max((1, 2)), np.abs(kernel).max((1, 2)), rtol=3e-7)
    again = quantised(back, (1, 2))
    assert (again[0] == whole).all()


def test_a_kernel_of_zeros_stays_one():
    whole, scale = quantised(np.zeros((3, 2), np.float32), (0,))
    assert not widened(whole, scale, False).any() and np.isfinite(scale).all()


def test_a_device_makes_of_it_what_the_host_does():
    kernel = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    for host, device in zip(quantised(kernel, (0,)), quantised(jnp.asarray(kernel), (0,)), strict=True):
        np.testing.assert_allclose(host, device, rtol=1e-6)


@pytest.mark.parametrize("axes, features", [(1, 5), (1, (2, 3)), (2, 4)])
@pytest.mark.parametrize("dtype, close", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_a_layer_gives_what_the_widened_kernel_would(axes, features, dtype, close):
    layer = Linear(features, axes=axes)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4)), dtype)
    params = layer.init(jax.random.key(0), x.astype(jnp.float32))["params"]
    whole, scale = quantised(params["kernel"], tuple(range(axes)))
    narrow = {"kernel": whole, SCALE: scale, "bias": params["bias"] + 1}
    wide = {"kernel": widened(whole, scale, False), "bias": params["bias"] + 1}
    own, other = (layer.apply({"params": tree}, x) for tree in (narrow, wide))
    assert own.dtype == x.dtype
    np.testing.assert_allclose(own.astype(jnp.float32), other.astype(jnp.float32), rtol=close, atol=close)
    one, two = (jax.grad(lambda x, tree=tree: layer.apply({"params": tree}, x).sum())(x) for tree in (narrow, wide))
    np.testing.assert_allclose(one.astype(jnp.float32), two.astype(jnp.float32), rtol=close, atol=close)
