"""Segmentation against scikit-learn's confusion matrix and Jaccard score."""

import jax.numpy as jnp
import numpy as np
import pytest
from fake_evaluation import FakeForward, make_evaluation
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from mmjax.core.errors import UserError
from mmjax.evaluate import Segmentation

NAMES = ("ground", "red", "blue", "never")
PARAMS = {"segments": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)}


class Pixelwise(FakeForward):
    """A head that looks at each pixel alone."""

    def head(self, head, tokens=None, key=""):
        return jnp.einsum("...c,ck->...k", self.batch["image"], self.params[head])


def images(size=11, labels=3):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(size, 4, 5, 3)).astype(np.float32)
    return {"image": image, "image_map": rng.integers(-1, labels, (size, 4, 5)).astype(np.int32)}


def evaluation(columns, batch_size=4, unreadable=(), **named):
    made = make_evaluation(columns, batch_size, bind=Pixelwise)
    dataset = made._datasets["validation"]
    dataset.unreadable, dataset.names = unreadable, named
    return made


def seen(columns, rows=slice(None)):
    """(labels, answers) of the places that count."""
    answers, labels = (columns["image"][rows] @ PARAMS["segments"]).argmax(axis=-1), columns["image_map"][rows]
    return labels[labels >= 0], answers[labels >= 0]


def assert_sklearns(metrics, labels, answers, names):
    present = sorted(set(labels) | set(answers))
    each = jaccard_score(labels, answers, labels=present, average=None)
    expected = {"mean_iou": each.mean(), "accuracy": accuracy_score(labels, answers)}
    assert metrics == pytest.approx(expected | {f"iou/{names[c]}": v for c, v in zip(present, each, strict=True)})
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_numbers_are_scikit_learns_whatever_the_batch_size(batch_size):
    columns = images()
    made = evaluation(columns, batch_size)
    assert_sklearns(Segmentation()(made, PARAMS), *seen(columns), "0123")
    confusion = Segmentation().confusion(made, PARAMS)
    np.testing.assert_array_equal(confusion, confusion_matrix(*seen(columns), labels=range(4)))


def test_names_are_those_given_or_those_of_the_data():
    columns = images()
    assert_sklearns(Segmentation()(evaluation(columns, image_map=NAMES), PARAMS), *seen(columns), NAMES)
    other = ("a", "b", "c", "d")
    assert_sklearns(Segmentation(classes=other)(evaluation(columns, image_map=NAMES), PARAMS), *seen(columns), other)


def test_a_class_that_is_nowhere_is_left_out_and_one_that_is_never_right_counts_as_0():
    columns = images(labels=1)  # all ground, or nothing
    params = {"segments": np.zeros((3, 4), np.float32)}
    metrics = Segmentation()(evaluation(columns, image_map=NAMES), params)  # and all is taken for ground
    assert metrics == {"mean_iou": 1.0, "accuracy": 1.0, "iou/ground": 1.0}
    columns["image_map"][:, 0, 0] = 2
    metrics = Segmentation()(evaluation(columns, image_map=NAMES), params)
    right = (columns["image_map"] == 0).sum() / (columns["image_map"] >= 0).sum()
    assert metrics == pytest.approx({"mean_iou": right / 2, "accuracy": right, "iou/ground": right, "iou/blue": 0.0})


def test_an_unreadable_record_does_not_count():
    columns = images()
    rows = [row for row in range(11) if row not in (2, 10)]
    metrics = Segmentation()(evaluation(columns, unreadable=(2, 10)), PARAMS)
    assert_sklearns(metrics, *seen(columns, rows), "0123")


@pytest.mark.parametrize("labels", [5, 9])
def test_labels_beyond_the_heads_classes_are_refused_and_counted(labels):
    columns = images(labels=labels)
    beyond = int((columns["image_map"] >= 4).sum())
    said = f"data='validation': {beyond} places of 'image_map' have labels beyond the head's 4 classes"
    with pytest.raises(UserError, match=said):
        Segmentation()(evaluation(columns, batch_size=4), PARAMS)


def test_mistakes_are_named():
    columns = images()
    with pytest.raises(UserError, match=r"model.heads.segments.classes=4: data.validation has 2 classes, so it needs 2"):
        Segmentation()(evaluation(columns, image_map=("a", "b")), PARAMS)
    with pytest.raises(UserError, match=r"data='validation' has no labelled place in 'image_map' \(all below 0\)"):
        Segmentation()(evaluation(columns | {"image_map": np.full((11, 4, 5), -1, np.int32)}), PARAMS)
    with pytest.raises(UserError, match="has no 'image_map'"):
        Segmentation()(evaluation({"image": columns["image"]}), PARAMS)
    with pytest.raises(UserError, match="segments"):
        Segmentation()(evaluation(columns | {"image_map": columns["image_map"][:, :2]}), PARAMS)


def test_any_place_may_have_a_label_of_its_own():
    """Tags of tokens, for instance: labels [B, T]."""
    columns = {name: x[:, 0] for name, x in images().items()}
    renamed = {"image": columns["image"], "tags": columns["image_map"]}
    metrics = Segmentation(label="tags")(evaluation(renamed, tags=NAMES), PARAMS)
    assert_sklearns(metrics, *seen(columns), NAMES)
