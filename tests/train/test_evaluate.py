"""A run evaluated again: with flags, on other data, on machines that its mesh does not fit."""

import json
import shutil

import jax
import pytest
import tiny

from mmjax.core.errors import UserError
from mmjax.data import Digits
from mmjax.evaluate import Report
from mmjax.parallel.mesh import Mesh
from mmjax.train import train
from mmjax.train.evaluate import evaluate_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, its final metrics) of a run on eight devices, its parameters split over four."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    evaluators = tiny.experiment().evaluate | {"report": Report()}
    metrics = train(tiny.experiment(steps=2, mesh=Mesh(data=2, fsdp=4), evaluate=evaluators), folder)
    return folder, metrics


def refused(run, words: str, data: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        evaluate_run(run[0], data, words.split())
    assert "\n" not in str(error.value)
    return str(error.value)


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("config.json", "final.json", "metrics.jsonl")}


def test_flags_change_the_data_and_the_evaluators_and_leave_the_run_as_it_is(run):
    folder, metrics = run
    before = files(folder)
    words = "--data.test.source.split validation --evaluate.prompted none --evaluate.other report"
    found = evaluate_run(folder, None, words.split())
    there = evaluate_run(folder, "validation")
    assert {name.split("/")[0] for name in found} == {"report", "other", "step"}
    assert found["report/accuracy"] == found["other/accuracy"] == there["report/accuracy"] != metrics["report/accuracy"]
    assert files(folder) == before
    assert json.loads(before["final.json"])["data"] == "test"


def test_the_batch_size_changes_no_metric(run):
    folder, metrics = run
    found = evaluate_run(folder, None, ["--data.test.batch_size", "40"])
    assert found == pytest.approx({**metrics, "step": 2}, abs=1e-6)


def test_only_data_that_is_read_need_be_at_hand(run, monkeypatch):
    """The other streams of a run may be on another machine."""
    opened = []
    build = Digits.build
    monkeypatch.setattr(Digits, "build", lambda self: opened.append(self.split) or build(self))
    evaluate_run(run[0])
    assert set(opened) == {"test"}


@pytest.mark.parametrize("devices", [1, 5])
def test_on_devices_that_the_runs_mesh_does_not_fit(run, monkeypatch, caplog, devices):
    folder, metrics = run
    here = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda *_: here)
    with caplog.at_level("INFO", "mmjax"):
        found = evaluate_run(folder)
    assert found == pytest.approx({**metrics, "step": 2}, abs=1e-6)
    said = " ".join(caplog.messages)
    fitted = {1: "data=1, fsdp=1", 5: "data=5, fsdp=1"}[devices]
    assert f"does not multiply to the {devices} devices here" in said and f"evaluating on {fitted}" in said
    assert ("data.test.batch_size=96: evaluating in batches of 100, for 5 devices" in said) == (devices == 5)


def test_a_mesh_may_be_said(run, monkeypatch):
    folder, metrics = run
    here = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda *_: here)
    found = evaluate_run(folder, None, ["--mesh.data", "1", "--mesh.fsdp", "2"])
    assert found == pytest.approx({**metrics, "step": 2}, abs=1e-6)
    assert "does not multiply to the 2 devices here" in refused(run, "--mesh.data 3 --mesh.fsdp 1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--steps 3", "--steps 3: evaluation does not read it; it reads --data, --evaluate, --mesh, --model, --test_data"),
        ("--optimizer.learning_rate 1", "--optimizer.learning_rate 1: evaluation does not read it"),
        ("--optimizer lion", "--optimizer lion: evaluation does not read it"),
        ("--tasks.classify none", "--tasks.classify none: evaluation does not read it"),
        ("--model.encoders.image.depth 2", "model.encoders.image.depth: 1 -> 2: the run has an array of"),
        ("--model.heads.more classifier", "and this model an array of"),
        ("--model.heads.classes none", "and this model no array"),
        ("--data.tset.batch_size 3", "unknown field --data.tset.batch_size (did you mean 'data.test.batch_size'?)"),
        ("--test_data tset", "--test_data tset: the run has train, validation, test (did you mean 'test'?)"),
        ("--data.test.batch_size 0", "data.test: batch_size=0"),
        ("--evaluate.prompted none --evaluate.report none", "it has no evaluators"),
        ("--evaluate.report.data tset", "evaluate.report.data='tset'"),
        ("--data.test.source folder --data.test.source.path nowhere", "data.test: Folder.path='nowhere': no such folder"),
    ],
)
def test_a_flag_that_cannot_be_honoured_is_named(run, words, said):
    assert said in refused(run, words)


def test_what_changes_no_parameter_of_the_model_may_be_set(run):
    assert evaluate_run(run[0], None, ["--model.dtype", "bfloat16", "--model.encoders.image.unroll", "true"])["step"] == 2


def test_a_run_is_evaluated_where_it_was_moved_to(run, tmp_path, monkeypatch):
    folder, metrics = run
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert evaluate_run("elsewhere") == {**metrics, "step": 2}
    assert evaluate_run(moved) == {**metrics, "step": 2}
