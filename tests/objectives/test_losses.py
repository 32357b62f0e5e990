import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch import torch

from mmjax.objectives.losses import (
    correct,
    counted,
    cross_entropy,
    pick,
    positive_pairs,
    retrieval_metrics,
    similarity,
    valid_rows,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_and_its_gradient_equal_torch(smoothing):
    logits, labels = RNG.normal(scale=3, size=(4, 5, 7)).astype(np.float32), RNG.integers(0, 7, (4, 5)).astype(np.int32)
    theirs = torch.tensor(logits.reshape(-1, 7), requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(labels.reshape(-1)).long(), label_smoothing=smoothing, reduction="none"
    )
    expected.sum().backward()
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(found.reshape(-1), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, jnp.asarray(labels), smoothing).sum()))(jnp.asarray(logits))
    np.testing.assert_allclose(gradient.reshape(-1, 7), theirs.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    assert cross_entropy(jnp.zeros((2, 3), jnp.bfloat16), jnp.array([0, 2])).dtype == jnp.float32


def test_pick_and_correct():
    values, labels = jnp.array([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]]), jnp.array([1, 2], jnp.int32)
    np.testing.assert_array_equal(pick(values, labels), [5.0, 3.0])
    np.testing.assert_array_equal(correct(values, labels), [True, False])


def test_counted_ignores_even_a_nan_that_is_masked():
    total, count = counted(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True]))
    assert (float(total), float(count)) == (4.0, 2.0)


def test_positive_pairs_follow_groups_and_validity():
    valid = jnp.array([True, True, False, True])
    np.testing.assert_array_equal(positive_pairs({}, valid), np.diag([True, True, False, True]))
    found = positive_pairs({"group": jnp.array([5, 7, 5, 5])}, valid)
    np.testing.assert_array_equal(found, [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]])
    np.testing.assert_array_equal(valid_rows({}, 2), [True, True])


def test_retrieval_metrics_count_the_best_valid_column():
    scores = jnp.array([[3.0, 1.0, 9.0], [2.0, 1.0, 9.0], [9.0, 9.0, 9.0]])
    metrics = retrieval_metrics(
        ("image", "text"), scores, jnp.diag(jnp.array([True, True, False])), jnp.array([True, True, False])
    )
    assert {name: (float(a), float(b)) for name, (a, b) in metrics.items()} == {
        "image_to_text_accuracy": (1.0, 2.0),
        "text_to_image_accuracy": (1.0, 2.0),
    }


def test_similarity_is_float32_for_any_input():
    a = jnp.asarray(RNG.normal(size=(3, 4)), jnp.bfloat16)
    exact = np.asarray(a, np.float64) @ np.asarray(a, np.float64).T
    assert similarity(a, a).dtype == jnp.float32
    np.testing.assert_allclose(similarity(a, a), exact, rtol=1e-6, atol=1e-6)
