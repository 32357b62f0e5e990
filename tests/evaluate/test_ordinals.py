"""Ordered classes against scikit-learn."""

import math

import numpy as np
import pytest
from fake_evaluation import make_evaluation, make_params
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, mean_absolute_error

from mmjax.core.errors import UserError
from mmjax.evaluate import Ordinals
from mmjax.evaluate.ordinals import quadratic_kappa, ranks, shares

PARAMS = make_params(classes=3)
NAMES = ("none", "mild", "severe", "worst")


def columns(size=21, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(size, 6)).astype(np.float32), "label": rng.integers(0, 4, size).astype(np.int32)}


def logits(given):
    return given["image"] @ PARAMS["image"] @ PARAMS["classes"]


@pytest.mark.parametrize("batch_size", [4, 7, 32])
def test_the_figures_are_scikit_learns(batch_size):
    given = columns()
    given["label"][[1, 20]] = -1
    known = given["label"] >= 0
    label, rank = given["label"][known], (logits(given) > 0).sum(axis=1)[known]
    made = make_evaluation(given, batch_size, NAMES)
    made.kept = []
    metrics = Ordinals()(made, PARAMS)
    assert metrics == pytest.approx(
        {
            "quadratic_weighted_kappa": cohen_kappa_score(label, rank, weights="quadratic"),
            "accuracy": accuracy_score(label, rank),
            "mean_absolute_error": mean_absolute_error(label, rank),
        }
    )
    assert all(type(value) is float for value in metrics.values())
    assert [(one["label"], one["predicted"]) for one in made.kept] == [
        (NAMES[a], NAMES[b]) for a, b in zip(label, rank, strict=True)
    ]


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_kappa_is_scikit_learns(pairs):
    label, rank = np.array(pairs).T
    found = quadratic_kappa(label, rank, 4)
    if len({*label, *rank}) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(cohen_kappa_score(label, rank, weights="quadratic", labels=range(4)))


@given(row=st.lists(st.floats(-30, 30), min_size=1, max_size=5))
def test_shares_sum_to_one_and_their_middle_is_the_rank(row):
    """Also where the answers contradict each other; where they fall, the shares are their differences."""
    logits = np.array([row])
    (share,), (rank,) = shares(logits), ranks(logits)
    assert share.sum() == pytest.approx(1) and (share >= 0).all() and len(share) == len(row) + 1
    if not np.isclose(share.cumsum(), 0.5, atol=1e-9).any():
        assert np.searchsorted(share.cumsum(), 0.5) == rank
    above = 1 / (1 + np.exp(-np.sort(row)[::-1]))
    assert share[0] == pytest.approx(1 - above[0]) and share[-1] == pytest.approx(above[-1])


def test_edges_and_mistakes():
    given = columns()
    broken = Ordinals()(make_evaluation(given), PARAMS | {"classes": np.full_like(PARAMS["classes"], np.nan)})
    assert len(broken) == 3 and all(map(math.isnan, broken.values()))
    with pytest.raises(UserError, match="no labelled record"):
        Ordinals()(make_evaluation(given | {"label": np.full(21, -1, np.int32)}), PARAMS)
    with pytest.raises(UserError, match="has label 9, and head='classes' has 4 classes"):
        Ordinals()(make_evaluation(given | {"label": np.full(21, 9, np.int32)}), PARAMS)
    with pytest.raises(UserError, match=r"gives 3 logits: data.validation has 3 ordered classes, so it needs 2"):
        Ordinals()(make_evaluation(given, classes=NAMES[:3]), PARAMS)
