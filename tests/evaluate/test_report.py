import logging

import numpy as np
import pytest
from fake_evaluation import make_evaluation, make_params
from sklearn.metrics import classification_report, confusion_matrix

from mmjax.core.errors import UserError
from mmjax.evaluate.report import Report

PARAMS = make_params(classes=4)
CLASSES = ("zero", "one", "two", "never")


def labelled(size=21, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, 6)).astype(np.float32),
        "audio": rng.normal(size=(size, 6)).astype(np.float32),
        "label": rng.integers(0, 3, size).astype(np.int32),
    }


def sklearn_report(label, logits, **options):
    return classification_report(
        label, logits.argmax(axis=1), labels=range(4), target_names=CLASSES, zero_division=0, **options
    )


def assert_report(metrics, label, logits):
    expected = sklearn_report(label, logits, output_dict=True)
    assert metrics == pytest.approx(
        {
            "accuracy": expected["accuracy"],
            "macro_precision": expected["macro avg"]["precision"],
            "macro_recall": expected["macro avg"]["recall"],
            "macro_f1": expected["macro avg"]["f1-score"],
            "weighted_f1": expected["weighted avg"]["f1-score"],
            **{f"f1/{name}": expected[name]["f1-score"] for name in CLASSES},
        }
    )
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("batch_size", [4, 7, 32])
def test_the_numbers_and_the_table_are_scikit_learns(batch_size, caplog):
    columns = labelled()
    logits = columns["image"] @ PARAMS["image"] @ PARAMS["classes"]
    evaluation = make_evaluation(columns, batch_size, CLASSES)
    with caplog.at_level(logging.INFO, logger="mmjax"):
        assert_report(Report()(evaluation, PARAMS), columns["label"], logits)
    table = sklearn_report(columns["label"], logits)
    assert Report().table(evaluation, PARAMS) == table
    assert table in caplog.text


def test_fused_modalities_and_unlabelled_records():
    columns = labelled()
    columns["label"][[0, 20]] = -1
    params = PARAMS | {"audio": make_params(seed=1)["image"], "both": PARAMS["classes"]}
    logits = (columns["image"] @ params["image"] + columns["audio"] @ params["audio"]) @ params["classes"]
    metrics = Report("both", fusion="heard")(make_evaluation(columns, classes=CLASSES), params)
    kept = columns["label"] >= 0
    assert_report(metrics, columns["label"][kept], logits[kept])


def test_classes_without_names_are_numbered():
    columns = labelled()
    metrics = Report()(make_evaluation(columns), PARAMS)
    assert {"f1/0", "f1/1", "f1/2"} <= metrics.keys()


def test_mistakes_are_named():
    columns = labelled()
    with pytest.raises(UserError, match=r"context=\('text',\) with fusion=''"):
        Report(context=("text",))
    with pytest.raises(UserError, match="has no 'label'"):
        Report()(make_evaluation({"image": columns["image"]}), PARAMS)
    with pytest.raises(UserError, match="no labelled record"):
        Report()(make_evaluation(columns | {"label": np.full(21, -1, np.int32)}), PARAMS)
    with pytest.raises(UserError, match="has 4 class names, but its labels go up to 9"):
        Report()(make_evaluation(columns | {"label": np.full(21, 9, np.int32)}, classes=CLASSES), PARAMS)
    with pytest.raises(UserError, match=r"model.heads.classes.classes=4: data.validation has 1 classes, so it needs 1"):
        Report()(make_evaluation(columns | {"label": np.zeros(21, np.int32)}, classes=CLASSES[:1]), PARAMS)


def test_the_confusion_matrix_has_a_row_for_a_class_that_never_occurs(caplog):
    columns = labelled()
    predicted = (columns["image"] @ PARAMS["image"] @ PARAMS["classes"]).argmax(axis=1)
    evaluation = make_evaluation(columns, classes=CLASSES)
    expected = confusion_matrix(columns["label"], predicted, labels=range(4))
    np.testing.assert_array_equal(Report().confusion(evaluation, PARAMS), expected)
    assert not expected[3].any()
    with caplog.at_level(logging.INFO, logger="mmjax"):
        Report()(evaluation, PARAMS)
    lines = caplog.messages[-1].splitlines()
    assert lines[1].split() == list(CLASSES)
    assert [line.split() for line in lines[2:]] == [[name, *map(str, row)] for name, row in zip(CLASSES, expected, strict=True)]


def test_examples_are_kept_where_somebody_wants_them():
    columns = labelled()
    evaluation = make_evaluation(columns, classes=CLASSES)
    evaluation.kept = []
    Report()(evaluation, PARAMS)
    logits = columns["image"] @ PARAMS["image"] @ PARAMS["classes"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert evaluation.kept == [
        {"index": n, "label": CLASSES[label], "predicted": CLASSES[row.argmax()], "score": pytest.approx(row.max(), abs=1e-5)}
        for n, (label, row) in enumerate(zip(columns["label"], shares, strict=True))
    ]
