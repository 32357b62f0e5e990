"""The command line: what each command prints, and one line with exit status 2 for each mistake of the user's."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.cli import main
from mmjax.core.config import leaves, to_json
from mmjax.train.config_file import load_config
from mmjax.train.run import Run

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "tests" / "train" / "tiny.py")


def refused(capsys, *words: str) -> str:
    """The one line of a mistake."""
    assert main(words) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert said.out == "" and len(lines) == 1 and lines[0].startswith("mmjax: "), said
    return lines[0]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_commands_and_configs(capsys, words):
    assert main(words) == 0
    said = capsys.readouterr().out
    for command in ("mmjax train [CONFIG]", "mmjax evaluate RUN", "mmjax data inspect"):
        assert command in said
    assert "digits" in said.splitlines()[-2] or "digits" in said.splitlines()[-1]


COMMANDS = ("train", "evaluate", "convert", "convert from-hf", "convert to-hf", "data", "data inspect", "plan")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_every_command_has_a_help_of_a_screen(capsys, command, word):
    assert main([*command.split(), word]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"mmjax {command}" in lines[0] and 1 < len(lines) <= 40
    assert all("  " in line.strip() for line in lines if line.startswith("  --")), "a flag without words of its own"


def test_help_of_a_config_shows_its_everyday_fields_with_their_values(capsys):
    assert main(["train", "digits", "--steps", "77", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    flags = {" ".join(line.split("  ")[1].split()) for line in lines if line.startswith("  --")}
    assert {"--steps 77", "--weighting fixed", "--data.train.batch_size 64", "--optimizer.learning_rate 0.002"} <= flags
    assert not any(flag.startswith("--tasks.masked_lm.objective.mask_probability") for flag in flags)
    assert len(lines) <= 40


@pytest.mark.parametrize("words", [["train", "digits", "--help", "all"], ["train", "--help", "all", "digits", "--steps", "77"]])
def test_help_all_lists_every_field(capsys, words):
    assert main(words) == 0
    said = capsys.readouterr().out
    shown = {line.split()[0] for line in said.splitlines() if line.startswith("  --")}
    assert {f"--{path}" for path in leaves(load_config("digits"))} <= shown
    assert {"--weighting", "--optimizer", "--model.encoders.image", "--data.train.transforms.0", "--evaluate.prompted"} <= shown


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().endswith(importlib.metadata.version("mmjax"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'?"]),
        (["train", "digist"], ["config 'digist'", "did you mean 'digits'?"]),
        (["train", "--model.encoders.image.dept", "3"], ["model.encoders.image.dept", "'model.encoders.image.depth'"]),
        (["train", "--steps", "ten"], ["--steps ten", "expected int", "1200"]),
        (["train", "--steps"], ["--steps: a value is missing"]),
        (["train", "digits", "--workdir"], ["--workdir: a value is missing"]),
        (["train", "digits", "extra"], ["'extra' is neither a config nor a flag"]),
        (["train", "--optimizer", "adam"], ["--optimizer adam", "adamw"]),
        (["train", "--model.dtype", "float16"], ["model.dtype='float16'", "auto, float32 or bfloat16"]),
        (["evaluate"], ["evaluate takes one run folder, before its flags; found 0"]),
        (["evaluate", "run", "--processes", "two"], ["--processes two: expected int"]),
        (["train", "--coordinator", "host:1234"], ["--processes, --process is missing: give --coordinator HOST:PORT"]),
        (["train", "--process", "0", "--processes", "2", "--coordinator", "host"], ["--coordinator host: give HOST:PORT"]),
        (["data", "show"], ["data show", "mmjax data inspect [CONFIG]"]),
        (["data", "inspect", "digits", "--data.train.source.split", "tset"], ["tset", "test"]),
    ],
)
def test_a_mistake_in_the_words(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *words)
    assert all(part in line for part in said), line
    assert not (tmp_path / "runs" / "digits" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--data.train.batch_size 12", "data.train.batch_size=12 does not divide over 8 devices (the mesh's data x fsdp)"),
        ("--data.validation.batch_size 12", "data.validation.batch_size=12 does not divide over 8 devices"),
        ("--mesh.data 3", "mesh (data=3, fsdp=1, tensor=1) does not multiply to the 8 devices here"),
        ("--mesh.data 2 --mesh.tensor 4", "heads=2 does not divide over mesh.tensor=4"),
        ("--mesh.fsdp 0", "mesh.fsdp=0: use a positive number"),
        ("--optimizer.accumulate 4", "data.train.batch_size=16 does not divide over 8 devices x accumulate=4"),
        ("--checkpoint.patience 2", "checkpoint.patience needs checkpoint.best"),
        ("--model.encoders.image.heads 3", "heads=3 does not divide width=16"),
        ("--tokenizer.vocab_size 100", "model.encoders.text.vocab_size=64 is smaller than the tokenizer's vocabulary"),
    ],
)
def test_a_mistake_that_shows_when_things_are_put_together(capsys, tmp_path, flags, said):
    run = tmp_path / "run"
    assert said in refused(capsys, "train", TINY, "--workdir", str(run), *flags.split())
    assert not run.exists()


def test_a_workdir_of_another_experiment(capsys, tmp_path):
    run = Run(tmp_path / "run")
    run.open(load_config(TINY))
    (run.checkpoints / "2").mkdir(parents=True)
    line = refused(capsys, "train", TINY, f"--workdir={run.path}", "--seed", "5")
    assert "holds a checkpoint of another experiment: seed: 0 -> 5. Use another --workdir" in line
    assert run.experiment().seed == 0


def test_evaluating_what_is_no_run_or_not_ready(capsys, tmp_path):
    assert "is not a run: it has no config.json" in refused(capsys, "evaluate", str(tmp_path))
    Run(tmp_path).open(load_config(TINY))
    assert "the run has no checkpoint yet" in refused(capsys, "evaluate", str(tmp_path))
    assert "--data tset: the run has train, validation, test (did you mean 'test'?)" in refused(
        capsys, "evaluate", str(tmp_path), "--data", "tset"
    )


def test_a_config_of_another_version(capsys, tmp_path):
    data = to_json(load_config(TINY))
    data["stepz"] = data.pop("steps")
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert "config.stepz: Experiment has no such field (did you mean 'steps'?)" in refused(capsys, "evaluate", str(tmp_path))


def test_data_inspect_shows_what_a_batch_holds(capsys):
    assert main(["data", "inspect", TINY, "--data.train.batch_size", "8"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("train:")
    for part in ("image", "text_mask", "label", "[8, 8, 8, 3]", "1149"):
        assert part in said, said


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmjax.train.train", interrupt)
    assert main(["train", "digits"]) == 1
    assert "the same command goes on from there" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise ValueError("a defect")

    monkeypatch.setattr("mmjax.train.train", fail)
    with pytest.raises(ValueError, match="a defect"):
        main(["train", "digits"])


def test_the_exit_status_of_the_process():
    """As a shell sees it; nothing but the line is printed."""
    words = [sys.executable, "-m", "mmjax.cli", "train", "digits", "--step", "3"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "mmjax: unknown field --step (did you mean 'steps'?)\n"
