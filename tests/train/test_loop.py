"""Whole runs in this process: what they write, when they stop, how they go on, and what they start from."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
import tiny

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.evaluate import Report, ZeroShot
from mmjax.models import Multimodal
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification
from mmjax.train import SGD, Checkpoint, Log, Task, loop, train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.evaluate import evaluate_run
from mmjax.train.metrics import read_lines
from mmjax.train.run import Run
from mmjax.train.setup import Setup

pytestmark = pytest.mark.usefixtures("single")
QUIET = Log(every=1, tensorboard=False, progress=False)


def eight_steps(**changes):
    spec = Checkpoint(every=2, keep=4, best="prompted/accuracy")
    return tiny.experiment(**{"steps": 8, "evaluate_every": 3, "checkpoint": spec, "log": QUIET} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compiles):
    """A finished run: its folder, what it returned, and the names of the programs that were traced while it ran."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch, jax.log_compiles():
        tiny.single_device(patch)
        made = eight_steps(log=Log(every=1, tensorboard=True, progress=True))
        metrics = train(made, folder, profile=True)
    logger.removeHandler(handler)
    return folder, metrics, [text for text in records if "jit(step)" in text and text.startswith("Finished XLA")]


def curve(folder):
    """{step: {figure: value}} of the training lines, without the clock's."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "loss" in line]
    return {line["step"]: {k: v for k, v in line.items() if "per_second" not in k} for line in lines}


def params_at(folder, step):
    return Checkpoints(folder / "checkpoints", Checkpoint(), read_only=True).params(step)


def test_a_run_folder_is_complete(finished):
    folder, metrics, _ = finished
    assert list(curve(folder)) == list(range(1, 9))
    evaluated = [line["step"] for line in read_lines(folder / "metrics.jsonl") if "prompted/accuracy" in line]
    assert evaluated == [3, 6, 8]
    assert list((folder / "tensorboard").glob("events*"))
    assert list((folder / "profile").rglob("*.xplane.pb"))
    assert (folder / "tokenizer").is_dir()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["data"]["test"]["size"] == 360 and len(environment["data"]["train"]["fingerprint"]) >= 16
    final = json.loads((folder / "final.json").read_text())
    assert final == {"step": final["step"], "data": "test", **metrics}


def test_a_line_holds_what_a_person_wants_to_see(finished):
    first = read_lines(finished[0] / "metrics.jsonl")[0]
    wanted = {"step", "loss", "loss/contrastive", "loss/classify", "train/classify/accuracy", "gradient_norm", "learning_rate"}
    assert wanted | {"examples_per_second", "model_flops_per_second"} <= first.keys()
    assert first["loss"] == pytest.approx(first["loss/contrastive"] + first["loss/classify"], rel=1e-6)
    assert first["learning_rate"] == pytest.approx(0.05)


def test_the_step_is_compiled_once(finished):
    assert len(finished[2]) == 1


def test_the_best_checkpoint_is_one_that_was_measured(finished):
    """Checkpoints between evaluations carry no metrics, so none of them passes for the best."""
    folder, _, _ = finished
    measured = {step: params_at(folder, step)[1]["metrics"] for step in (4, 6, 8)}
    assert measured[4] == {} and measured[6] and measured[8]
    assert json.loads((folder / "final.json").read_text())["step"] in (3, 6, 8)


def test_evaluating_again_gives_the_same_numbers(finished):
    folder, metrics, _ = finished
    final = json.loads((folder / "final.json").read_text())
    assert evaluate_run(folder) == {**metrics, "step": final["step"]}
    with pytest.raises(UserError, match=r"--data tset: the run has train, validation, test \(did you mean 'test'\?\)"):
        evaluate_run(folder, "tset")


def test_more_steps_extend_a_run(finished, tmp_path):
    """The schedule is constant, so four steps and then four more are eight."""
    train(eight_steps(steps=4), tmp_path)
    train(eight_steps(), tmp_path)
    assert curve(tmp_path) == curve(finished[0])
    tiny.assert_identical(params_at(tmp_path, 8)[0], params_at(finished[0], 8)[0])


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_is_left_alone(finished, monkeypatch, capsys):
    folder, metrics, _ = finished
    before = times(folder)
    monkeypatch.setattr(loop, "open_run", None)
    made = eight_steps(log=QUIET)
    assert train(made, folder) == metrics
    assert capsys.readouterr().err == f"{folder} is finished: 8 steps are done; more --steps extend it\n"
    with pytest.raises(UserError, match=r"holds a checkpoint of another experiment: seed: 0 -> 3"):
        train(dataclasses.replace(made, seed=3), folder)
    assert times(folder) == before


def test_a_finished_run_that_is_asked_something_else_is_evaluated_again(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    metrics = train(eight_steps(test_data="validation"), folder)
    assert "is finished" not in capsys.readouterr().err
    assert json.loads((folder / "final.json").read_text())["data"] == "validation"
    assert metrics != finished[1]
    assert train(eight_steps(test_data="validation"), folder) == metrics
    assert "is finished" in capsys.readouterr().err


def test_a_finished_run_whose_checkpoint_is_damaged_is_not_done(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "checkpoints" / "8" / "state")
    assert train(eight_steps(), folder) == finished[1]
    said = capsys.readouterr().err
    assert "is finished" not in said and "checkpoint 8 was set aside" in said
    assert curve(folder) == curve(finished[0])
    tiny.assert_identical(params_at(folder, 8)[0], params_at(finished[0], 8)[0])


def test_an_evaluator_keeps_data_of_its_own_at_the_end(finished, tmp_path):
    """Only what stands on `validation` moves to the test data."""
    asked = {"prompted": ZeroShot(tiny.TEMPLATES), "own": ZeroShot(tiny.TEMPLATES, data="train")}
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    metrics = train(eight_steps(evaluate=asked), folder)
    step = json.loads((folder / "final.json").read_text())["step"]
    assert metrics["prompted/accuracy"] == finished[1]["prompted/accuracy"]
    assert metrics["own/accuracy"] == evaluate_run(folder, "train")["prompted/accuracy"] != metrics["prompted/accuracy"]
    assert evaluate_run(folder) == {**metrics, "step": step}


def test_a_misspelt_best_metric_is_named_at_the_first_evaluation(tmp_path):
    made = eight_steps(checkpoint=Checkpoint(every=100, best="prompted/acuracy"))
    said = r"checkpoint\.best='prompted/acuracy': its evaluator gives .*\(did you mean 'prompted/accuracy'\?\); step 3 is saved"
    with pytest.raises(UserError, match=said):
        train(made, tmp_path)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl") if "loss" in line] == [1, 2, 3]
    train(eight_steps(steps=4, checkpoint=Checkpoint(every=100, best="prompted/accuracy")), tmp_path)  # goes on from there


def test_an_error_on_the_way_out_does_not_hide_the_first(tmp_path, monkeypatch):
    closed, close = [], Checkpoints.close

    def unreachable(self):
        if sys.exc_info()[0] is not None:
            raise UserError("the bucket answers 503")

    monkeypatch.setattr(Run, "send", unreachable)
    monkeypatch.setattr(Checkpoints, "close", lambda self: (closed.append(1), close(self))[1])
    poison(monkeypatch, 2)
    with pytest.raises(UserError, match=r"^step 2: the loss of task .* is not finite") as caught:
        train(eight_steps(evaluate={}, evaluate_every=0, checkpoint=Checkpoint()), tmp_path)
    assert caught.value.__notes__ == ["and then sending the run: the bucket answers 503"]
    assert closed


def test_a_second_run_in_a_folder_is_refused_while_the_first_trains(tmp_path, monkeypatch):
    place, said = Setup.place, []

    def placed(self, batch):
        if not said:
            with pytest.raises(UserError, match=r"another process is training there") as caught:
                train(eight_steps(), tmp_path)
            said.append(caught.value)
        return place(self, batch)

    monkeypatch.setattr(Setup, "place", placed)
    train(eight_steps(steps=1, evaluate={}, evaluate_every=0, checkpoint=Checkpoint()), tmp_path)
    assert said and list(curve(tmp_path)) == [1]


def test_a_tokenizer_without_a_checkpoint_is_made_anew(tmp_path, monkeypatch):
    """A run that failed before its first checkpoint may be started again with another tokenizer."""
    with monkeypatch.context() as patch:
        patch.setattr(Setup, "compile_step", None)
        for vocabulary in (64, 50):
            tokenizer = dataclasses.replace(tiny.experiment().tokenizer, vocab_size=vocabulary)
            with pytest.raises(TypeError):
                train(eight_steps(tokenizer=tokenizer), tmp_path)
            assert Run(tmp_path).tokenizer().vocab_size == vocabulary


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_patience_ends_a_run(tmp_path, monkeypatch, mode, sign):
    values = iter([0.5, 0.6, float("nan"), -np.inf, 0.9])
    monkeypatch.setattr(
        ZeroShot, "__call__", lambda _, evaluation, params: {"accuracy": sign * (0.0 if evaluation.dry else next(values))}
    )
    spec = Checkpoint(every=100, keep=1, best="prompted/accuracy", mode=mode, patience=2)
    train(eight_steps(evaluate_every=1, checkpoint=spec), tmp_path)
    assert list(curve(tmp_path)) == [1, 2, 3, 4]  # the best is step 2, and two evaluations were no better
    assert json.loads((tmp_path / "final.json").read_text()) == {
        "step": 2,
        "data": "test",
        "prompted/accuracy": sign * 0.9,
    }
    assert train(eight_steps(evaluate_every=1, checkpoint=spec), tmp_path) == {
        "prompted/accuracy": sign * 0.9
    }  # it is finished


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_on_the_step_of_an_evaluation_does_not_lose_it(tmp_path, monkeypatch, number):
    place, seen = Setup.place, []

    def placed(self, batch):
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), number)
        return place(self, batch)

    monkeypatch.setattr(Setup, "place", placed)
    assert train(eight_steps(), tmp_path) == {}
    assert list(curve(tmp_path)) == [1, 2, 3]
    measured = params_at(tmp_path, 3)[1]["metrics"]
    assert measured and read_lines(tmp_path / "metrics.jsonl")[-1] == {"step": 3, **measured}


def poison(monkeypatch, *steps):
    """The images of some steps become NaN."""
    place, seen = Setup.place, []

    def placed(self, batch):
        seen.append(1)
        return place(self, {**batch, "image": batch["image"] * np.float32(np.nan)} if len(seen) in steps else batch)

    monkeypatch.setattr(Setup, "place", placed)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    poison(monkeypatch, 5)
    with pytest.raises(UserError) as caught:
        train(eight_steps(evaluate={}, evaluate_every=0, checkpoint=Checkpoint(every=2)), tmp_path)
    said = "step 5: the loss of task classify, contrastive is not finite; the last good checkpoint is step 4"
    assert str(caught.value).startswith(said)
    assert "optimizer.on_bad_step=skip" in str(caught.value)
    assert max(curve(tmp_path)) == 4


def test_a_loss_that_is_not_finite_is_skipped_when_asked_to(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, 5)
    optimizer = dataclasses.replace(tiny.experiment().optimizer, on_bad_step="skip")
    spec = Checkpoint(every=1, keep=8)
    train(eight_steps(evaluate={}, evaluate_every=0, checkpoint=spec, optimizer=optimizer), tmp_path)
    assert "step 5: the loss of task classify, contrastive is not finite; the step was skipped" in capsys.readouterr().err
    tiny.assert_identical(params_at(tmp_path, 5)[0], params_at(tmp_path, 4)[0])
    figures = curve(tmp_path)
    assert figures[5]["bad_step"] == 1 and figures[6]["bad_step"] == 0 and np.isfinite(figures[8]["loss"])


def test_a_run_whose_steps_are_all_skipped_is_no_success(tmp_path, monkeypatch):
    poison(monkeypatch, *range(4, 9))
    optimizer = dataclasses.replace(tiny.experiment().optimizer, on_bad_step="skip")
    with pytest.raises(UserError, match=r"step 7: .* and 4 steps in a row were skipped: .*; the checkpoints are of 4, 6"):
        train(eight_steps(evaluate={}, evaluate_every=0, checkpoint=Checkpoint(every=2), optimizer=optimizer), tmp_path)


def streams(alternate=()):
    """Two streams of unlike batches, a classifier on each."""
    head = {"classes": Classifier(classes=10, input="image")}
    model = Multimodal(encoders={"image": tiny.vit(depth=0)}, heads=head)
    tasks = {"a": Task(Classification(), data="train"), "b": Task(Classification(), data="other")}
    data = {"train": tiny.data(), "other": tiny.data("validation", 8)}
    return tiny.experiment(model=model, tasks=tasks, data=data, alternate=alternate, evaluate={})


def record(monkeypatch):
    """The labels of every batch that reaches the device, in order."""
    place, seen = Setup.place, []

    def placed(self, batch):
        seen.append(batch["label"].tolist())
        return place(self, batch)

    monkeypatch.setattr(Setup, "place", placed)
    return seen


def expected(made, *taken):
    tokenizer = made.tokenizer.train(made.data["train"].texts())
    built = {name: data.build(tokenizer, made.seed, name) for name, data in made.data.items()}
    return [built[name].batch(step)["label"].tolist() for name, step in taken]


def test_alternating_streams_follow_the_schedule_and_go_on_in_the_right_place(tmp_path, monkeypatch):
    made, seen = streams(("train", "other", "train")), record(monkeypatch)
    train(dataclasses.replace(made, steps=4), tmp_path)
    train(dataclasses.replace(made, steps=8), tmp_path)
    order = [("train", 0), ("other", 0), ("train", 1), ("train", 2), ("other", 1), ("train", 3), ("train", 4), ("other", 2)]
    assert seen == expected(made, *order)
    assert [sorted(k for k in line if k.startswith("loss/")) for line in curve(tmp_path).values()] == [
        [f"loss/{'a' if name == 'train' else 'b'}"] for name, _ in order
    ]


def test_mixed_streams_are_taken_together_each_step(tmp_path, monkeypatch):
    made, seen = streams(), record(monkeypatch)
    train(dataclasses.replace(made, steps=3), tmp_path)
    assert seen == expected(made, *[(name, step) for step in range(3) for name in ("train", "other")])
    assert {"loss/a", "loss/b"} <= curve(tmp_path)[3].keys()


def from_run(folder, **changes):
    """A classifier with a head of its own on the finished run's frozen image encoder."""
    model = Multimodal(encoders={"image": tiny.vit()}, heads={"digit": Classifier(classes=10, input="image")})
    optimizer = SGD(learning_rate=0.5, weight_decay=0.1, schedule="constant", freeze=("encoders_image/*",), ema=0.5)
    settings = {
        "model": model,
        "tasks": {"digit": Task(Classification(head="digit"))},
        "tokenizer": None,
        "optimizer": optimizer,
        "evaluate": {"report": Report(head="digit")},
        "init_from": str(folder),
    }
    return tiny.experiment(**settings | changes)


