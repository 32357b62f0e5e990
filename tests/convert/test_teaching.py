"""A HuggingFace folder that teaches: from Python and from the command line, and the student once the folder is gone."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image
from test_peft_runs import PROCESSOR

from mmjax.cli import main
from mmjax.convert import load
from mmjax.convert import teacher as foreign
from mmjax.convert.huggingface import build_model
from mmjax.core.errors import UserError
from mmjax.data import Data, Digits, Normalise
from mmjax.evaluate import Report
from mmjax.models.forward import BoundForward
from mmjax.models.heads import TokenClassifier
from mmjax.objectives import Classification, DistilLogits, DistilTokens
from mmjax.train import SGD, Checkpoint, Experiment, Log, Task, Teacher, train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.validate import validated

NAMES = tuple(reversed(Digits().build().classes))  # in another order than the data has them
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
CONFIG = """
import test_teaching
def experiment():
    return test_teaching.student("nowhere")
"""


def data(split):
    size = 16 if split == "train" else 96
    return Data(Digits(split), (Normalise((0.3,) * 3, (0.35,) * 3),), batch_size=size, threads=0)


def small():
    """A model that can be handed over to transformers."""
    sizes = {**SIZES, "hidden_size": 12, "intermediate_size": 20}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=10, **sizes).to_dict()
    return build_model({**config, "architectures": ["ViTForImageClassification"]})[1]


def student(path, **changes):
    base = Experiment(
        model=small(),
        data={split: data(split) for split in ("train", "validation", "test")},
        tasks={"classes": Task(Classification()), "distil": Task(DistilLogits())},
        teachers={"teacher": Teacher(str(path), "float32")},
        optimizer=SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0),
        steps=4,
        evaluate={"report": Report()},
        checkpoint=Checkpoint(every=2),
        log=Log(every=1, tensorboard=False, progress=False),
    )
    return dataclasses.replace(base, **changes)


def write(folder, names=NAMES, processor=PROCESSOR):
    torch.manual_seed(0)
    said = (
        {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}} if names else {"num_labels": 10}
    )
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES, **said)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def set_it_up(e):
    built = tiny.ONE.build(jax.devices()[:1])
    with tiny.use_mesh(built):
        return validated(set_up(e, None, built, foreign=foreign))


def state_of(folder, e):
    run = Run(folder)
    built = tiny.ONE.build(jax.devices()[:1])
    with tiny.use_mesh(built):
        setup = validated(set_up(e, run, built, foreign=foreign), run)
        return tiny.host(Checkpoints(run.checkpoints, e.checkpoint, read_only=True).restore(setup.abstract)[0])


def test_it_answers_as_transformers_does_of_the_students_pixels(tmp_path):
    theirs = write(tmp_path / "hf")
    setup = set_it_up(student(tmp_path / "hf"))
    assert setup.classes["classes"] == NAMES
    batch = setup.datasets["train"].batch(0)
    state = setup.init()
    taught = {"teacher": (setup.teachings["teacher"], state.variables["teachers"]["teacher"])}
    own = BoundForward(setup.experiment.model, state.params, batch, teachers=taught).teacher("teacher").head("classes")
    pixels = np.moveaxis((np.asarray(batch["image"]) * 0.35 + 0.3 - 0.5) / 0.5, 3, 1)
    with torch.no_grad():
        logits = theirs(pixel_values=torch.tensor(pixels)).logits.numpy()
    np.testing.assert_allclose(own, logits, atol=2e-5)


def test_from_python_and_the_command_line_it_trains_and_goes_on_without_the_folder(tmp_path, monkeypatch, capfd):
    tiny.single_device(monkeypatch)
    write(tmp_path / "hf")
    e = student(tmp_path / "hf")
    train(e, tmp_path / "whole", foreign=foreign)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    named = ["--teachers.teacher.path", str(tmp_path / "hf"), "--workdir", str(tmp_path / "run")]
    assert main(["train", "config.py", *named, "--steps", "2"]) == 0
    shutil.rmtree(tmp_path / "hf")
    assert main(["train", "config.py", *named, "--steps", "4"]) == 0
    tiny.assert_identical(*(state_of(tmp_path / name, e) for name in ("whole", "run")))
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(tmp_path / "x.png")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "x.png")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    whole = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert tuple(whole.config.id2label.values()) == NAMES
    capfd.readouterr()
    assert main(["train", "config.py", *named[:2], "--workdir", str(tmp_path / "new")]) == 2
    said = capfd.readouterr().err
    assert "teachers.teacher: path=" in said and said.count("\n") == 1


def test_classes_that_nobody_named_are_taken_as_they_come_and_it_is_said(tmp_path):
    write(tmp_path / "hf", names=())
    setup = set_it_up(student(tmp_path / "hf"))
    assert any("nothing says what the classes of teachers.teacher are" in note for note in setup.notes)


def test_other_names_are_refused(tmp_path):
    write(tmp_path / "hf", names=tuple(f"n{i}" for i in range(10)))
    with pytest.raises(UserError, match=r"tasks\.distil: teachers\.teacher does not know the class 'zero' of data\.train"):
        set_it_up(student(tmp_path / "hf"))


def test_pixels_of_which_nothing_is_known_are_said(tmp_path):
    write(tmp_path / "hf", processor=None)
    setup = set_it_up(student(tmp_path / "hf"))
    assert any("nothing says how its image was normalised" in note for note in setup.notes)


def test_of_a_folder_only_what_is_asked_is_put_on_the_mesh(tmp_path):
    write(tmp_path / "hf")
    e = student(tmp_path / "hf", tasks={"tokens": Task(DistilTokens())}, evaluate={})
    project = {"project": TokenClassifier(24, input="image", transform=False)}
    setup = set_it_up(dataclasses.replace(e, model=e.model.copy(heads=project, huggingface={})))
    kept = setup.init().variables["teachers"]["teacher"]
    _, params = load(tmp_path / "hf")
    assert kept.keys() == {"encoders_image"} and "heads_classes" in params
    tiny.assert_identical(tiny.host(kept), tiny.host({"encoders_image": params["encoders_image"]}))
