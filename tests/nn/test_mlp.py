import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch import functional as F  # noqa: N812
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.nn.activation import ACTIVATIONS, activation
from mmjax.nn.mlp import Mlp, dropout

DRAW = np.random.default_rng(0).normal
X = DRAW(size=(2, 3, 4)).astype(np.float32)
PARAMS = {
    name: {"kernel": DRAW(size=shape).astype(np.float32), "bias": DRAW(size=shape[1]).astype(np.float32)}
    for name, shape in {"up": (4, 6), "gate": (4, 6), "down": (6, 4)}.items()
}
TORCH = {
    "linear": lambda x: x,
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": lambda x: F.relu(x),
    "silu": lambda x: F.silu(x),
    "tanh": lambda x: torch.tanh(x),
}


def torch_linear(x, name):
    return x @ torch.from_numpy(PARAMS[name]["kernel"]) + torch.from_numpy(PARAMS[name]["bias"])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torchs(name):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(activation(name)(jnp.asarray(x)), TORCH[name](torch.from_numpy(x)), rtol=1e-5, atol=1e-6)
    assert activation(name)(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_an_unknown_activation_is_refused():
    with pytest.raises(UserError, match="activation='gleu': use one of gelu, "):
        activation("gleu")


def test_the_plain_layer():
    y = Mlp(6, "relu").apply({"params": {name: PARAMS[name] for name in ("up", "down")}}, X)
    expected = torch_linear(F.relu(torch_linear(torch.from_numpy(X), "up")), "down")
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_the_gated_layer():
    x = torch.from_numpy(X)
    expected = torch_linear(F.silu(torch_linear(x, "gate")) * torch_linear(x, "up"), "down")
    np.testing.assert_allclose(Mlp(6, "swiglu").apply({"params": PARAMS}, X), expected, rtol=1e-5, atol=1e-5)


class Drop(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x):
        return dropout(self, x, self.rate)


def test_dropout_zeroes_at_its_rate_and_keeps_the_expectation():
    y = np.asarray(Drop(0.3).apply({}, jnp.ones((400, 400)), rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_allclose((y == 0).mean(), 0.3, atol=0.005)
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    np.testing.assert_allclose(y.mean(), 1.0, atol=0.01)


def test_dropout_is_off_without_a_key_and_at_rate_zero():
    x = jnp.asarray(X)
    assert Drop(0.3).apply({}, x) is x
    assert Drop(0.0).apply({}, x, rngs={"dropout": jax.random.key(0)}) is x


def test_dropout_keeps_bfloat16():
    assert Drop(0.3).apply({}, jnp.ones(8, jnp.bfloat16), rngs={"dropout": jax.random.key(0)}).dtype == jnp.bfloat16
