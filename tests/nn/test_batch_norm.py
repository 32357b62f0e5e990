import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.nn.batch_norm import BatchNorm, GroupNorm

X = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 3, 5, 6)).astype(np.float32)
LAYER = BatchNorm()


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def drawn():
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=6).astype(np.float32) for name in ("scale", "bias")}
    kept = {"mean": rng.normal(size=6), "variance": rng.uniform(0.5, 2.0, size=6)}
    return params, {name: x.astype(np.float32) for name, x in kept.items()} | {"batches": np.int32(3)}


def torchs(params, kept):
    theirs = torch.nn.BatchNorm2d(6)
    theirs.load_state_dict(
        {
            "weight": torch.from_numpy(params["scale"]),
            "bias": torch.from_numpy(params["bias"]),
            "running_mean": torch.from_numpy(kept["mean"]),
            "running_var": torch.from_numpy(kept["variance"]),
            "num_batches_tracked": torch.tensor(int(kept["batches"])),
        }
    )
    return theirs


@jax.jit
def train(params, kept, x, valid=None):
    y, made = LAYER.apply({"params": params, "statistics": kept}, x, valid, mutable=["statistics"])
    return y, made["statistics"]


def test_training_and_evaluation_are_torchs():
    params, kept = drawn()
    theirs = torchs(params, kept)
    for shift in (0.0, 1.0):
        y, kept = train(params, kept, X + np.float32(shift))
        np.testing.assert_allclose(np.moveaxis(y, -1, 1), theirs(channels_first(X + shift)).detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kept["mean"], theirs.running_mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kept["variance"], theirs.running_var, rtol=1e-6)
    assert int(kept["batches"]) == int(theirs.num_batches_tracked) == 5
    y = LAYER.apply({"params": params, "statistics": kept}, X)
    np.testing.assert_allclose(np.moveaxis(y, -1, 1), theirs.eval()(channels_first(X)).detach(), rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_count_are_in_no_statistic():
    params, kept = drawn()
    other = X.copy()
    other[1] = 1e3
    valid = np.array([True, False, True, True])
    y, found = train(params, kept, other, valid)
    alone, expect = train(params, kept, np.delete(X, 1, axis=0))
    np.testing.assert_allclose(np.delete(y, 1, axis=0), alone, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expect)
    y, found = train(params, kept, other, np.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, found, kept)
    assert np.isfinite(y).all()


def test_bfloat16_is_normalised_in_float32():
    params, kept = drawn()
    y, found = train(params, kept, jnp.asarray(X * 0.01 + 3.0, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and found["mean"].dtype == jnp.float32
    exact, _ = train(params, kept, jnp.asarray(X * 0.01 + 3.0, jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_one_value_a_channel_is_refused_in_training():
    params, kept = drawn()
    with pytest.raises(UserError, match=r"norm='batch': an input of shape \(1, 1, 1, 6\) has one value a channel"):
        train(params, kept, X[:1, :1, :1])


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_torchs(groups):
    params, _ = drawn()
    y = GroupNorm(groups, 1e-3).apply({"params": params}, X)
    weights = [torch.from_numpy(params[name]) for name in ("scale", "bias")]
    theirs = torch.nn.functional.group_norm(channels_first(X), groups, *weights, 1e-3)
    np.testing.assert_allclose(np.moveaxis(y, -1, 1), theirs, rtol=1e-5, atol=1e-5)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="groups=4 of norm='group' does not divide width=6"):
        GroupNorm(4).init(jax.random.key(0), X)
