"""A run that begins with parts of other runs."""

import json

import jax
import numpy as np
import pytest
import tiny

from mmjax.core.config import rooted
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer
from mmjax.models.fusion import Dual
from mmjax.models.heads import Classifier
from mmjax.parallel.mesh import use_mesh
from mmjax.train import train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.init_from import first_state
from mmjax.train.run import Run
from mmjax.train.setup import set_up


def model(**changes):
    text = TextTransformer(**tiny.TEXT, **(tiny.SIZE | {"depth": 0}), positions="none")
    parts = {"image": tiny.vit(**changes), "text": text}
    return Multimodal(encoders=parts, fusions={"dual": Dual(width=16)}, heads={"classes": Classifier(classes=10)})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of different seeds."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        for seed, name in enumerate(("one", "two")):
            train(tiny.experiment(steps=1, seed=seed, evaluate={}), folder / name)
    return folder


def parts_of(folder):
    return {"encoders.image": str(folder / "one"), "encoders.text": str(folder / "two")}


def begun(made, folder, said=None):
    run = Run(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    mesh = tiny.ONE.build(jax.devices()[:1])
    with use_mesh(mesh):
        setup = set_up(made, run, mesh)
        return setup, first_state(setup, run, (said if said is not None else []).append)


def saved(path):
    run = Run(path)
    kept = Checkpoints(run.checkpoints, run.experiment().checkpoint, print, read_only=True)
    return leaves_by_path(kept.params(kept.best_step(), None)[0])


def test_it_begins_with_a_tower_of_each(runs, tmp_path):
    said = []
    made = tiny.experiment(model=model(), init_parts=parts_of(runs), tokenizer=None, seed=7)
    setup, state = begun(made, tmp_path / "run", said)
    own, fresh = leaves_by_path(state.params), leaves_by_path(setup.init().params)
    taken = {"encoders_image": saved(runs / "one"), "encoders_text": saved(runs / "two")}
    for path, x in own.items():
        source = taken.get(path.split("/")[0])
        np.testing.assert_array_equal(x, fresh[path] if source is None else source[path])
    assert setup.tokenizers[""].huggingface.get_vocab() == Run(runs / "two").tokenizers()[""].huggingface.get_vocab()
    about = json.loads((tmp_path / "run" / "init_parts.json").read_text())
    assert about["encoders.text"]["run"].endswith("two") and about["encoders.image"]["step"] == 1
    assert any("init_parts encoders.image from" in line for line in said)


def test_parts_come_over_what_init_from_gives(runs, tmp_path):
    made = tiny.experiment(init_from=str(runs / "one"), init_parts={"encoders.text": str(runs / "two")})
    _, state = begun(made, tmp_path / "run")
    own, one, two = leaves_by_path(state.params), saved(runs / "one"), saved(runs / "two")
    for path, x in own.items():
        np.testing.assert_array_equal(x, (two if path.startswith("encoders_text/") else one)[path])


def test_settings_that_change_what_is_computed_are_said(runs, tmp_path):
    said = []
    begun(tiny.experiment(model=model(activation="relu", dropout=0.1), init_parts=parts_of(runs)), tmp_path / "run", said)
    assert [line.strip() for line in said if "there" in line] == ["encoders.image: activation='gelu' there, 'relu' here"]


def test_what_does_not_fit_is_refused(runs, tmp_path):
    wrong = {
        "the model has no such part": ({"encoders.sound": "x"}, model()),
        "is not there": (parts_of(runs), model(layer_scale=0.1)),
        "has no place here": (parts_of(runs), model(qkv_bias=False)),
        "there and": (parts_of(runs), model(mlp_width=64)),
        "config": ({"encoders.image": str(runs / "three")}, model()),
    }
    for line, (parts, made) in wrong.items():
        with pytest.raises(UserError, match=line) as error:
            experiment = tiny.experiment(model=made, init_parts=parts)
            experiment.check()
            begun(experiment, tmp_path / "run")
        assert "init_parts.encoders." in str(error.value) and "\n" not in str(error.value)


def test_paths_are_found_from_anywhere(runs):
    made = tiny.experiment(model=model(), init_parts={"encoders.image": "one", "encoders.text": "nowhere"})
    assert rooted(made, runs).init_parts == {"encoders.image": str(runs / "one"), "encoders.text": "nowhere"}
