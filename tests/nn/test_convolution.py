import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.nn.convolution import Convolution, max_pool

X = np.random.default_rng(0).normal(size=(2, 9, 8, 4)).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups", "use_bias"),
    [((3, 3), (2, 2), (1, 1), 1, False), ((7, 7), (1, 1), (3, 3), 4, True), ((2, 3), (2, 1), (0, 1), 2, True)],
)
def test_a_convolution_and_its_gradient_are_torchs(kernel, stride, padding, groups, use_bias):
    layer = Convolution(8, kernel, stride, padding, groups, use_bias)
    params = layer.init(jax.random.key(0), X)["params"]
    if use_bias:
        params["bias"] = jnp.arange(8, dtype=jnp.float32)
    y, gradient = jax.jit(jax.value_and_grad(lambda p: jnp.sum(layer.apply({"params": p}, X) ** 2)))(params)
    weight = torch.from_numpy(np.array(params["kernel"]).transpose(3, 2, 0, 1)).requires_grad_()
    bias = torch.from_numpy(np.array(params["bias"])) if use_bias else None
    theirs = torch.nn.functional.conv2d(channels_first(X), weight, bias, stride, padding, groups=groups)
    (theirs**2).sum().backward()
    ours = layer.apply({"params": params}, X)
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs.detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(gradient["kernel"]).transpose(3, 2, 0, 1), weight.grad, rtol=1e-4, atol=1e-3)
    places = theirs[0, 0].numel() * len(X)
    assert count_flops(lambda p: layer.apply({"params": p}, X), params) == 2 * places * params["kernel"].size


def test_its_kernel_begins_as_he_has_it():
    kernel = Convolution(64, (5, 5)).init(jax.random.key(0), jnp.zeros((1, 5, 5, 16)))["params"]["kernel"]
    assert abs(float(kernel.std()) / (2 / (25 * 64)) ** 0.5 - 1) < 0.02


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 1), (2, 2, 0)])
def test_the_largest_of_each_window_is_torchs(window, stride, padding):
    x = X - 5.0  # padding by 0 would show
    theirs = torch.nn.functional.max_pool2d(channels_first(x), window, stride, padding)
    np.testing.assert_array_equal(np.moveaxis(max_pool(x, window, stride, padding), -1, 1), theirs)
    assert max_pool(jnp.asarray(x, jnp.bfloat16), window, stride, padding).dtype == jnp.bfloat16


def test_what_cannot_be_convolved_is_refused():
    with pytest.raises(UserError, match="groups=3 of a convolution divides neither or one of 4 and 8"):
        Convolution(8, groups=3).init(jax.random.key(0), X)
    with pytest.raises(UserError, match="of 9 x 8 is smaller than a window of 10 x 3: use larger images"):
        Convolution(8, (10, 3)).init(jax.random.key(0), X)
    with pytest.raises(UserError, match="of 9 x 8 is smaller than a window of 9 x 9"):
        max_pool(X, 9, 1, 0)
