import numpy as np
import pytest
from fake_evaluation import make_evaluation, make_params

from mmjax.core.errors import UserError
from mmjax.evaluate.calibration import Calibration, errors

PARAMS = make_params(classes=4)


def labelled(size=21, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(size, 6)).astype(np.float32), "label": rng.integers(0, 3, size).astype(np.int32)}


def by_hand(columns, bins):
    """Guo's formulas, example by example, in float64."""
    logits = columns["image"].astype(np.float64) @ PARAMS["image"] @ PARAMS["classes"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected, maximum = 0.0, 0.0
    for m in range(bins):
        inside = [n for n, row in enumerate(shares) if m / bins < row.max() <= (m + 1) / bins]
        if inside:
            right = np.mean([shares[n].argmax() == columns["label"][n] for n in inside])
            off = abs(right - np.mean([shares[n].max() for n in inside]))
            expected += len(inside) / len(shares) * off
            maximum = max(maximum, off)
    own = np.eye(4)[columns["label"]]
    return {
        "expected_error": expected,
        "maximum_error": maximum,
        "log_loss": -np.mean(np.log((shares * own).sum(axis=1))),
        "brier": np.mean(((shares - own) ** 2).sum(axis=1)),
        "confidence": np.mean(shares.max(axis=1)),
        "accuracy": np.mean(shares.argmax(axis=1) == columns["label"]),
    }


@pytest.mark.parametrize(("bins", "batch_size"), [(15, 4), (15, 32), (5, 7), (1, 4)])
def test_the_errors_are_guos_formulas(bins, batch_size):
    """Class 3 never occurs."""
    columns = labelled()
    metrics = Calibration(bins=bins)(make_evaluation(columns, batch_size), PARAMS)
    assert metrics == pytest.approx(by_hand(columns, bins), abs=1e-6)


def test_a_worked_example():
    """The shares and targets of torchmetrics' documentation of `MulticlassCalibrationError`: 0.2 and, of the worst, 0.2333."""
    shares = np.array([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]])
    right = shares.argmax(axis=1) == [0, 1, 2, 0]
    error, count = errors(shares.max(axis=1), right, 3)
    assert (error * count).sum() / 4 == pytest.approx(0.2, abs=1e-9)
    assert error.max() == pytest.approx(0.2333, abs=5e-5)


def test_edges():
    error, count = errors(np.array([1.0, 1.0, 0.5]), np.array([True, False, False]), 2)
    assert error.tolist() == [0.5, 0.5] and count.tolist() == [1, 2]  # a border belongs to the bin below
    error, _ = errors(np.array([np.nan, 0.2]), np.array([True, False]), 4)
    assert np.isnan(error[-1]) and error[:3].tolist() == pytest.approx([0.2, 0.0, 0.0])
    columns = labelled() | {"label": np.full(21, -1, np.int32)}
    with pytest.raises(UserError, match="no labelled record"):
        Calibration()(make_evaluation(columns), PARAMS)


def test_unlabelled_records_do_not_count_and_examples_are_kept():
    columns = labelled()
    columns["label"][[0, 20]] = -1
    evaluation = make_evaluation(columns, classes=("a", "b", "c", "never"))
    evaluation.kept = []
    metrics = Calibration()(evaluation, PARAMS)
    kept = {name: column[1:20] for name, column in columns.items()}
    assert metrics == pytest.approx(by_hand(kept, 15), abs=1e-6)
    assert [example["index"] for example in evaluation.kept] == list(range(1, 20))
    right = [example["label"] == example["predicted"] for example in evaluation.kept]
    assert np.mean(right) == pytest.approx(metrics["accuracy"])
    assert np.mean([example["score"] for example in evaluation.kept]) == pytest.approx(metrics["confidence"], abs=1e-6)
