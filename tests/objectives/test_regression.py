"""Regression against PyTorch's losses, and what does not count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.core.types import Loss
from mmjax.objectives import Regression
from mmjax.objectives.regression import gaussian_nll

TORCH = {
    "squared": lambda x, y, delta: torch.nn.functional.mse_loss(x, y),
    "absolute": lambda x, y, delta: torch.nn.functional.l1_loss(x, y),
    "huber": lambda x, y, delta: torch.nn.functional.huber_loss(x, y, delta=delta),
}


class Given:
    """A forward whose head gives what the batch says."""

    train = False

    def __init__(self, batch):
        self.batch = batch

    def view(self, key):
        return self.batch[key]

    def head(self, head, tokens=None, key=""):
        return self.batch[f"logits_{head}"]


@functools.partial(jax.jit, static_argnums=0)
def run(objective, batch) -> Loss:
    return objective(Given(batch), batch, jax.random.key(0))


def batch(shape=(6,), last=(1,), seed=0):
    rng = np.random.default_rng(seed)
    logits, target = (rng.normal(scale=2.0, size=size).astype(np.float32) for size in ((*shape, *last), shape))
    return {"logits_value": logits, "value": target}


@pytest.mark.parametrize("loss", TORCH)
@pytest.mark.parametrize(("shape", "last"), [((6,), (1,)), ((6,), ()), ((4, 3), ()), ((2, 4, 5), (1,)), ((2, 4, 5), ())])
def test_the_mean_is_pytorchs(loss, shape, last):
    given = batch(shape, last)
    found = run(Regression(loss=loss, delta=0.7), given)
    predicted, target = torch.tensor(given["logits_value"].reshape(shape)), torch.tensor(given["value"])
    assert found.count == target.numel()
    np.testing.assert_allclose(found.sum / found.count, TORCH[loss](predicted, target, 0.7), rtol=1e-6)
    absolute, count = found.metrics["absolute_error"]
    np.testing.assert_allclose(absolute / count, TORCH["absolute"](predicted, target, 0.7), rtol=1e-6)


@given(unknown=st.lists(st.booleans(), min_size=6, max_size=6), valid=st.lists(st.booleans(), min_size=6, max_size=6))
@pytest.mark.parametrize("loss", TORCH)
def test_what_is_nan_or_padding_counts_as_if_it_were_not_there(loss, unknown, valid):
    given, lost, kept = batch((6, 2), ()), np.array(unknown), np.array(valid)
    given["value"][lost, 0] = np.nan
    given["logits_value"][~kept] = 1e9
    found = run(Regression(loss=loss), given | {"valid": kept})
    counts = kept[:, None] & np.isfinite(given["value"])
    assert int(found.count) == counts.sum()
    predicted, target = (torch.tensor(given[key][counts]) for key in ("logits_value", "value"))
    expected = TORCH[loss](predicted, target, 1.0) * counts.sum() if counts.any() else 0.0
    np.testing.assert_allclose(found.sum, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", TORCH)
def test_the_gradient_is_pytorchs_and_none_where_the_number_is_not_known(loss):
    given = batch()
    given["value"][[1, 4]] = np.nan

    def total(logits):
        return run(Regression(loss=loss, delta=0.7), given | {"logits_value": logits}).sum

    found = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(given["logits_value"])))
    known = np.isfinite(given["value"])
    predicted = torch.tensor(given["logits_value"][known, 0], requires_grad=True)
    (TORCH[loss](predicted, torch.tensor(given["value"][known]), 0.7) * int(known.sum())).backward()
    np.testing.assert_allclose(found[known, 0], predicted.grad, rtol=1e-6)
    assert (found[~known] == 0).all()


@pytest.mark.parametrize(("shape", "last"), [((6,), (2,)), ((4, 3), (2,)), ((2, 4, 5), (2,)), ((4, 3), ())])
def test_a_likelihood_of_mean_and_variance_is_pytorchs_with_its_gradient(shape, last):
    """Some variances are below the floor; [4, 6] are 3 means and 3 variances."""
    given = batch(shape, last)
    if not last:
        given["logits_value"] = batch((4, 6), ())["logits_value"]
    given["value"][1] = np.nan
    objective, known = Regression(loss="gaussian_nll", floor=0.5), np.isfinite(given["value"])
    logits = torch.tensor(given["logits_value"].astype(np.float64), requires_grad=True)
    mean, log_variance = (logits[..., 0], logits[..., 1]) if last else (logits[:, :3], logits[:, 3:])
    assert (log_variance[known] < np.log(0.5)).any() and (log_variance[known] > np.log(0.5)).any()
    target = torch.tensor(given["value"].astype(np.float64))
    theirs = torch.nn.GaussianNLLLoss(eps=0.5, reduction="sum")
    expected = theirs(mean[known], target[known], torch.exp(log_variance)[known])
    expected.backward()

    def total(logits):
        return run(objective, given | {"logits_value": logits}).sum

    found, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(given["logits_value"]))
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logits.grad, rtol=1e-5, atol=1e-6)
    loss = run(objective, given)
    assert int(loss.count) == int(loss.metrics["absolute_error"][1]) == known.sum()
    absolute = np.abs(mean.detach().numpy() - given["value"])[known].sum()
    np.testing.assert_allclose(loss.metrics["absolute_error"][0], absolute, rtol=1e-5)


@given(log_variance=st.floats(-1e4, 80, width=32), error=st.floats(-1e3, 1e3, width=32))
def test_a_likelihood_and_its_gradient_are_finite_whatever_the_variance(log_variance, error):
    found = jax.value_and_grad(lambda x: gaussian_nll(jnp.float32(error), x))(jnp.float32(log_variance))
    assert np.isfinite(found).all()


def test_a_likelihood_adds_up_over_parts_and_devices():
    given = batch((8,), (2,))
    given["value"][[1, 4]] = np.nan
    objective, first = Regression(loss="gaussian_nll"), np.arange(8) < 3
    whole, parts = run(objective, given), [run(objective, given | {"valid": rows}) for rows in (first, ~first)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = run(objective, jax.device_put(given, NamedSharding(mesh, PartitionSpec("data"))))
    for other in (jax.tree.map(lambda a, b: a + b, *parts), split):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other, whole)


def test_a_likelihood_needs_two_logits_for_each_number():
    for logits, target, own in (((6, 1), (6,), "gives 1 and 'value' is one an"), ((6, 3), (6, 3), "gives 3 and 'value' is 3")):
        given = {"logits_value": jnp.zeros(logits), "value": jnp.zeros(target)}
        with pytest.raises(UserError, match=f"head='value' {own}.*: loss='gaussian_nll' needs two logits for each number"):
            jax.eval_shape(functools.partial(run, Regression(loss="gaussian_nll")), given)
    with pytest.raises(UserError, match=r"regression\.floor=0\.0: use a number above 0"):
        Regression(loss="gaussian_nll", floor=0.0)


def test_a_narrow_prediction_is_compared_in_float32():
    given = batch() | {"value": np.full(6, 1000.5, np.float32)}
    found = run(Regression(loss="absolute"), given | {"logits_value": jnp.full((6, 1), 1000, jnp.bfloat16)})
    assert found.sum.dtype == jnp.float32 and found.sum == 6 * 0.5


def test_whole_numbers_are_a_target_too():
    given = batch() | {"value": np.arange(6, dtype=np.int32)}
    found = run(Regression(), given)
    np.testing.assert_allclose(found.sum, np.square(given["logits_value"][:, 0] - np.arange(6)).sum(), rtol=1e-6)


def test_head_and_target_are_fields():
    given = batch()
    other = {"logits_price": given["logits_value"], "cost": given["value"]}
    objective = Regression(head="price", target="cost")
    assert objective.needs == ("cost",)
    np.testing.assert_array_equal(run(objective, other).sum, run(Regression(), given).sum)


@pytest.mark.parametrize(
    ("logits", "target", "said"),
    [
        ((6, 2), (6,), "gives 2 and 'value' is one an example"),
        ((6, 1), (6, 3), "gives 1 and 'value' is 3"),
        ((6, 4, 5, 2), (6, 4, 5), "gives 4x5x2 and 'value' is 4x5"),
        ((6, 1), (6, 1, 1), "gives 1 and 'value' is 1x1"),
    ],
)
def test_another_number_of_logits_than_numbers_is_refused_with_both(logits, target, said):
    given = {"logits_value": jnp.zeros(logits), "value": jnp.zeros(target)}
    with pytest.raises(UserError, match=f"head='value' {said}: a regression needs one logit for each number"):
        jax.eval_shape(functools.partial(run, Regression()), given)


def test_unknown_fields_are_refused():
    with pytest.raises(UserError, match=r"regression\.loss='squard'.*did you mean 'squared'"):
        Regression(loss="squard")
    with pytest.raises(UserError, match=r"regression\.delta=0"):
        Regression(loss="huber", delta=0.0)
