"""Teachers of every kind: two towers, a captioner, an adapted run, one whose base is narrow; and what must not pass for one."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_local import break_off, losses
from test_teachers import experiment, made, stepped, student

import mmjax
from mmjax.adapt import LoRA
from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.data import WordPiece
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Dual
from mmjax.models.heads import Classifier
from mmjax.objectives import DistilLogits, DistilText, DistilTowers, Regression
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, Checkpoint, Task, Teacher, train
from mmjax.train.teacher import Known
from mmjax.train.teachers import of_run
from mmjax.train.validate import validated


@dataclasses.dataclass(frozen=True)
class Heard(DistilText):
    """A figure beside the loss, for which another part of the teacher is read."""

    def __call__(self, forward, batch, rng):
        loss = super().__call__(forward, batch, rng)
        length = jnp.sum(jnp.square(forward.teacher(self.teacher).embed("text")))
        return dataclasses.replace(loss, metrics={**loss.metrics, "length": (length, jnp.float32(1))})


HALF = {"width": 8, "heads": 2, "depth": 1, "mlp_width": 16}
BOTH = {"towers": Task(DistilTowers(features=1.0)), "text": Task(DistilText())}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A run with two towers and a captioner."""
    folder = tmp_path_factory.mktemp("words") / "run"
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(tiny.captioner(steps=2, seed=3, evaluate={}, checkpoint=Checkpoint(every=2)), folder)
    return folder


def reader(words, tasks=BOTH, **changes):
    """A student of half the width."""
    model = Multimodal(
        encoders={"image": tiny.vit(**HALF), "text": TextTransformer(**tiny.TEXT, **HALF)},
        fusions={"dual": Dual(width=16)},
        decoders={"caption": TextDecoder(**tiny.TEXT, **HALF)},
    )
    teachers = {"teacher": Teacher(str(words), "float32")}
    return tiny.captioner(**{"model": model, "teachers": teachers, "tasks": tasks, "evaluate": {}} | changes)


def assert_same(one, other):
    (alone, figures), (spread, same) = one, other
    for name in ("loss", *(name for name in figures if name.startswith("loss/"))):
        np.testing.assert_allclose(same[name], figures[name], rtol=2e-5)
    for x, y in zip(jax.tree.leaves(spread.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6)


def test_towers_and_text_are_what_numpy_makes_of_both_models_and_the_same_on_a_mesh(words):
    e = reader(words)
    setup = made(e)
    batch = {key: jnp.asarray(x) for key, x in setup.datasets["train"].batch(0).items()}
    model, params = mmjax.load(words)
    sides = [BoundForward(e.model, setup.init().params, batch), BoundForward(model, params, batch)]
    logits, embeds, said = [], [], []
    for side in sides:
        x, y = (np.asarray(side.embed(name)) for name in ("image", "text"))
        embeds.append((x, y))
        logits.append(float(side.scalar("dual", "scale")) * x @ y.T)
        taken = {key: batch[key] for key in ("text", "text_mask")}
        said.append(np.asarray(side.decode("caption", taken, {"image": side.tokens("image")}), np.float64))

    def log_softmax(x):
        return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))

    ways = [(logits[0], logits[1]), (logits[0].T, logits[1].T)]
    affinity = np.mean([-(np.exp(log_softmax(y)) * log_softmax(x)).sum(1).mean() for x, y in ways])
    apart = np.mean([((x - y) ** 2).sum(1).mean() for x, y in zip(*embeds, strict=True)])
    log_q, log_p = map(log_softmax, said)
    kept = np.asarray(batch["text_mask"])[:, 1:].astype(bool)
    text = (np.exp(log_p) * (log_p - log_q)).sum(-1)[:, :-1][kept].mean()
    alone = stepped(e, steps=1)
    np.testing.assert_allclose(alone[1]["loss/towers"], affinity + apart, rtol=1e-4)
    np.testing.assert_allclose(alone[1]["loss/text"], text, rtol=1e-4)
    assert_same(alone, stepped(e, Mesh(data=2, fsdp=2, tensor=2), steps=1))


def test_towers_in_micro_batches_are_of_the_whole_batch(words):
    parts = SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0, accumulate=4)
    assert_same(stepped(reader(words), steps=1), stepped(reader(words, optimizer=parts), steps=1))


def test_a_text_by_other_words_is_refused_and_both_are_named(words):
    other = reader(words, tokenizer=WordPiece(60))
    said = (
        r"teachers\.teacher: it reads 'text' by another tokenizer \(a table of 64 words, fingerprint \w+\) than 'text' of "
        r"data\.train is made with, tokenizer \({} words, fingerprint \w+\)"
    )
    with pytest.raises(UserError, match=said.format(60)):
        made(other)
    same_size = reader(words, tokenizer=WordPiece(tiny.WORDS, lowercase=False))
    with pytest.raises(UserError, match=said.format(64)):
        made(same_size)


def test_a_text_by_other_words_is_one_line_and_status_2(words, tmp_path, monkeypatch, capfd):
    tiny.single_device(monkeypatch)
    (tmp_path / "config.py").write_text(
        "import test_teachers_kinds as kinds\n"
        "from mmjax.data import WordPiece\n"
        "def experiment():\n"
        "    return kinds.reader('nowhere', tokenizer=WordPiece(60))\n"
    )
    named = ["--teachers.teacher.path", str(words), "--workdir", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / "config.py"), *named]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "teachers.teacher: it reads 'text' by another tokenizer" in said


