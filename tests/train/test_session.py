"""From a notebook: the same batches, steps and parameters as a run, with no folder."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
import tiny

import mmjax
from mmjax.core.errors import UserError
from mmjax.data import Digits
from mmjax.models import Multimodal
from mmjax.models.heads import Classifier
from mmjax.parallel.mesh import Mesh
from mmjax.train import Log, train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.metrics import read_lines

pytestmark = pytest.mark.usefixtures("single")
STEPS = 3


def made(**changes):
    return tiny.experiment(**{"steps": STEPS, "evaluate": {}} | changes)


def test_its_steps_are_those_of_a_run(tmp_path):
    """Looking at a batch or a forward before a step changes nothing."""
    train(made(), tmp_path)
    with mmjax.set_up(made()) as session:
        figures = []
        for step in range(STEPS):
            assert session.step_number == step
            seen = session.batch()["train"]["index"]
            session.forward(train=True).encode("image")
            assert session.batch()["train"]["index"] is seen
            figures.append(session.step())
    kept = Checkpoints(tmp_path / "checkpoints", made().checkpoint, read_only=True)
    tiny.assert_identical(tiny.host(session.state.params), kept.params(STEPS)[0])
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert figures == [{name: line[name] for name in found} for found, line in zip(figures, lines, strict=True)]
    with pytest.raises(UserError, match=r"^steps=3: as many are done"):
        session.step()


def test_alternating_streams_are_taken_in_turn():
    data = {"train": tiny.data(), "other": tiny.data("validation", 8)}
    tasks = tiny.tasks("contrastive") | tiny.tasks("classify", data="other")
    with mmjax.set_up(made(data=data, tasks=tasks, alternate=("train", "other"))) as session:
        for name, size in (("train", 16), ("other", 8), ("train", 16)):
            assert {stream: batch["image"].shape[0] for stream, batch in session.batch().items()} == {name: size}
            with pytest.raises(UserError, match=rf"data='trian': the next step takes {name}"):
                session.forward(data="trian")
            assert f"loss/{'classify' if name == 'other' else 'contrastive'}" in session.step()


def test_a_config_flags_and_a_forward_without_training():
    session = mmjax.set_up(tiny.__file__, "--steps 2 --optimizer.ema 0.5")
    assert session.experiment.steps == 2
    forward = session.forward()
    assert forward.encode("image").embeddings.shape == (16, 4, 16) and not forward.train
    session.step()
    tiny.assert_identical(session.forward()._params, session.state.ema)
    tiny.assert_identical(session.forward(train=True)._params, session.state.params)
    rows = {"image": session.batch()["train"]["image"][:2]}
    assert session.forward(rows).encode("image").embeddings.shape[0] == 2
    session.close()


@pytest.mark.parametrize("train", [False, True])
def test_a_forward_on_several_devices(monkeypatch, train):
    monkeypatch.undo()  # all eight of them
    with mmjax.set_up(made(mesh=Mesh(data=2, fsdp=2, tensor=2))) as session:
        inside = session.forward(train=train).embed("image")
    assert inside.sharding.mesh.size == 8
    np.testing.assert_allclose(session.forward(train=train).embed("image"), inside, rtol=1e-5, atol=1e-6)
    session.close()


def test_without_jit_a_step_is_nearly_the_same():
    model = Multimodal(encoders={"image": tiny.vit(depth=0)}, heads={"classes": Classifier(classes=10, input="image")})
    small = made(model=model, tasks=tiny.tasks("classify"))
    with mmjax.set_up(small) as session:
        compiled = session.step()
    with mmjax.set_up(small) as session, jax.disable_jit():
        one_by_one = session.step()
    assert one_by_one.keys() == compiled.keys()
    for name, value in compiled.items():
        assert one_by_one[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert np.isfinite(session.step()["loss"])  # it goes on compiled


def test_it_starts_from_another_run_and_writes_nothing(tmp_path, monkeypatch, capsys):
    train(made(log=Log(every=1, tensorboard=False, progress=False)), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with mmjax.set_up(made(init_from=str(tmp_path / "run"))) as session:
        kept = Checkpoints(tmp_path / "run" / "checkpoints", made().checkpoint, read_only=True)
        tiny.assert_identical(tiny.host(session.state.params), kept.params(STEPS)[0])
    assert "init_from" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_its_threads_end_with_it():
    before = set(threading.enumerate())
    data = {**made().data, "train": dataclasses.replace(tiny.data(), source=Digits("train"), threads=2)}
    session = mmjax.set_up(made(data=data))
    session.batch()
    session.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)  # grain tells them to end, and does not wait
        assert not thread.is_alive(), thread.name
    assert session.batch()["train"]["image"].shape[0] == 16  # it can be used again
    session.close()
