"""A run evaluated again: with flags, on other data, on machines that its mesh does not fit; and a config's data, looked at."""

import dataclasses
import json
import shutil

import jax
import pytest
import tiny
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import Data, Digits, Folder, Normalise
from mmjax.evaluate import Report
from mmjax.parallel.mesh import Mesh
from mmjax.train import train
from mmjax.train.evaluate import evaluate_run, inspect_data


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


def test_what_is_said_of_each_example_is_written_down(run, tmp_path):
    """At the end of a run, and where `--predictions` says; the metrics can be computed from it."""
    folder, metrics = run
    told = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for name in ("prompted", "report"):
        own = [example for example in told if example["evaluator"] == name]
        assert [example["index"] for example in own] == list(range(360)) and {example["data"] for example in own} == {"test"}
        assert sum(one["label"] == one["predicted"] for one in own) / 360 == pytest.approx(metrics[f"{name}/accuracy"])
    before = files(folder)
    evaluate_run(folder, None, (), tmp_path / "again.jsonl")
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [{**one, "score": 0} for one in again] == [{**one, "score": 0} for one in told]
    assert files(folder) == before
    with pytest.raises(UserError, match=r"--predictions .*again\.jsonl: the file is there already"):
        evaluate_run(folder, None, (), tmp_path / "again.jsonl")


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


def looked(experiment):
    """What is said of each of its data, the last line, and the fault that ends it."""
    said: list[str] = []
    try:
        return said, inspect_data(experiment, said.append), ""
    except UserError as error:
        return said, "", str(error)


def folders(place, *splits):
    """Two classes of five pictures in each split, and their data."""
    for split in splits:
        for level, name in enumerate(("dark", "light")):
            (place / split / name).mkdir(parents=True)
            for i in range(5):
                Image.new("RGB", (8, 8), (level * 255,) * 3).save(place / split / name / f"{i}.png")
    return {split: Data(Folder(str(place), split), (Normalise(),), batch_size=4, threads=0) for split in splits}


@pytest.fixture
def classifier(monkeypatch):
    """An experiment that needs no texts, on the data given."""
    tiny.single_device(monkeypatch)
    return lambda data: tiny.experiment(data=data, tasks=tiny.tasks("classify"), tokenizer=None, evaluate={}, mesh=tiny.ONE)


def test_all_data_is_looked_at(monkeypatch):
    tiny.single_device(monkeypatch)
    said, last, fault = looked(tiny.experiment(mesh=tiny.ONE))
    assert not fault and last == "nothing that would end a run was found in train, validation, test"
    assert [one.split(":")[0] for one in said[:3]] == ["train", "validation", "test"]
    for one, size in zip(said[:3], (1149, 288, 360), strict=True):
        assert f"records      {size}," in one and "tokens       " in one and "unreadable   0 record(s)" in one


def test_a_broken_file_of_any_split_is_named(tmp_path, classifier):
    data = folders(tmp_path, "train", "validation", "test")
    (tmp_path / "test" / "light" / "3.png").write_bytes(b"broken")
    said, _, fault = looked(classifier(data))
    name = f"{tmp_path}/test/light/3.png"
    assert f"             {name}: not an image" in said[2].splitlines() and name not in said[0] + said[1]
    many = "1 of 10 records cannot be read, more than bad_record_limit=0.01 allows"
    assert fault == f"data.test: {many}; the first: {name} (not an image)"
    allowed = {**data, "test": dataclasses.replace(data["test"], bad_record_limit=0.2)}
    said, _, fault = looked(classifier(allowed))
    assert name in said[2] and fault == "tasks.classify: model.heads.classes.classes=10, and data.train has 2 classes"


def test_what_cannot_be_opened_hides_nothing_else(tmp_path, classifier):
    data = folders(tmp_path, "train", "test")
    more = {"gone": Data(Folder("/nowhere")), "empty": Data(Folder(str(tmp_path), "validation")), **data}
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "light" / "9.png")
    said, _, fault = looked(classifier(more))
    assert [one.splitlines()[0] for one in said] == ["gone:", "empty:", "train:", "test:"]
    assert said[0].splitlines()[1] == "data.gone: Folder.path='/nowhere': no such folder"
    assert "data.empty: Folder.split='validation': none of the 21 images" in said[1]
    assert "records      10," in said[2] and "1 record(s) are unlike the first" in said[3]
    assert fault == "data.gone: Folder.path='/nowhere': no such folder (and 2 more, see above)"


def test_texts_that_cannot_be_had_are_said_once(tmp_path, monkeypatch):
    tiny.single_device(monkeypatch)
    data = tiny.experiment().data | {"test": folders(tmp_path, "train", "test")["test"]}
    experiment = tiny.experiment(data=data | {"train": tiny.data("tset")}, mesh=tiny.ONE)
    said, _, fault = looked(experiment)
    assert "Digits.split='tset' is not a split" in said[0] and "not looked at without a tokenizer: data.train" in said[1]
    assert "records      10," in said[2] and fault.startswith("data.train: Digits.split='tset'") and "more, see" not in fault


def test_an_experiment_that_does_not_fit_is_refused_at_once(monkeypatch):
    tiny.single_device(monkeypatch)
    said, _, fault = looked(tiny.experiment(steps=-1, mesh=tiny.ONE))
    assert not said and "steps=-1" in fault