def test_what_no_task_asks_of_a_teacher_is_not_kept(words, tmp_path, single):
    """Of two towers and a captioner, for one who only listens to what is written: also once it goes on."""
    e = reader(words, {"text": Task(DistilText())}, steps=2)
    setup = made(e)
    assert setup.abstract.variables["teachers"]["teacher"].keys() == {"encoders_image", "decoders_caption"}
    (note,) = (note for note in setup.notes if note.startswith("teachers.teacher: ") and "are kept" in note)
    assert note.endswith("no task asks encoders_text, fusions_dual")
    kept = setup.init().variables["teachers"]["teacher"]
    _, params = mmjax.load(words)
    tiny.assert_identical(tiny.host(kept), tiny.host({name: params[name] for name in kept}))
    train(e, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "frozen").iterdir())
    train(dataclasses.replace(e, steps=3), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "frozen").iterdir()) == before


def test_a_figure_keeps_what_it_asks_and_a_teacher_that_nobody_asks_is_said(words):
    e = reader(words, {"text": Task(Heard())})
    e = dataclasses.replace(e, teachers={**e.teachers, "idle": Teacher(str(words))})
    setup = made(e)
    kept = setup.abstract.variables["teachers"]
    assert kept["teacher"].keys() == {"encoders_image", "decoders_caption", "encoders_text", "fusions_dual"}
    assert kept["idle"].keys() == kept["teacher"].keys()
    assert any(note.startswith("teachers.idle: no task asks it, and it takes 0.0") for note in setup.notes)


def test_what_is_wrong_in_the_teachers_model_is_said_of_the_teacher(words):
    """Of texts longer than it has places for; the student has a table of its own."""
    setup = made(reader(words))
    model = setup.teachers["teacher"].model
    short = model.copy(encoders={**model.encoders, "text": model.encoders["text"].copy(max_length=8)})
    known = dataclasses.replace(setup.teachers["teacher"], model=short)
    with pytest.raises(UserError, match=r"^teachers\.teacher: model\.encoders\.text: a text of 12 tokens"):
        validated(dataclasses.replace(setup, teachers={"teacher": known}))


def test_a_head_of_numbers_teaches_no_classes(tmp_path, single):
    model = Multimodal(encoders={"image": tiny.vit()}, heads={"value": Classifier(classes=1, input="image")})
    tasks = {"value": Task(Regression(head="value", target="label"))}
    train(experiment(steps=1, model=model, tasks=tasks, evaluate={}, checkpoint=Checkpoint(every=1)), tmp_path / "numbers")
    known = of_run(str(tmp_path / "numbers"))
    assert known.numbers == ("value",) and Known.from_json(known.to_json(), importlib.import_module).numbers == ("value",)
    train(experiment(steps=1), tmp_path / "run")
    setup = made(student(tmp_path / "run", {"logits": Task(DistilLogits())}))
    assert not any("nothing says what the classes" in note for note in setup.notes)
    numbers = dataclasses.replace(setup.teachers["teacher"], numbers=("classes",))
    with pytest.raises(UserError, match=r"tasks\.logits: heads\.classes of teachers\.teacher was trained to give numbers"):
        validated(dataclasses.replace(setup, teachers={"teacher": numbers}))


@pytest.fixture(scope="module", params=["float32", "int8"])
def adapted(request, tmp_path_factory):
    """A run with adapters over a base that is kept narrow or not."""
    place = tmp_path_factory.mktemp("adapted")
    changes = {"adapt": {"all-linear": LoRA(r=2, alpha=8)}, "frozen_dtype": request.param, "init_from": str(place / "base")}
    optimizer = SGD(learning_rate=0.5, schedule="constant", clip_norm=0.0, train=("heads_*",))
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(experiment(steps=2), place / "base")
        train(experiment(steps=2, optimizer=optimizer, **changes), place / "run")
    return place / "run"


def test_what_adapts_a_teacher_is_merged_and_a_narrow_base_is_wide(adapted):
    setup = made(student(adapted, {"logits": Task(DistilLogits())}))
    state = setup.init()
    kept = leaves_by_path(state.variables["teachers"]["teacher"])
    assert not any("lora" in path or path.endswith("kernel_scale") for path in kept)
    assert {str(x.dtype) for x in kept.values()} == {"float32"}
    batch = {key: jnp.asarray(x) for key, x in setup.datasets["train"].batch(0).items()}
    taught = {"teacher": (setup.teachings["teacher"], state.variables["teachers"]["teacher"])}
    forward = BoundForward(setup.experiment.model, state.params, batch, teachers=taught)
    model, params = mmjax.load(adapted)
    assert any("lora" in path for path in leaves_by_path(params))
    np.testing.assert_allclose(
        forward.teacher("teacher").head("classes"), BoundForward(model, params, batch).head("classes"), atol=2e-5
    )


def test_a_local_checkpoint_goes_on_with_its_teacher(tmp_path, monkeypatch, single, capsys):
    train(experiment(steps=2, seed=3), tmp_path / "teacher")

    def run(disk):
        kept = Checkpoint(every=4, local=str(disk), local_every=1)
        return student(tmp_path / "teacher", {"logits": Task(DistilLogits())}, steps=6, checkpoint=kept, evaluate={})

    train(run(tmp_path / "d0"), tmp_path / "whole")
    break_off(monkeypatch, run(tmp_path / "d1"), tmp_path / "run", 3)
    capsys.readouterr()
    train(run(tmp_path / "d1"), tmp_path / "run")
    assert f"going on from step 3 in {tmp_path / 'd1'}" in capsys.readouterr().err
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
