"""Alignment and uniformity against the paper's formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import FakeForward, fake_batch, fake_params

from mmjax.core.errors import UserError
from mmjax.objectives.alignment import Alignment


def by_hand(a, b, weight):
    pairs = [(i, j) for i in range(len(a)) for j in range(len(a)) if i != j]

    def potential(x):
        return np.log(np.mean([np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i, j in pairs]))

    return np.mean(np.sum((a - b) ** 2, axis=1)) + weight * (potential(a) + potential(b)) / 2


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_equals_the_formula(weight):
    batch = fake_batch(6)
    forward = FakeForward(batch, fake_params())
    a, b = (np.asarray(forward.embed(m), np.float64) for m in ("image", "text"))
    loss = Alignment(uniformity=weight)(forward, batch, jax.random.key(0))
    np.testing.assert_allclose(loss.sum / loss.count, by_hand(a, b, weight), rtol=1e-5)


def test_rows_that_are_not_valid_count_nowhere():
    small, large = fake_batch(5), fake_batch(8)
    large = {name: large[name].at[:5].set(value) for name, value in small.items()} | {"valid": jnp.arange(8) < 5}
    losses = [Alignment()(FakeForward(batch, fake_params()), batch, jax.random.key(0)) for batch in (small, large)]
    np.testing.assert_allclose(losses[0].sum, losses[1].sum, rtol=1e-6)
    assert losses[0].count == losses[1].count == 5


def test_one_row_has_no_pair_and_a_finite_gradient():
    batch = fake_batch(1)

    def value(params):
        return Alignment()(FakeForward(batch, params), batch, jax.random.key(0)).sum

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(value)(fake_params())))


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match="uniformity"):
        Alignment(uniformity=-1.0)
