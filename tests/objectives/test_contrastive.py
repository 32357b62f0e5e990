import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import embedded, fake_batch, fake_params, run
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from pytorch import torch

from mmjax.objectives.contrastive import Contrastive, sigmoid_loss, softmax_loss

LOSSES = [jax.jit(loss, static_argnums=3) for loss in (softmax_loss, sigmoid_loss)]


def parts(batch):
    """The objective's ingredients in float64: logits without bias, and the bias."""
    params = fake_params()
    a, b = (np.asarray(x, np.float64) for x in embedded(batch, params))
    return np.exp(float(params["scale"])) * a @ b.T, float(params["bias"])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_is_clip(smoothing):
    batch = fake_batch()
    logits, labels = torch.tensor(parts(batch)[0]), torch.arange(8)
    there, back = (torch.nn.functional.cross_entropy(x, labels, label_smoothing=smoothing) for x in (logits, logits.T))
    loss = run(Contrastive(label_smoothing=smoothing), batch)
    np.testing.assert_allclose(loss.sum / loss.count, (there + back) / 2, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["image_to_text_accuracy"][0], (logits.argmax(1) == labels).sum())
    np.testing.assert_allclose(loss.metrics["text_to_image_accuracy"][0], (logits.argmax(0) == labels).sum())


def test_softmax_averages_over_positives():
    groups = [3, 1, 3, 8, 3, 1, 0, 0]
    batch = fake_batch() | {"group": jnp.array(groups, jnp.int32)}
    logits = parts(batch)[0]
    expected = 0.0
    for scores in (logits, logits.T):
        for i in range(8):
            positives = [j for j in range(8) if groups[j] == groups[i]]
            share = [scores[i, p] - np.log(np.exp(scores[i]).sum()) for p in positives]
            expected -= 0.5 * np.mean(share)
    np.testing.assert_allclose(run(Contrastive(), batch).sum, expected, rtol=1e-5)


@pytest.mark.parametrize("groups", [None, [3, 1, 3, 8, 3, 1, 0, 0]])
def test_sigmoid_is_siglip(groups):
    batch = fake_batch() | ({} if groups is None else {"group": jnp.array(groups, jnp.int32)})
    logits, bias = parts(batch)
    expected = 0.0
    for i in range(8):
        for j in range(8):
            z = 1 if i == j or (groups and groups[i] == groups[j]) else -1
            expected += np.log1p(np.exp(-z * (logits[i, j] + bias)))
    loss = run(Contrastive("sigmoid"), batch)
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert loss.count == 8


def test_sigmoid_smoothing_is_binary_cross_entropy_on_soft_targets():
    logits = np.random.default_rng(0).normal(size=(4, 4))
    targets = torch.tensor(np.eye(4) * 0.8 + 0.1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), targets, reduction="sum")
    found = sigmoid_loss(jnp.asarray(logits, jnp.float32), jnp.eye(4, dtype=bool), jnp.ones(4, bool), 0.2)
    np.testing.assert_allclose(found.sum(), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_stay_finite(loss):
    logits, args = 1e4 * jnp.array([[-1.0, 1.0], [1.0, -1.0]]), (jnp.eye(2, dtype=bool), jnp.ones(2, bool))
    value, gradient = jax.value_and_grad(lambda x: loss(x, *args).sum())(logits)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    positive = jnp.diag(jnp.array([True, True, True, False])).at[0, 2].set(True).at[2, 0].set(True)
    check_grads(lambda x: loss(x, positive, jnp.array([True, True, True, False]), 0.1), (logits,), order=1, modes=["rev"])


@given(shift=st.floats(-20, 20), seed=st.integers(0, 99))
def test_softmax_does_not_see_a_shift_of_all_scores(shift, seed):
    logits = jnp.asarray(np.random.default_rng(seed).normal(size=(4, 4)), jnp.float32)
    args = jnp.eye(4, dtype=bool), jnp.ones(4, bool)
    np.testing.assert_allclose(LOSSES[0](logits + shift, *args), LOSSES[0](logits, *args), rtol=1e-4, atol=1e-5)
