"""Several adapters at work over one base: runs, and a folder of peft's."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import mmjax
from mmjax.adapt import LoRA, merged
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, nested
from mmjax.data import Data, Digits, Normalise, Resize
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.parallel.mesh import Mesh
from mmjax.train import AdamW, Checkpoint, Experiment, Log, Task, train

MODEL = Multimodal(
    encoders={"image": ViT(image_size=(8, 8), patch=(4, 4), width=16, depth=2, heads=2, mlp_width=32)},
    heads={"classes": Classifier(classes=10, input="image")},
)
KERNEL = "encoders_image/stack/layers/mlp/up/kernel"


def experiment(seed=0, **changes):
    def data(split):
        return Data(Digits(split), (Resize((8, 8)), Normalise((0.5,) * 3, (0.5,) * 3)), batch_size=24, threads=0)

    made = Experiment(
        model=MODEL,
        data={"train": data("train"), "test": data("test")},
        tasks={"classes": Task(Classification())},
        optimizer=AdamW(learning_rate=3e-2, train=("heads_*",)),
        mesh=Mesh(data=1),
        steps=8,
        seed=seed,
        checkpoint=Checkpoint(every=8),
        log=Log(tensorboard=False, progress=False),
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place, build = tmp_path_factory.mktemp("adapters"), Mesh.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mesh, "build", lambda self, devices=None: build(self, devices or jax.devices()[:1]))
        train(experiment(optimizer=AdamW()), place / "base")
        from_base = {"init_from": str(place / "base")}
        train(experiment(1, adapt={"all-linear": LoRA(r=2, alpha=8)}, **from_base), place / "one")
        train(experiment(2, adapt={"*/mlp/*": LoRA(r=3, alpha=9)}, **from_base), place / "two")
        train(experiment(3, adapt={"*/mlp/*": LoRA(r=3)}, frozen_dtype="int8", **from_base), place / "rounded")
        train(experiment(4, optimizer=AdamW()), place / "stranger")
        train(experiment(5, adapt={"*/mlp/*": LoRA(r=2)}, init_from=str(place / "stranger")), place / "other")
    return place


@pytest.fixture(scope="module")
def pixels():
    return list(np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def adapters(runs):
    return mmjax.Adapters(runs / "base", {"one": runs / "one", "two": runs / "two"}, batch_size=3)


def test_each_answers_as_its_own_run_and_shares_the_base(adapters, runs, pixels):
    assert adapters.names == ("one", "two")
    leaves = [leaves_by_path(adapters[name].work.params) for name in adapters.names]
    assert leaves[0][KERNEL] is leaves[1][KERNEL]
    for name in adapters.names:
        own = mmjax.Predictor(runs / name).classify(pixels, top_k=0)
        assert adapters[name].classify(pixels, top_k=0) == own
    assert adapters["one"] is adapters["one"]


def test_rows_of_one_batch_have_each_their_own(adapters, pixels):
    names = ["two", "one", "one", "two", "one"]
    found = adapters.rows(names).classify(pixels, top_k=0)
    for name, row, picture in zip(names, found, pixels, strict=True):
        alone = {one["label"]: one["score"] for one in adapters[name].classify(picture, top_k=0)[0]}
        np.testing.assert_allclose([alone[one["label"]] for one in row], [one["score"] for one in row], atol=1e-6)


def test_a_mean_is_that_of_the_merged_kernels(adapters, runs, pixels):
    weights = {"one": 0.25, "two": 0.75}
    merged_ones = [leaves_by_path(merged(MODEL, mmjax.load(runs / name)[1])) for name in weights]
    first, second = merged_ones
    mean = nested({path: 0.25 * first[path] + 0.75 * second[path] for path in first})
    predictor = adapters.mean(weights)
    batch = {"image": np.stack([predictor.work.pixels(one) for one in pixels]), "index": np.arange(5)}
    expected, found = (BoundForward(MODEL, params, batch).head("classes") for params in (mean, predictor.work.params))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_from_the_command_line(runs, pixels, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    assert main(["predict", str(runs / "base"), str(tmp_path / "a.png"), "--adapter", str(runs / "one")]) == 0
    by_adapter = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["predict", str(runs / "one"), str(tmp_path / "a.png")]) == 0
    assert by_adapter == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main(["predict", str(runs / "base"), str(tmp_path / "a.png"), "--adapter", str(runs / "other")]) == 2
    assert "was made over another base: encoders_image/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda runs, a: mmjax.Adapters(runs / "base", {}), "name at least one"),
        (lambda runs, a: mmjax.Adapters(runs / "base", {"x": runs / "other"}), "adapters.x: .* made over another base"),
        (lambda runs, a: mmjax.Adapters(runs / "base", {"x": runs / "rounded"}), "is not the same there, kept in int8"),
        (lambda runs, a: mmjax.Adapters(runs / "base", {"x": runs}), "neither a run nor a folder of an adapter"),
        (lambda runs, a: a["on"], "there is no adapter 'on' .did you mean 'one'"),
        (lambda runs, a: a.mean({"one": 1.0, "two": 1.0}), "sum to 2: use weights that sum to 1"),
        (lambda runs, a: a.rows("one"), "'one': give names of adapters"),
        (lambda runs, a: a.rows(["one"]).classify([np.zeros((8, 8, 3), np.uint8)] * 2), "2 inputs and 1 names of adapters"),
        (lambda runs, a: a.rows(["one"]).classify([np.zeros((8, 8, 3), np.uint8)], classes=["a"]), "by one adapter at a time"),
    ],
)
def test_mistakes_are_named(ask, said, runs, adapters):
    with pytest.raises(UserError, match=said):
        ask(runs, adapters)
