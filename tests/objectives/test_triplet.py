import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import FakeForward, embedded, fake_batch, fake_params, run
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from mmjax.objectives.triplet import Triplet

MINING = ("hard", "semi_hard", "all")


def anchor_by_hand(distances, positives, negatives, margin, mining):
    """The mean over one anchor's positives, straight from the papers' definitions."""
    losses = []
    for p in positives:
        if mining == "hard":
            chosen = [min(distances[n] for n in negatives)]
        elif mining == "all":
            chosen = [distances[n] for n in negatives]
        else:
            further = [distances[n] for n in negatives if distances[n] > distances[p]]
            chosen = [min(further)] if further else [max(distances[n] for n in negatives)]
        losses.append(sum(max(0.0, margin + distances[p] - d) for d in chosen))
    return np.mean(losses)


def by_hand(distances, groups, margin, mining):
    total, count = 0.0, 0
    for i in range(len(groups)):
        positives = [j for j in range(len(groups)) if groups[j] == groups[i]]
        negatives = [j for j in range(len(groups)) if groups[j] != groups[i]]
        if negatives:
            count += 1
            total += anchor_by_hand(distances[i], positives, negatives, margin, mining)
            total += anchor_by_hand(distances[:, i], positives, negatives, margin, mining)
    return total, count


@pytest.mark.parametrize("mining", MINING)
@given(
    groups=st.lists(st.integers(0, 5), min_size=8, max_size=8), margin=st.sampled_from([0.0, 0.2, 1.0]), seed=st.integers(0, 50)
)
def test_the_loss_is_the_papers(mining, groups, margin, seed):
    batch = fake_batch(seed=seed) | {"group": jnp.array(groups, jnp.int32)}
    image, text = (np.asarray(x, np.float64) for x in embedded(batch, fake_params(seed)))
    total, count = by_hand(1 - image @ text.T, groups, margin, mining)
    loss = run(Triplet(margin=margin, mining=mining), batch, fake_params(seed))
    np.testing.assert_allclose(loss.sum, total, rtol=1e-5, atol=1e-5)
    assert loss.count == count


def test_hard_is_the_max_of_hinges_of_vse():
    batch = fake_batch()
    image, text = (np.asarray(x, np.float64) for x in embedded(batch, fake_params()))
    s = image @ text.T
    own, others = np.diag(s), np.where(np.eye(8), -np.inf, s)
    expected = np.maximum(0, 0.2 + others.max(1) - own).sum() + np.maximum(0, 0.2 + others.max(0) - own).sum()
    np.testing.assert_allclose(run(Triplet(), batch).sum, expected, rtol=1e-5)


@pytest.mark.parametrize("mining", MINING)
def test_gradients(mining):
    distances = jnp.asarray(np.random.default_rng(3).uniform(0, 2, (8, 8)), jnp.float32)
    positive = jnp.eye(8, dtype=bool).at[0, 1].set(True)
    negative = (~positive).at[4].set(False)
    anchors = jax.jit(lambda d: Triplet(mining=mining)._anchors(d, positive, negative))
    check_grads(anchors, (distances,), order=1, modes=["rev"], eps=1e-3)


@pytest.mark.parametrize("mining", MINING)
def test_separated_pairs_have_no_loss(mining):
    class Separated(FakeForward):
        def embed(self, modality, fusion="dual", inputs=None, key=""):
            return jnp.eye(8)

    batch = fake_batch()
    loss = jax.jit(lambda: Triplet(mining=mining)(Separated(batch, {}), batch, jax.random.key(0)))()
    assert loss.sum == 0 and loss.count == 8
    assert loss.metrics["image_to_text_accuracy"] == (8, 8)