def test_fine_tuning_starts_from_a_run_and_says_what_it_took(finished, tmp_path, capsys):
    source = finished[0]
    metrics = train(from_run(source), tmp_path)
    report = json.loads((tmp_path / "init_from.json").read_text())
    start = leaves_by_path(params_at(source, report["step"])[0])
    assert sorted(report["loaded"]) == sorted(path for path in start if path.startswith("encoders_image/"))
    assert sorted(report["new"]) == ["heads_digit/logits/bias", "heads_digit/logits/kernel"]
    assert sorted(report["left_over"]) == sorted(path for path in start if not path.startswith("encoders_image/"))
    said = capsys.readouterr().err
    assert f"init_from {source} at step {report['step']}: {len(report['loaded'])} loaded (encoders_image" in said
    assert "  2 new (heads_digit 2)" in said and "left over (encoders_text" in said
    after = leaves_by_path(params_at(tmp_path, 6)[0])
    for path in report["loaded"]:
        np.testing.assert_array_equal(after[path], start[path])
    assert np.abs(after["heads_digit/logits/bias"]).max() > 0
    assert 0 <= metrics["report/accuracy"] <= 1
    assert Run(tmp_path).tokenizer().vocab_size == Run(source).tokenizer().vocab_size


def test_fine_tuning_refuses_another_shape_unless_it_is_fresh(finished, tmp_path, monkeypatch):
    model = Multimodal(encoders={"image": tiny.vit(mlp_width=48)}, heads={"digit": Classifier(classes=10, input="image")})
    said = r"init_from: encoders_image/stack/layers/mlp/\S+ has shape \(1, .*\) there and \(1, .*\) here"
    with pytest.raises(UserError, match=said):
        train(from_run(finished[0], model=model), tmp_path / "refused")
    monkeypatch.setattr(Setup, "compile_step", None)  # the report is written before anything is compiled
    with pytest.raises(TypeError):
        train(from_run(finished[0], model=model, init_fresh=("*/mlp/*",)), tmp_path / "fresh")
    report = json.loads((tmp_path / "fresh" / "init_from.json").read_text())
    assert {path for path in report["new"] if path.startswith("encoders_image/")} == {
        f"encoders_image/stack/layers/mlp/{part}" for part in ("up/kernel", "up/bias", "down/kernel", "down/bias")
    }


def test_fine_tuning_from_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
        train(from_run(tmp_path / "nowhere", tokenizer=tiny.experiment().tokenizer), tmp_path / "new")
