import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch import torch

from mmjax.nn.linear import Linear, fan_in_init

DRAW = np.random.default_rng(0).normal


def array(*shape):
    return DRAW(size=shape).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs_linear(bias):
    layer = torch.nn.Linear(5, 7, bias=bias)
    x = array(2, 3, 5)
    params = {"kernel": layer.weight.detach().numpy().T}
    if bias:
        params["bias"] = layer.bias.detach().numpy()
    y = Linear(7, use_bias=bias).apply({"params": params}, x)
    np.testing.assert_allclose(y, layer(torch.from_numpy(x)).detach(), rtol=1e-5, atol=1e-6)


def test_several_dims_out():
    x, kernel, bias = array(2, 3, 5), array(5, 4, 6), array(4, 6)
    y = Linear((4, 6)).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, np.einsum("btd,dhk->bthk", x, kernel) + bias, rtol=1e-5, atol=1e-5)


def test_several_dims_in():
    x, kernel, bias = array(2, 3, 4, 6), array(4, 6, 5), array(5)
    y = Linear(5, axes=2).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, np.einsum("bthk,hkd->btd", x, kernel) + bias, rtol=1e-5, atol=1e-5)


def test_parameters_are_float32_and_computation_follows_the_input():
    x = jnp.ones((2, 5), jnp.bfloat16)
    params = Linear(7).init(jax.random.key(0), x)["params"]
    assert {name: (p.shape, p.dtype) for name, p in params.items()} == {
        "kernel": ((5, 7), jnp.float32),
        "bias": ((7,), jnp.float32),
    }
    assert Linear(7).apply({"params": params}, x).dtype == jnp.bfloat16


def test_float32_keeps_the_sums_of_narrow_products():
    x, kernel, bias = (jnp.asarray(array(*shape), jnp.bfloat16) for shape in ((2, 3, 4, 6), (4, 6, 5), (5,)))
    params = {"kernel": kernel, "bias": bias}
    y = Linear(5, axes=2, float32=True).apply({"params": params}, x)
    expected = np.einsum("bthk,hkd->btd", *(np.asarray(a, np.float64) for a in (x, kernel))) + np.asarray(bias, np.float64)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - np.asarray(jnp.asarray(expected, jnp.bfloat16), np.float64)).max() > 1e-3


def test_no_gradient_of_a_frozen_kernel_is_formed():
    x, params = jnp.ones((2, 3, 5), jnp.bfloat16), {"kernel": jnp.ones((5, 7)), "bias": jnp.ones(7)}

    def loss(x, bias, kernel):
        return Linear(7).apply({"params": {"kernel": kernel, "bias": bias}}, x).astype(jnp.float32).sum()

    def products(*wanted):
        return str(jax.make_jaxpr(jax.grad(loss, wanted))(x, params["bias"], params["kernel"])).count("dot_general")

    assert (products(1), products(0, 1), products(1, 2), products(0, 1, 2)) == (1, 2, 2, 3)


@pytest.mark.parametrize(("axes", "shape", "fan_in"), [(1, (64, 8, 16), 64), (2, (8, 16, 64), 128)])
def test_the_initial_variance_is_one_over_the_fan_in(axes, shape, fan_in):
    kernel = np.asarray(fan_in_init(axes)(jax.random.key(0, impl="unsafe_rbg"), shape))
    np.testing.assert_allclose(kernel.std(), fan_in**-0.5, rtol=0.02)
    assert abs(kernel.mean()) < 3 * kernel.std() / kernel.size**0.5
    assert abs(kernel).max() <= 2 * fan_in**-0.5 / 0.87962566
