"""A head that remembers examples: what it is filled with, how it trains, goes on, starts another run, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.data import Caption, Data, Digits, Normalise, Subset
from mmjax.evaluate import Report, TipAdapter
from mmjax.models.cached import CachedClassifier
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import SGD, Task, train
from mmjax.train.evaluate import evaluate_run
from mmjax.train.init_from import first_state
from mmjax.train.setup import set_up
from mmjax.train.validate import validated

KEYS = "heads_classes/cache_keys"


def few(split="train", shots=2):
    transforms = (Normalise((0.3,) * 3, (0.35,) * 3), Caption(tiny.TEMPLATES))
    return Data(Subset(Digits(split), shots=shots), transforms, batch_size=8, max_length=tiny.LENGTH, threads=0)


def made(head=None, **changes):
    head = head or CachedClassifier(classes=10, size=20, width=16, templates=tiny.TEMPLATES)
    settings = {
        "model": tiny.small_model().copy(heads={"classes": head}),
        "data": {"train": few(), "test": few("test", 5)},
        "tasks": {"classes": Task(Classification())},
        "optimizer": SGD(learning_rate=0.5, schedule="constant", clip_norm=0.0, train=(KEYS,)),
        "evaluate": {"report": Report(data="test"), "tip": TipAdapter(tiny.TEMPLATES, data="test")},
        "steps": 4,
    }
    return tiny.experiment(**{**settings, **changes})


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    tiny.single_device(monkeypatch)


def begun(experiment, mesh=tiny.ONE, devices=1):
    built = mesh.build(jax.devices()[:devices])
    with use_mesh(built):
        setup = validated(set_up(experiment, None, built))
        return setup, first_state(setup, None, lambda line: None)


def test_it_begins_as_tip_adapter_and_trains_its_keys_alone(tmp_path):
    setup, state = begun(made())
    leaves = leaves_by_path(state.params)
    kept = state.variables["model"]["examples"]["heads_classes"]
    batch = setup.datasets["train"].batch(0) | {"valid": np.ones(8, bool)}
    whole = list(setup.datasets["train"].epoch())
    images = np.concatenate([b["image"][b["valid"]] for b in whole])
    labels = np.concatenate([b["label"][b["valid"]] for b in whole])
    forward = BoundForward(setup.experiment.model, state.params, {"image": images})
    np.testing.assert_allclose(leaves[KEYS], forward.embed("image"), atol=1e-6)
    np.testing.assert_array_equal(kept["label"], labels)
    assert float(kept["scale"]) == pytest.approx(float(forward.scalar("dual", "scale")))
    train(made(), tmp_path / "run")
    start = evaluate_run(tmp_path / "run")
    assert start["step"] == 4 and batch["image"].shape[0] == 8
    before, after = tiny.host(state.params), mmjax_params(tmp_path / "run")
    for path, x in leaves_by_path(before).items():
        assert np.array_equal(x, leaves_by_path(after)[path]) == (path != KEYS), path


def mmjax_params(folder):
    from mmjax.convert.api import load

    return {name: tree for name, tree in load(folder)[1].items() if name != "variables"}


def test_before_the_first_step_the_report_is_tip_adapters():
    setup, state = begun(made())
    evaluation, params = setup.evaluation(), setup.evaluated(state)
    report = setup.experiment.evaluate["report"](evaluation, params)
    tip = setup.experiment.evaluate["tip"](evaluation, params)
    assert report["accuracy"] == tip["accuracy"] > 0


def test_a_run_that_was_cut_goes_on_bit_for_bit_and_its_keys_are_not_taken_again(tmp_path):
    optimizer = dataclasses.replace(made().optimizer, ema=0.5)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(made(optimizer=optimizer), whole)
    train(made(optimizer=optimizer, steps=2), cut)
    train(made(optimizer=optimizer), cut)
    tiny.assert_identical(mmjax_params(whole), mmjax_params(cut))


def test_a_run_from_a_run_takes_its_towers_and_goes_on_with_its_keys(tmp_path):
    plain = made(tiny.small_model().heads["classes"], optimizer=SGD(learning_rate=0.1), evaluate={})
    train(plain, tmp_path / "plain")
    setup, state = begun(made(init_from=str(tmp_path / "plain"), init_fresh=("heads_classes/*",)))
    towers = mmjax_params(tmp_path / "plain")
    forward = BoundForward(setup.experiment.model, towers, {"image": next(iter(setup.datasets["train"].epoch()))["image"]})
    np.testing.assert_allclose(state.params["heads_classes"]["cache_keys"][:8], forward.embed("image"), atol=1e-6)
    train(made(init_from=str(tmp_path / "plain"), init_fresh=("heads_classes/*",)), tmp_path / "first")
    _, state = begun(made(init_from=str(tmp_path / "first"), seed=9))
    own = mmjax_params(tmp_path / "first")
    np.testing.assert_array_equal(state.params["heads_classes"]["cache_keys"], own["heads_classes"]["cache_keys"])
    assert (np.array(state.variables["model"]["examples"]["heads_classes"]["label"]) >= 0).all()


def test_the_same_on_eight_devices():
    _, one = begun(made())
    _, many = begun(made(), Mesh(data=2, fsdp=2, tensor=2), 8)
    for a, b in zip(jax.tree.leaves((one.params, one.variables)), jax.tree.leaves((many.params, many.variables)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 21}, "model.heads.classes: size=21: data.train has 20 records, and each of them is a key"),
        ({"classes": 9}, "model.heads.classes.classes=9, and data.train has 10 classes"),
        ({"data": "nowhere"}, "model.heads.classes: data='nowhere' names no dataset of this run"),
        ({"templates": ("x",)}, "model.heads.classes: templates has 'x', which lacks"),
        ({"width": 8}, "width=8: dual:image gives embeddings of width 16"),
        ({"input": "image"}, "input='image': this head reads one embedding"),
        ({"input": "dual:sound"}, "there is no 'sound'|modality 'sound'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    head = CachedClassifier(**{"classes": 10, "size": 20, "width": 16, "templates": tiny.TEMPLATES} | changes)
    with pytest.raises(UserError, match=message):
        begun(made(head, evaluate={}))


def test_any_head_can_read_the_shared_space():
    head = Classifier(classes=10, input="dual:image", pool="cls")
    setup, state = begun(made(head, optimizer=SGD(learning_rate=0.1, train=("heads_classes/*",)), evaluate={}))
    batch = setup.datasets["train"].batch(0)
    forward = BoundForward(setup.experiment.model, state.params, {name: batch[name] for name in ("image", "index")})
    own = state.params["heads_classes"]["logits"]
    np.testing.assert_allclose(forward.head("classes"), forward.embed("image") @ own["kernel"] + own["bias"][None], atol=1e-5)
    assert forward.modalities("dual:image") == ("image",)
