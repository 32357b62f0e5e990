import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.nn.norm import Norm, ResponseNorm

X, SCALE, BIAS = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((2, 3, 8), (8,), (8,)))


SIZES = pytest.mark.parametrize("size", [1.0, 1e-3])  # in the second, the epsilon outweighs the variance


@SIZES
def test_layernorm_is_torchs(size):
    x = np.float32(size) * X
    y = Norm("layernorm", 1e-5).apply({"params": {"scale": SCALE, "bias": BIAS}}, x)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x), (8,), *map(torch.from_numpy, (SCALE, BIAS)), 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@SIZES
def test_rmsnorm_is_torchs(size):
    x = np.float32(size) * X
    y = Norm("rmsnorm", 1e-5).apply({"params": {"scale": SCALE}}, x)
    expected = torch.nn.functional.rms_norm(torch.from_numpy(x), (8,), torch.from_numpy(SCALE), 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_rmsnorm_has_no_bias():
    assert list(Norm("rmsnorm").init(jax.random.key(0), X)["params"]) == ["scale"]


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_bfloat16_is_normalised_in_float32(kind):
    x = jnp.asarray(X * 0.01 + 3.0, jnp.bfloat16)
    params = Norm(kind).init(jax.random.key(0), x)
    y = Norm(kind).apply(params, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, Norm(kind).apply(params, x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_a_constant_row_has_a_finite_value_and_gradient():
    params = Norm().init(jax.random.key(0), X)
    y, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(Norm().apply(params, x)[0] ** 2)))(jnp.ones((1, 8)))
    assert float(y) == 0.0
    assert np.isfinite(gradient).all()


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="norm='batchnorm': use one of layernorm, rmsnorm"):
        Norm("batchnorm").init(jax.random.key(0), X)


def test_the_response_norm_is_algorithm_1s_and_finite_where_nothing_responds():
    scale, bias = SCALE, BIAS
    y = ResponseNorm().apply({"params": {"scale": scale, "bias": bias}}, X)
    length = np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(
        y, scale * (X * length / (length.mean(-1, keepdims=True) + 1e-6)) + bias + X, rtol=1e-5, atol=1e-6
    )
    params = ResponseNorm().init(jax.random.key(0), X)
    np.testing.assert_array_equal(ResponseNorm().apply(params, X), X)
    gradient = jax.grad(lambda x: jnp.sum(ResponseNorm().apply({"params": {"scale": scale, "bias": bias}}, x)))
    assert np.isfinite(gradient(jnp.zeros((2, 3, 8)))).all()
