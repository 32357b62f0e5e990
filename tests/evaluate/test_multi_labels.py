"""Several labels an example against scikit-learn."""

import math

import numpy as np
import pytest
from fake_evaluation import make_evaluation, make_params
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from mmjax.core.config import check_ranges
from mmjax.core.errors import UserError
from mmjax.evaluate import MultiLabels
from mmjax.evaluate.multi_labels import auroc, average_precision

PARAMS = make_params(classes=4)
NAMES = ("old", "new", "red", "never")


def columns(size=21, seed=0):
    """Of the fourth class there is none."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (size, 4)).astype(np.float32)
    labels[:, 3] = 0
    return {"image": rng.normal(size=(size, 6)).astype(np.float32), "labels": labels}


def likely(given):
    return 1 / (1 + np.exp(-(given["image"] @ PARAMS["image"] @ PARAMS["classes"]).astype(np.float64)))


def evaluation(given, batch_size=4, names=()):
    made = make_evaluation(given, batch_size)
    made.dataset("validation").names = {"labels": names} if names else {}
    return made


@pytest.mark.parametrize(("batch_size", "threshold"), [(4, 0.5), (7, 0.3), (32, 0.9)])
def test_the_figures_are_scikit_learns(batch_size, threshold):
    given = columns()
    there, share = given["labels"] == 1, likely(given)
    said = share >= threshold
    f1, precision = (
        f1_score(there, said, average=None, zero_division=0),
        average_precision_score(there[:, :3], share[:, :3], average=None),
    )
    area = roc_auc_score(there[:, :3], share[:, :3], average=None)
    metrics = MultiLabels(threshold=threshold)(evaluation(given, batch_size, NAMES), PARAMS)
    assert metrics == pytest.approx(
        {
            "mean_average_precision": precision.mean(),
            "micro_f1": f1_score(there, said, average="micro"),
            "macro_f1": f1_score(there, said, average="macro", zero_division=0),
            "subset_accuracy": accuracy_score(there, said),
            **{f"f1/{name}": value for name, value in zip(NAMES, f1, strict=True)},
            **{f"average_precision/{name}": value for name, value in zip(NAMES, precision, strict=False)},
            **{f"auroc/{name}": value for name, value in zip(NAMES, area, strict=False)},
            "macro_auroc": area.mean(),
        }
    )
    assert all(type(value) is float for value in metrics.values())


def test_what_is_not_known_counts_nowhere():
    given = columns()
    given["labels"][[0, 20]], given["labels"][3, 1] = -1, np.nan
    known, there, share = given["labels"] >= 0, given["labels"] == 1, likely(given)
    metrics = MultiLabels()(evaluation(given), PARAMS)
    for c in range(3):
        rows = known[:, c]
        assert metrics[f"f1/{c}"] == pytest.approx(f1_score(there[rows, c], share[rows, c] >= 0.5))
        assert metrics[f"average_precision/{c}"] == pytest.approx(average_precision_score(there[rows, c], share[rows, c]))
        assert metrics[f"auroc/{c}"] == pytest.approx(roc_auc_score(there[rows, c], share[rows, c]))
    assert metrics["micro_f1"] == pytest.approx(f1_score(there[known], share[known] >= 0.5))
    right = [((share[n] >= 0.5) == there[n])[known[n]].all() for n in range(1, 20)]
    assert metrics["subset_accuracy"] == pytest.approx(np.mean(right))


@given(scores=st.lists(st.integers(0, 4), min_size=1, max_size=12), there=st.lists(st.booleans(), min_size=12, max_size=12))
def test_both_areas_are_scikit_learns_also_of_ties(scores, there):
    score_N, there_N = np.array(scores, float), np.array(there[: len(scores)])
    found = average_precision(score_N, there_N)
    if there_N.any():
        assert found == pytest.approx(average_precision_score(there_N, score_N))
    else:
        assert found is None
    if 0 < there_N.sum() < len(there_N):
        assert auroc(score_N, there_N) == pytest.approx(roc_auc_score(there_N, score_N))
    else:
        assert auroc(score_N, there_N) is None


def test_examples_are_kept_by_name():
    given = columns()
    given["labels"][2] = -1
    made = evaluation(given, names=NAMES)
    made.kept = []
    MultiLabels()(made, PARAMS)
    assert [one["index"] for one in made.kept] == [n for n in range(21) if n != 2]
    share = likely(given)
    for one in made.kept:
        row = share[one["index"]]
        assert one["label"] == [name for name, there in zip(NAMES, given["labels"][one["index"]], strict=True) if there]
        assert one["predicted"] == pytest.approx({name: p for name, p in zip(NAMES, row, strict=True) if p >= 0.5}, abs=1e-5)


def test_edges_and_mistakes():
    given = columns()
    nothing = MultiLabels()(evaluation(given | {"labels": np.zeros((21, 4), np.float32)}), PARAMS)
    assert math.isnan(nothing["macro_auroc"]) and math.isnan(nothing["mean_average_precision"]) and nothing["micro_f1"] == 0
    broken = MultiLabels()(evaluation(given), PARAMS | {"classes": np.full_like(PARAMS["classes"], np.nan)})
    assert math.isnan(broken["macro_auroc"]) and math.isnan(broken["mean_average_precision"]) and broken["micro_f1"] == 0
    with pytest.raises(UserError, match=r"data='validation' has no known 'labels' \(all below 0\)"):
        MultiLabels()(evaluation(given | {"labels": np.full((21, 4), -1, np.float32)}), PARAMS)
    with pytest.raises(UserError, match=r"model.heads.classes.classes=4: data.validation has 2 classes, so it needs 2"):
        MultiLabels()(evaluation(given, names=NAMES[:2]), PARAMS)
    with pytest.raises(UserError, match="the labels of 'labels' are one an example"):
        MultiLabels()(evaluation(given | {"labels": np.zeros(21, np.int32)}), PARAMS)
    for wrong in (0.0, 1.0, -0.5):
        with pytest.raises(UserError, match=f"threshold={wrong}: use a number above 0 and below 1"):
            check_ranges(MultiLabels(threshold=wrong))
