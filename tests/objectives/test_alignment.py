"""Alignment and uniformity against the paper's formulas, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import embedded, fake_batch, fake_params, run

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
    a, b = (np.asarray(x, np.float64) for x in embedded(batch, fake_params()))
    loss = run(Alignment(uniformity=weight), batch)
    np.testing.assert_allclose(loss.sum / loss.count, by_hand(a, b, weight), rtol=1e-5)


def test_rows_that_are_not_valid_count_nowhere():
    small, large = fake_batch(5), fake_batch(8)
    large = {name: large[name].at[:5].set(value) for name, value in small.items()} | {"valid": jnp.arange(8) < 5}
    losses = [run(Alignment(), batch) for batch in (small, large)]
    np.testing.assert_allclose(losses[0].sum, losses[1].sum, rtol=1e-6)
    assert losses[0].count == losses[1].count == 5


def test_one_row_has_no_pair_and_a_finite_gradient():
    batch = fake_batch(1)

    gradient = jax.jit(jax.grad(lambda params: run(Alignment(), batch, params).sum))(fake_params())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match="uniformity"):
        Alignment(uniformity=-1.0)
