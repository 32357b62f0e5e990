"""Learning to rank: the losses of the papers, query by query and pair by pair, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given_logits import run
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.objectives import OBJECTIVES, Ranking

KINDS = {"pairwise": Ranking(), "margin": Ranking(loss="margin", margin=0.7), "listwise": Ranking(loss="listwise")}
QUERIES = np.array([7, 3, 7, 3, 5, 7, 3, -1], np.int32)
RELEVANCE = np.array([2, 0, 0, 1, 3, 1, np.nan, 2], np.float32)
every = pytest.mark.parametrize("name", KINDS)


def batch(seed=0):
    logits = np.random.default_rng(seed).normal(scale=2.0, size=(8, 1)).astype(np.float32)
    return {"logits": logits, "query": QUERIES, "relevance": RELEVANCE}


def reference(o, score, relevance, query, counts):
    """(sum, count), item by item; differentiable."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for own in {*query[counts].tolist()}:
        items = [i for i in range(len(query)) if counts[i] and query[i] == own]
        if o.loss == "listwise":
            if len(items) > 1:
                target = torch.softmax(torch.tensor(relevance[items].astype(np.float64)), 0)
                total, count = total - torch.sum(target * torch.log_softmax(score[items], 0)), count + 1
            continue
        for i in items:
            for j in items:
                if relevance[i] > relevance[j]:
                    apart = score[i] - score[j]
                    pair = torch.log1p(torch.exp(-apart)) if o.loss == "pairwise" else torch.relu(o.margin - apart)
                    total, count = total + pair, count + 1
    return total, count


@every
def test_the_loss_and_its_gradient_are_those_of_the_papers(name):
    own, counts = batch(), (RELEVANCE >= 0) & (QUERIES >= 0)
    score = torch.tensor(own["logits"][:, 0].astype(np.float64), requires_grad=True)
    expected, count = reference(KINDS[name], score, RELEVANCE, QUERIES, counts)
    expected.backward()
    found, gradient = jax.value_and_grad(lambda x: run(KINDS[name], own | {"logits": x}).sum)(jnp.asarray(own["logits"]))
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], score.grad, rtol=1e-5, atol=1e-6)
    assert run(KINDS[name], own).count == count == {"listwise": 2}.get(name, 3 + 1)


@given(
    query=st.lists(st.integers(-1, 2), min_size=8, max_size=8),
    relevance=st.lists(st.integers(-1, 2), min_size=8, max_size=8),
    valid=st.lists(st.booleans(), min_size=8, max_size=8),
    order=st.permutations(range(8)),
)
@every
def test_any_queries_any_relevance_and_any_order(name, query, relevance, valid, order):
    own = batch() | {"query": np.array(query, np.int32), "relevance": np.array(relevance, np.int32), "valid": np.array(valid)}
    counts = own["valid"] & (own["query"] >= 0) & (own["relevance"] >= 0)
    expected, count = reference(
        KINDS[name], torch.tensor(own["logits"][:, 0].astype(np.float64)), own["relevance"], own["query"], counts
    )
    loss = run(KINDS[name], {key: value[np.array(order)] for key, value in own.items()})
    assert loss.count == count
    np.testing.assert_allclose(loss.sum, float(expected), rtol=1e-5, atol=1e-6)
    pairs = [
        (i, j)
        for i in range(8)
        for j in range(8)
        if counts[i] & counts[j] and query[i] == query[j] and relevance[i] > relevance[j]
    ]
    right = sum(own["logits"][i, 0] > own["logits"][j, 0] for i, j in pairs)
    assert tuple(map(float, loss.metrics["pair_accuracy"])) == (right, len(pairs))
    assert tuple(map(float, loss.metrics["paired"])) == (len({i for pair in pairs for i in pair}), counts.sum())


@every
def test_queries_lie_across_devices_and_nothing_to_compare_is_no_loss(name):
    own, mesh = batch(), jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = run(KINDS[name], jax.device_put(own, NamedSharding(mesh, PartitionSpec("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), split, run(KINDS[name], own))
    alone = own | {"query": np.arange(8, dtype=np.int32)}
    value, gradient = jax.value_and_grad(lambda x: run(KINDS[name], alone | {"logits": x}).sum)(jnp.asarray(own["logits"]))
    assert value == 0 and not np.any(gradient) and run(KINDS[name], alone).count == 0


def test_mistakes_are_one_line():
    assert OBJECTIVES["ranking"] is Ranking and Ranking().in_batch and Ranking().needs == ("relevance", "query")
    with pytest.raises(UserError, match=r"ranking\.loss='pairwize': use one of pairwise, margin, listwise \(did you mean"):
        Ranking(loss="pairwize")
    with pytest.raises(UserError, match=r"ranking\.margin=0\.0: use a number above 0"):
        Ranking(loss="margin", margin=0.0)
    for changes, said in (
        ({"logits": np.zeros((8, 2), np.float32)}, "head='score' gives 2 logits an item: a ranking needs one"),
        ({"relevance": np.zeros((8, 3), np.float32)}, "'relevance' is 3 an item: a ranking needs one number"),
        ({"query": np.zeros((8, 2), np.int32)}, "'query' is 2 an item"),
        ({"query": np.zeros(8, np.float32)}, "query='query' is float32: queries are whole numbers"),
    ):
        with pytest.raises(UserError, match=said):
            run(Ranking(), batch() | changes)
