"""Errors against scikit-learn."""

import math

import numpy as np
import pytest
import scipy.stats
from fake_evaluation import FakeForward, make_evaluation, make_params
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from mmjax.core.errors import UserError
from mmjax.evaluate import Errors

PARAMS = make_params() | {"value": np.random.default_rng(3).normal(size=(8, 1)).astype(np.float32)}


def columns(size=21):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(size, 6)).astype(np.float32)
    predicted = (image @ PARAMS["image"] @ PARAMS["value"])[:, 0]
    return {"image": image, "value": (predicted + rng.normal(size=size)).astype(np.float32)}, predicted


def sklearns(target, predicted, scale=1.0):
    return {
        "mean_absolute_error": scale * mean_absolute_error(target, predicted),
        "root_mean_square_error": scale * math.sqrt(mean_squared_error(target, predicted)),
        "r2": r2_score(target, predicted),
    }


@pytest.mark.parametrize("batch_size", [1, 4, 7, 32])
def test_the_errors_are_scikit_learns_whatever_the_batch_size(batch_size):
    given, predicted = columns()
    metrics = Errors()(make_evaluation(given, batch_size), PARAMS)
    assert metrics == pytest.approx(sklearns(given["value"], predicted), rel=1e-5)
    assert all(type(value) is float for value in metrics.values())


def test_a_scale_gives_errors_in_the_targets_own_unit_and_leaves_r2():
    given, predicted = columns()
    metrics = Errors(scale=30.0)(make_evaluation(given), PARAMS)
    assert metrics == pytest.approx(sklearns(given["value"], predicted, 30.0), rel=1e-5)


def test_unknown_numbers_do_not_count():
    given, predicted = columns()
    given["value"][[0, 5, 20]] = np.nan
    known = np.isfinite(given["value"])
    metrics = Errors()(make_evaluation(given, 4), PARAMS)
    assert metrics == pytest.approx(sklearns(given["value"][known], predicted[known]), rel=1e-5)


def test_a_target_far_from_zero_has_the_r2_of_one_near_it():
    """As prices or years are, when no column has put them into units of their spread."""
    given, _ = columns(400)
    params = PARAMS | {"value": np.concatenate([PARAMS["value"], np.full((1, 1), 5000.0, np.float32)])}
    params["image"] = np.concatenate([PARAMS["image"], np.zeros((6, 1), np.float32)], axis=1)
    # A ninth feature of each image is 1: the head adds 5000 to what it gave.
    params["image"] = np.concatenate([params["image"], np.eye(9, dtype=np.float32)[-1:]])
    given["image"] = np.concatenate([given["image"], np.ones((400, 1), np.float32)], axis=1)
    far = {"image": given["image"], "value": given["value"] + np.float32(5000)}
    metrics = Errors()(make_evaluation(far, 64), params)
    moved = (far["image"] @ params["image"] @ params["value"])[:, 0].astype(np.float64)
    assert metrics["r2"] == pytest.approx(r2_score(far["value"].astype(np.float64), moved), abs=1e-3)


@pytest.mark.parametrize("number", [0.0, 2.0, 0.1, 1e6 + 0.1])
def test_numbers_that_are_all_the_same_have_no_r2(number):
    given, _ = columns()
    metrics = Errors()(make_evaluation(given | {"value": np.full(21, number, np.float32)}), PARAMS)
    assert math.isnan(metrics["r2"]) and metrics["mean_absolute_error"] > 0


def test_a_map_of_numbers_counts_each_place():
    rng = np.random.default_rng(5)
    image, depth = rng.normal(size=(9, 6)).astype(np.float32), rng.normal(loc=9.0, size=(9, 2, 2)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = np.nan
    depth[4] = np.nan
    predicted = (image @ PARAMS["image"] @ make_params(classes=4)["classes"]).reshape(9, 2, 2)

    class Mapped(FakeForward):
        def head(self, head, tokens=None, key=""):
            return super().head("classes").reshape(-1, 2, 2, 1)

    known, params = np.isfinite(depth), PARAMS | {"classes": make_params(classes=4)["classes"]}
    metrics = Errors(target="depth")(make_evaluation({"image": image, "depth": depth}, 4, bind=Mapped), params)
    assert metrics == pytest.approx(sklearns(depth[known], predicted[known]), rel=1e-5)


@pytest.mark.parametrize("batch_size", [4, 32])
def test_a_head_of_mean_and_variance_has_a_likelihood_and_a_coverage(batch_size):
    """Against scipy's normal distribution, in the target's own unit."""
    given, _ = columns()
    params = PARAMS | {"value": np.random.default_rng(4).normal(scale=0.3, size=(8, 2)).astype(np.float32)}
    given["value"][[2, 20]] = np.nan
    mean, log_variance = (given["image"] @ params["image"] @ params["value"]).astype(np.float64).T
    known, scale = np.isfinite(given["value"]), 30.0
    metrics = Errors(scale=scale, floor=0.5)(make_evaluation(given, batch_size), params)
    deviation = np.sqrt(np.maximum(np.exp(log_variance), 0.5))
    likely = scipy.stats.norm(scale * mean, scale * deviation).logpdf(scale * given["value"].astype(np.float64))
    within = np.abs(given["value"] - mean) <= 1.96 * deviation
    assert 0 < within[known].mean() < 1
    assert metrics == pytest.approx(
        sklearns(given["value"][known], mean[known], scale)
        | {"negative_log_likelihood": -likely[known].mean(), "coverage": within[known].mean()},
        rel=1e-5,
    )


def test_each_known_number_is_written_in_the_unit_of_the_data():
    given, predicted = columns()
    given["value"][5] = np.nan
    evaluation = make_evaluation(given, 4)
    evaluation.kept = []
    evaluation.dataset("validation").unit = lambda key: {"value": (40.0, 8.0)}[key]
    Errors(scale=3.0)(evaluation, PARAMS)
    known = [n for n in range(21) if n != 5]
    assert [one["index"] for one in evaluation.kept] == known
    assert [one["truth"] for one in evaluation.kept] == pytest.approx(40 + 8 * given["value"][known].astype(float))
    assert [one["predicted"] for one in evaluation.kept] == pytest.approx(40 + 8 * predicted[known], rel=1e-5)


def test_several_numbers_an_example_are_written_as_lists():
    image = columns()[0]["image"]
    target = np.zeros((21, 3), np.float32)
    target[2], target[4, 1] = np.nan, np.nan
    evaluation = make_evaluation({"image": image, "value": target}, 4)
    evaluation.kept = []
    Errors(head="classes")(evaluation, PARAMS)
    assert [one["index"] for one in evaluation.kept] == [0, 1, *range(3, 21)]
    np.testing.assert_array_equal([one["truth"] for one in evaluation.kept], np.delete(target, 2, axis=0))
    theirs = np.delete(image @ PARAMS["image"] @ PARAMS["classes"], 2, axis=0)
    np.testing.assert_allclose([one["predicted"] for one in evaluation.kept], theirs, rtol=1e-4, atol=1e-5)


def test_mistakes_are_named():
    given, _ = columns()
    with pytest.raises(UserError, match=r"data='validation' has no known 'value' \(all NaN\)"):
        Errors()(make_evaluation(given | {"value": np.full(21, np.nan, np.float32)}), PARAMS)
    with pytest.raises(UserError, match="has no 'price'"):
        Errors(target="price")(make_evaluation(given), PARAMS)
    with pytest.raises(UserError, match="head='classes' gives 3 and 'value' is one an example"):
        Errors(head="classes")(make_evaluation(given), PARAMS)
