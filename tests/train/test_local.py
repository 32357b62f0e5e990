"""Checkpoints on a disk of the host's own: which one a run goes on from."""

import dataclasses
import errno
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny

from mmjax.core.errors import UnreachableError, UserError
from mmjax.models import Multimodal
from mmjax.models.heads import Classifier
from mmjax.train import Checkpoint, train
from mmjax.train.metrics import read_lines
from mmjax.train.run import Run
from mmjax.train.setup import Setup

pytestmark = pytest.mark.usefixtures("single")


def small(**changes):
    """A classifier without a layer."""
    model = Multimodal(encoders={"image": tiny.vit(depth=0)}, heads={"classes": Classifier(classes=10, input="image")})
    return tiny.experiment(**{"model": model, "tasks": tiny.tasks("classify"), "evaluate": {}, "steps": 7} | changes)


def made(disk, **changes):
    return small(**{"checkpoint": Checkpoint(every=4, local=str(disk), local_every=1)} | changes)


def break_off(monkeypatch, experiment, folder, at):
    """A run that dies in the batch after step `at`, without a word."""
    place, seen = Setup.place, []

    def placed(self, batch):
        seen.append(1)
        if len(seen) > at:
            raise ZeroDivisionError
        return place(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Setup, "place", placed)
        with pytest.raises(ZeroDivisionError):
            train(experiment, folder)


def losses(folder):
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, quick_compiles):
    """The losses of a run that was never broken off."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        tiny.single_device(patch)
        train(small(), folder)
    return losses(folder)


def test_a_run_goes_on_from_the_newer_disk_bit_for_bit(whole, tmp_path, monkeypatch, capsys):
    run, disk = tmp_path / "run", tmp_path / "disk"
    break_off(monkeypatch, made(disk), run, 6)
    assert sorted(p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()) == ["4"]
    capsys.readouterr()
    train(made(disk), run)
    assert f"going on from step 6 in {disk}" in capsys.readouterr().err
    assert losses(run) == whole
    train(made(disk, steps=8), run)  # both have step 7: the run folder's is taken
    assert f"going on from step 7 in {run}" in capsys.readouterr().err


def test_a_broken_one_is_passed_over(whole, tmp_path, monkeypatch, capsys):
    run, disk = tmp_path / "run", tmp_path / "disk"
    break_off(monkeypatch, made(disk), run, 6)
    shutil.rmtree(next(disk.glob("*/*/6/state")))
    train(made(disk), run)
    said = capsys.readouterr().err
    assert "local checkpoint 6 is passed over: " in said and f"going on from step 5 in {disk}" in said
    assert losses(run) == whole


def test_one_of_another_experiment_or_another_run_is_not_used(tmp_path, monkeypatch, capsys):
    run, disk = tmp_path / "run", tmp_path / "disk"
    break_off(monkeypatch, made(disk), run, 2)
    capsys.readouterr()
    train(made(disk, seed=3), run)  # the run folder itself has no checkpoint yet, so the seed may change
    said = capsys.readouterr().err
    assert "local checkpoint 2 is passed over: it is of another experiment (seed: 0 -> 3)" in said
    assert "going on" not in said and len(losses(run)) == 7
    first = Run(run).identity()
    shutil.rmtree(run)
    break_off(monkeypatch, made(disk), run, 1)
    assert "going on" not in capsys.readouterr().err and Run(run).identity() != first


def test_one_of_another_mesh_is_not_used(whole, tmp_path, monkeypatch, capsys):
    run, disk = tmp_path / "run", tmp_path / "disk"
    break_off(monkeypatch, made(disk), run, 6)
    monkeypatch.undo()  # all eight devices from here on
    train(dataclasses.replace(made(disk), mesh=tiny.Mesh(data=1, fsdp=-1)), run)
    said = capsys.readouterr().err
    assert "local checkpoint 6 is passed over: it was written on another mesh" in said
    assert f"going on from step 4 in {run}" in said
    np.testing.assert_allclose(losses(run), whole, rtol=1e-5)


def failing(monkeypatch, name, steps):
    """Orbax's first calls of a method, for these steps, fail with EIO."""
    act, left = getattr(ocp.CheckpointManager, name), list(steps)

    def fail(self, step=None, *args, **kwargs):
        if step in left:
            left.remove(step)
            raise OSError(errno.EIO, "Input/output error")
        return act(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, name, fail)


def test_a_read_that_fails_loses_nothing(whole, tmp_path, monkeypatch, capsys):
    run, disk = tmp_path / "run", tmp_path / "disk"
    break_off(monkeypatch, made(disk), run, 6)
    with monkeypatch.context() as patch:
        failing(patch, "restore", [6] * 99)
        with pytest.raises(UnreachableError, match=r"local checkpoint 6 in .*: it cannot be read just now"):
            train(made(disk), run)
    assert next(disk.glob("*/*/6")).is_dir()
    with monkeypatch.context() as patch:
        failing(patch, "restore", [6, 6])
        train(made(disk), run)
    assert f"going on from step 6 in {disk}" in capsys.readouterr().err
    assert losses(run) == whole


def test_a_write_that_fails_does_not_end_the_run(whole, tmp_path, monkeypatch, capsys):
    run, disk = tmp_path / "run", tmp_path / "disk"
    with monkeypatch.context() as patch:
        failing(patch, "save", [3])
        break_off(monkeypatch, made(disk), run, 6)
    assert "a local checkpoint could not be written (Input/output error); the run goes on without" in capsys.readouterr().err
    assert sorted(p.name for p in next(disk.glob("*/*")).iterdir() if p.name.isdigit()) == ["5", "6"]
    train(made(disk), run)
    assert losses(run) == whole


def test_how_often_is_checked():
    with pytest.raises(UserError, match=r"checkpoint\.local_every=0: use 1 or more steps"):
        Checkpoint(local="x", local_every=0)


def test_what_is_frozen_is_on_the_disk_once_and_the_run_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    optimizer = tiny.SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0, freeze=("encoders_image/*",))
    train(small(optimizer=optimizer), tmp_path / "whole")
    run, disk = tmp_path / "run", tmp_path / "disk"
    break_off(monkeypatch, made(disk, optimizer=optimizer), run, 6)
    assert len(list(disk.glob("*/*/frozen/*"))) == 1
    assert not any("project_patches" in file.read_text() for file in disk.glob("*/*/6/state/_METADATA"))
    capsys.readouterr()
    train(made(disk, optimizer=optimizer), run)
    assert f"going on from step 6 in {disk}" in capsys.readouterr().err
    assert losses(run) == losses(tmp_path / "whole")


def test_frozen_parameters_that_are_damaged_are_passed_over(tmp_path, monkeypatch, capsys):
    optimizer = tiny.SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0, freeze=("encoders_image/*",))
    run, disk = tmp_path / "run", tmp_path / "disk"
    break_off(monkeypatch, made(disk, optimizer=optimizer), run, 6)
    shutil.rmtree(next(disk.glob("*/*/frozen/*")))
    capsys.readouterr()
    train(made(disk, optimizer=optimizer), run)
    told = capsys.readouterr().err
    assert "local checkpoint 6 is passed over" in told and f"going on from step 4 in {run}" in told
