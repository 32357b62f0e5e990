"""Rankings against scikit-learn, and reciprocal ranks by hand."""

import itertools
import math

import numpy as np
import pytest
from fake_evaluation import SPECS, make_evaluation, make_params
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from mmjax.core.errors import UserError
from mmjax.evaluate import Ranked
from mmjax.evaluate.ranked import chance_of_rank, ndcg, reciprocal_rank

PARAMS = make_params() | {"value": make_params(seed=3, classes=1)["classes"]}


def columns(size=40, seed=0):
    """Items of five queries, mixed."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(size, 6)).astype(np.float32)
    return {
        "image": image,
        "relevance": rng.integers(0, 4, size).astype(np.float32),
        "query": rng.integers(0, 5, size).astype(np.int32),
    }


@pytest.mark.parametrize(("batch_size", "k", "gain"), [(4, 10, "linear"), (7, 3, "linear"), (64, 0, "exponential")])
def test_the_figures_are_scikit_learns_over_all_queries(batch_size, k, gain):
    assert "heads.value" in SPECS
    given = columns()
    given["relevance"][[3, 39]], given["relevance"][5], given["query"][7] = -1, np.nan, -1
    score = (given["image"] @ PARAMS["image"] @ PARAMS["value"])[:, 0]
    known = (given["relevance"] >= 0) & (given["query"] >= 0)
    gains, ranks = [], []
    for query in range(5):
        own = known & (given["query"] == query)
        relevance = given["relevance"][own]
        true = relevance if gain == "linear" else 2**relevance - 1
        gains.append(ndcg_score([true], [score[own]], k=k or None))
        ranks.append(1 + int(np.flatnonzero(relevance[np.argsort(-score[own])] > 0)[0]))
    metrics = Ranked("value", k=k, gain=gain)(make_evaluation(given, batch_size), PARAMS)
    chance = {name: metrics.pop(f"chance/{name}") for name in ("ndcg", "mean_reciprocal_rank")}
    expected = {"ndcg": np.mean(gains), "mean_reciprocal_rank": np.mean([1 / rank for rank in ranks]), "queries": 5}
    assert metrics == pytest.approx(expected)
    drawn, blind = np.random.default_rng(0), []
    for query in range(5):
        own = drawn.permuted(np.tile(given["relevance"][known & (given["query"] == query)], (400, 1)), axis=1)
        order = np.tile(-np.arange(own.shape[1]), (400, 1))
        blind.append(
            (ndcg_score(own if gain == "linear" else 2**own - 1, order, k=k or None), np.mean(1 / (1 + (own > 0).argmax(1))))
        )
    assert [*chance.values()] == pytest.approx(np.mean(blind, axis=0), abs=0.03)


@given(items=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=8), k=st.integers(0, 9))
def test_ties_are_scikit_learns_and_count_against_a_reciprocal_rank(items, k):
    score, gain = np.array(items, float).T
    if not gain.any():
        return
    assert ndcg(score, gain, k) == pytest.approx(ndcg_score([gain], [score], k=k or None))
    worst = sorted(items, key=lambda item: (-item[0], item[1] > 0))
    assert reciprocal_rank(score, gain) == 1 / (1 + [relevance > 0 for _, relevance in worst].index(True))


@given(relevance=st.lists(st.integers(0, 2), min_size=2, max_size=6).filter(any))
def test_the_chance_of_a_rank_is_the_mean_over_all_orders(relevance):
    orders = [1 / (1 + [one > 0 for one in order].index(True)) for order in itertools.permutations(relevance)]
    assert chance_of_rank(np.array(relevance)) == pytest.approx(np.mean(orders))


def test_queries_in_which_nothing_is_to_be_found_are_left_out_and_items_kept():
    given = columns()
    given["relevance"][given["query"] == 2] = 0
    given["query"][0] = 9  # alone
    made = make_evaluation(given)
    made.kept = []
    assert Ranked("value")(made, PARAMS)["queries"] == 4
    assert [(one["index"], one["query"]) for one in made.kept] == list(enumerate(given["query"].tolist()))


def test_edges_and_mistakes():
    given = columns()
    broken = Ranked("value")(make_evaluation(given), PARAMS | {"value": np.full((8, 1), np.nan, np.float32)})
    assert math.isnan(broken["ndcg"]) and math.isnan(broken["mean_reciprocal_rank"])
    with pytest.raises(UserError, match="has no query in 'query' of two known items, one of them relevant"):
        Ranked("value")(make_evaluation(given | {"relevance": np.zeros(40, np.float32)}), PARAMS)
    with pytest.raises(UserError, match="head='classes' gives 3 logits an item: a ranking needs one"):
        Ranked("classes")(make_evaluation(given), PARAMS)
    with pytest.raises(UserError, match="has no 'topic'"):
        Ranked("value", query="topic")(make_evaluation(given), PARAMS)
    with pytest.raises(UserError, match=r"gain='exp': use one of linear, exponential"):
        Ranked(gain="exp")
