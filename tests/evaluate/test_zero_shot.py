import numpy as np
import pytest
from fake_evaluation import FakeTokenizer, make_evaluation, make_params, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from mmjax.core.errors import UserError
from mmjax.evaluate.zero_shot import ZeroShot, label_ranks

PARAMS = make_params()
CLASSES = ("cat", "dog", "cow", "owl", "bee", "ant", "elk")
TEMPLATES = ("a photo of a {}.", "{} in the wild", "my {}")


def labelled(size=10, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(size, 6)).astype(np.float32), "label": rng.integers(0, classes, size).astype(np.int32)}


def text_embedding(text):
    tokens = FakeTokenizer().encode([text], 8)
    return unit(PARAMS["table"][tokens["ids"][0][tokens["mask"][0]]].mean(axis=0))


def reference_scores(image):
    classes = np.stack([unit(np.mean([text_embedding(t.format(name)) for t in TEMPLATES], axis=0)) for name in CLASSES])
    return unit(image @ PARAMS["image"]) @ classes.T


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_accuracy_is_that_of_the_mean_prompt(batch_size):
    columns = labelled()
    evaluation = make_evaluation(columns, batch_size, CLASSES)
    metrics = ZeroShot(TEMPLATES)(evaluation, PARAMS)
    scores = reference_scores(columns["image"])
    assert metrics == {
        "accuracy": pytest.approx(np.mean(scores.argmax(axis=1) == columns["label"])),
        "top5_accuracy": pytest.approx(top_k_accuracy_score(columns["label"], scores, k=5, labels=range(7))),
    }
    np.testing.assert_allclose(
        ZeroShot(TEMPLATES).class_embeddings(evaluation, PARAMS, CLASSES) @ unit(columns["image"] @ PARAMS["image"]).T,
        scores.T,
        atol=1e-6,
    )


def test_given_classes_replace_the_datasets_and_unlabelled_records_do_not_count():
    columns = labelled(size=9, classes=3)
    columns["label"][[2, 8]] = -1
    scores = reference_scores(columns["image"])[:, :3]
    kept = columns["label"] >= 0
    metrics = ZeroShot(TEMPLATES, classes=CLASSES[:3])(make_evaluation(columns), PARAMS)
    assert metrics == {"accuracy": pytest.approx(np.mean((scores.argmax(axis=1) == columns["label"])[kept]))}


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_ranks_are_those_of_a_stable_sort(data):
    score = np.array(data.draw(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5)), float)
    label = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(score), max_size=len(score))))
    order = np.argsort(-score, axis=1, kind="stable")
    np.testing.assert_array_equal(label_ranks(score, label), (order == label[:, None]).argmax(axis=1))


def test_a_diverged_model_is_never_right():
    assert (label_ranks(np.full((3, 2), np.nan), np.array([0, 1, 0])) > 0).all()


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"templates has 'a photo', which lacks the \{\}"):
        ZeroShot(("a photo",))
    with pytest.raises(UserError, match=r"templates=\(\)"):
        ZeroShot(())
    columns = labelled(size=3, classes=3) | {"label": np.array([0, 2, 1], np.int32)}
    with pytest.raises(UserError, match=r"classes=\(\)"):
        ZeroShot()(make_evaluation(columns), PARAMS)
    with pytest.raises(UserError, match="has no 'label'"):
        ZeroShot()(make_evaluation({"image": columns["image"]}, classes=CLASSES), PARAMS)
    with pytest.raises(UserError, match="has label 2, but there are 2 class names"):
        ZeroShot(classes=("a", "b"))(make_evaluation(columns), PARAMS)
    with pytest.raises(UserError, match="no labelled record"):
        ZeroShot(classes=("a",))(make_evaluation(columns | {"label": np.full(3, -1, np.int32)}), PARAMS)
