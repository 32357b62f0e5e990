"""Tip-Adapter against its formula in numpy, its search, and what is refused."""

import jax
import numpy as np
import pytest
from fake_evaluation import FakeDataset, FakeForward, FakeTokenizer, make_params, unit

from mmjax.core.errors import UserError
from mmjax.evaluate import TipAdapter, ZeroShot
from mmjax.evaluate.evaluation import Evaluation, data_of
from mmjax.models.cached import cached_logits

PARAMS = make_params()
CLASSES = ("cat", "dog", "cow")
TEMPLATES = ("a {}", "my {} runs")
SCALE = 7.0


class Scaled(FakeForward):
    def scalar(self, fusion, name):
        assert (fusion, name) == ("dual", "scale")
        return jax.numpy.float32(SCALE)


def columns(size, seed):
    rng = np.random.default_rng(seed)
    label = (np.arange(size) % 3).astype(np.int32)
    image = rng.normal(size=(size, 6)).astype(np.float32) + 1.5 * np.eye(3, 6, dtype=np.float32)[label]
    return {"image": image, "label": label}


DATA = {"train": columns(6, 1), "validation": columns(30, 2), "test": columns(40, 3)}


def evaluation(names=None, data=DATA, sizes=(4, 4, 4)):
    names = names or dict.fromkeys(data, CLASSES)
    datasets = {name: FakeDataset(own, size, names[name]) for (name, own), size in zip(data.items(), sizes, strict=True)}
    return Evaluation(Scaled, datasets, {"text": (FakeTokenizer(), 8)}, jax.device_put)


def embedded(name):
    return unit(DATA[name]["image"] @ PARAMS["image"])


def reference(name, alpha, beta):
    """Zhang 2022's formula, one example and one remembered example at a time."""
    vectors = ZeroShot(TEMPLATES).class_embeddings(evaluation(), PARAMS, CLASSES)
    logits = SCALE * embedded(name) @ vectors.T
    for row, f in zip(logits, embedded(name), strict=True):
        for key, label in zip(embedded("train"), DATA["train"]["label"], strict=True):
            row[label] += alpha * np.exp(-beta * (1 - f @ key))
    return logits


def accuracy(name, alpha, beta):
    return np.mean(reference(name, alpha, beta).argmax(1) == DATA[name]["label"])


@pytest.mark.parametrize("sizes", [(4, 4, 4), (6, 30, 7)])
def test_it_is_the_papers_formula_whatever_the_batches(sizes):
    made = evaluation(sizes=sizes)
    examples = made.kept = []
    metrics = TipAdapter(TEMPLATES, data="test", alpha=3.0, beta=2.5)(made, PARAMS)
    logits = reference("test", 3.0, 2.5)
    assert metrics == {"accuracy": pytest.approx(accuracy("test", 3.0, 2.5)), "alpha": 3.0, "beta": 2.5}
    assert [one["predicted"] for one in examples] == [CLASSES[place] for place in logits.argmax(1)]
    np.testing.assert_allclose([one["score"] for one in examples], logits.max(1), rtol=1e-5, atol=1e-5)
    assert accuracy("test", 3.0, 2.5) != accuracy("test", 0.0, 2.5), "or the cache would do nothing here"


def test_without_weight_it_is_zero_shot():
    zero_shot = ZeroShot(TEMPLATES, data="test")(evaluation(), PARAMS)
    assert TipAdapter(TEMPLATES, data="test", alpha=0.0)(evaluation(), PARAMS)["accuracy"] == zero_shot["accuracy"]


def test_the_search_takes_what_is_right_most_often_on_its_data():
    spec = TipAdapter(TEMPLATES, data="test", search="validation", grid=(4, 5), most=(8.1, 5.1))
    metrics = spec(evaluation(), PARAMS)
    grid = [(0.1 + 2.0 * i, 0.1 + 1.0 * j) for j in range(5) for i in range(4)]
    scores = [accuracy("validation", *pair) for pair in grid]
    best = grid[int(np.argmax(scores))]
    assert (metrics["alpha"], metrics["beta"]) == pytest.approx(best) and len(set(scores)) > 1
    assert metrics["accuracy"] == pytest.approx(accuracy("test", *best))
    assert data_of(spec) == ("test", "train", "validation") and data_of(ZeroShot()) == ("validation",)


def test_classes_are_matched_by_name_between_the_data():
    order = [2, 0, 1]
    other = DATA | {"train": DATA["train"] | {"label": np.argsort(order).astype(np.int32)[DATA["train"]["label"]]}}
    names = {"train": tuple(CLASSES[i] for i in order), "validation": CLASSES, "test": CLASSES}
    spec = TipAdapter(TEMPLATES, data="test", alpha=5.0)
    assert spec(evaluation(names, other), PARAMS) == spec(evaluation(), PARAMS)


def test_gradient_reaches_the_keys():
    rng = np.random.default_rng(0)
    f, keys, vectors = (unit(rng.normal(size=shape)).astype(np.float32) for shape in ((2, 4), (5, 4), (3, 4)))
    label = np.array([0, 1, 2, -1, 0], np.int32)
    gradient = jax.grad(lambda keys: cached_logits(f, keys, label, vectors, 2.0, 1.5, 3.0).sum())(keys)
    affinity = np.exp(-3.0 * (1 - f @ keys.T))
    expected = 1.5 * 3.0 * np.einsum("bn,be->ne", affinity * (label >= 0), f)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert (gradient[3] == 0).all(), "what has no class says nothing"


def test_mistakes_are_named():
    with pytest.raises(UserError, match="search='test' is the data that is reported"):
        TipAdapter(TEMPLATES, data="test", search="test")(evaluation(), PARAMS)
    with pytest.raises(UserError, match="cache='train' is the data that is reported"):
        TipAdapter(TEMPLATES, data="train")(evaluation(), PARAMS)
    with pytest.raises(UserError, match="data='train' has no labelled record"):
        none = DATA | {"train": DATA["train"] | {"label": np.full(6, -1, np.int32)}}
        TipAdapter(TEMPLATES, data="test")(evaluation(data=none), PARAMS)
    with pytest.raises(UserError, match=r"data.train has the class 'cow', which is not one of them"):
        TipAdapter(TEMPLATES, ("cat", "dog"), data="test")(evaluation(), PARAMS)
    with pytest.raises(UserError, match=r"TipAdapter.beta=0: use a finite number above 0"):
        TipAdapter(beta=0)
    with pytest.raises(UserError, match=r"which lacks the {}"):
        TipAdapter(("x",))
