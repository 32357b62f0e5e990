"""Teachers of every kind: two towers, a captioner, an adapted run, one whose base is narrow; and what must not pass for one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_local import break_off, losses
from test_teachers import experiment, made, stepped, student

import mmjax
from mmjax.adapt import LoRA
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.data import WordPiece
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Dual
from mmjax.objectives import DistilLogits, DistilText, DistilTowers
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, Checkpoint, Task, Teacher, train

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
    with pytest.raises(UserError, match=r"teachers\.teacher: it reads 'text' by another vocabulary.*data\.train: its text"):
        made(other)
    same_size = reader(words, tokenizer=WordPiece(tiny.WORDS, lowercase=False))
    with pytest.raises(UserError, match=r"teachers\.teacher: it reads 'text' by another vocabulary"):
        made(same_size)


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
