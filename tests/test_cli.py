"""The command line: what each command prints, and one line with exit status 2 for each mistake of the user's."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax import cli
from mmjax.cli import COMMANDS, main
from mmjax.core.config import to_json
from mmjax.core.strict_json import readable
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


def asked(capsys, *words: str) -> str:
    """What a command prints that ends well and says nothing on stderr."""
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_letters_are_printed_where_the_terminal_has_them(monkeypatch):
    for encoding, shown in (("utf-8", '"naïve 猫"'), ("latin-1", r'"naïve \u732b"'), ("ascii", r'"na\u00efve \u732b"')):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", file)
        cli._say(readable("naïve 猫"))
        assert file.buffer.getvalue().decode(encoding) == f"{shown}\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_commands_and_configs(capsys, words):
    said = asked(capsys, *words)
    assert all(command.run.__doc__.splitlines()[0] in said for command in COMMANDS.values())
    assert "digits" in said.splitlines()[-1]
    assert len(said.splitlines()) <= 40


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_of_forty_lines(capsys, monkeypatch, tmp_path, command, flag):
    """It opens no data: here that would fail."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmjax.data.sources.digits.Digits.build", None)
    said = asked(capsys, *command.split(), flag)
    assert said.startswith(f"usage: mmjax {command} ")
    assert len(said.splitlines()) <= 40
    assert asked(capsys, "help", *command.split()) == said
    if command.split()[0] not in ("convert", "predict", "embed"):  # which set no fields of a config
        assert len(asked(capsys, *command.split(), flag, "all")) > len(said)


@pytest.mark.parametrize("group", ["convert", "data"])
def test_the_help_of_a_group_lists_its_commands(capsys, group):
    said = asked(capsys, group, "--help")
    for name, command in COMMANDS.items():
        assert (command.run.__doc__.splitlines()[0] in said) == name.startswith(f"{group} ")


def test_the_help_of_a_config_shows_its_values_after_the_flags(capsys):
    words = ("train", "digits", "--steps", "77", "--weighting", "pcgrad")
    said = asked(capsys, *words, "--help").splitlines()
    assert any(line.startswith("  --steps 77 ") and "updates" in line for line in said)
    assert any(line.startswith("  --weighting pcgrad ") and "one of dynamic, fixed" in line for line in said)
    assert any(line.startswith("  --workdir DIR ") for line in said)
    whole = asked(capsys, "train", "--help", "all", *words[1:]).splitlines()
    for flag in (
        "--model.encoders.image.patch 4 4",
        "--tasks.masked_lm.objective.mask_probability 0.3",
        "--coordinator HOST:PORT",
    ):
        assert any(line.startswith(f"  {flag} ") for line in whole), flag


def test_the_help_of_evaluation_reads_no_run(capsys):
    said = asked(capsys, "evaluate", "nowhere", "--help")
    for flag in ("--data NAME", "--data.NAME.batch_size", "--mesh.fsdp", "--evaluate.NAME"):
        assert flag in said


def test_the_version(capsys):
    assert asked(capsys, "--version") == f"mmjax {importlib.metadata.version('mmjax')}\n"


def test_a_reader_that_goes_away_ends_it_quietly():
    words = f"{sys.executable} -m mmjax.cli train digits --help all | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines()[0].startswith("usage: mmjax train") and done.stdout.splitlines()[1] == "0"
    assert done.stderr == ""


def test_a_module_in_the_current_folder_is_found_after_what_is_installed(capsys, tmp_path, monkeypatch):
    """As with `python -m`, though the console script has another first entry in its path."""
    (tmp_path / "my_evaluators.py").write_text(
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Mine:\n    data: str = 'validation'\n"
    )
    (tmp_path / "jax.py").write_text("raise RuntimeError('the wrong jax')")
    monkeypatch.chdir(tmp_path)
    script = [sys.executable, "-c", "import sys; sys.path.remove(''); import mmjax.cli; sys.exit(mmjax.cli.main())"]
    words = ["train", "digits", "--evaluate.mine", "my_evaluators:Mine", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*script, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "retrieval retrieval, mine my_evaluators:Mine" in done.stdout


def test_what_the_machine_refuses_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    said = "file/run: the folder cannot be made (Not a directory); use another --workdir"
    assert refused(capsys, "train", TINY, "--workdir", f"{tmp_path}/file/run").endswith(said)


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
        (["evaluate", "a", "b"], ["evaluate takes one run folder, before its flags; found 2"]),
        (["evaluate", ""], ["evaluate takes one run folder", "found ''"]),
        (["evaluate", "--data.test.batch_size", "8", "run"], ["evaluate takes one run folder, before its flags"]),
        (["evaluate", "run", "--processes", "two"], ["--processes two: expected int"]),
        (["train", "--steps", "3", "digits"], ["a config goes before the flags, mmjax COMMAND digits --steps ..."]),
        (["train", ""], ["config ''", "no such file"]),
        (["train", "--=3"], ["'--=3' names no field"]),
        (["train", "--steps="], ["--steps '': expected int"]),
        (["train", "--workdir="], ["--workdir: a value is missing"]),
        (["train", "--größe", "3"], ["unknown field --größe"]),
        (["train", "--data.train.transforms.0", "normalize"], ["one of resize, ", "did you mean 'normalise'?"]),
        (["train", "--data.train.source", "folder"], ["Folder needs path; add --data.train.source.path TEXT"]),
        (["", "x"], ["unknown command ''"]),
        (["help", "trian"], ["unknown command 'trian' (did you mean 'train'?)"]),
        (
            ["convert", "form-hf", "a", "b"],
            ["convert form-hf: use mmjax convert from-hf HF_DIR RUN", "did you mean 'from-hf'?"],
        ),
        (["convert", "from-hf", "", "b"], ["convert takes two folders"]),
        (["plan", "digits"], ["plan needs --topology"]),
        (["train", "--coordinator", "host:1234"], ["--processes, --process is missing: give --coordinator HOST:PORT"]),
        (["train", "--process", "0", "--processes", "2", "--coordinator", "host"], ["--coordinator host: give HOST:PORT"]),
        (["data", "show"], ["data show", "mmjax data inspect [CONFIG]"]),
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
        ("--model.encoders.image.heads 3", "model.encoders.image: heads=3 does not divide width=16"),
        ("--model.encoders.image.depth -1", "model.encoders.image.depth=-1: use a number from 0"),
        ("--tasks.classify.weight nan", "tasks.classify.weight=nan: use a finite number"),
        ("--seed 99999999999", "seed=99999999999: use a number from 0"),
        ("--data.validation.transforms.2 flip", "data.validation: transforms: Flip needs a uint8 image"),
        ("--data.test.max_length 1", "data.test: max_length=1 leaves no room"),
        ("--tasks.classify.objective.loss hinge", "tasks.classify.objective: classification.loss='hinge'"),
        ("--evaluate.prompted.templates x", "evaluate.prompted: templates has 'x'"),
        ("--tokenizer.vocab_size 100", "model.encoders.text.vocab_size=64 is smaller than the tokenizer's vocabulary"),
    ],
)
def test_a_mistake_that_shows_when_things_are_put_together(capsys, tmp_path, flags, said):
    run = tmp_path / "run"
    assert said in refused(capsys, "train", TINY, "--workdir", str(run), *flags.split())
    assert not run.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model.encoders.image.channels 1", "model.encoders.image: channels=1: the images have 3"),
        ("--model.encoders.image text", "model.encoders.image: a text encoder reads ids [B, T]"),
        ("--model.heads.classes none", "tasks.classify: model.heads: there is no 'classes'"),
    ],
)
def test_a_mistake_that_shows_when_the_step_is_traced(capsys, tmp_path, flags, said):
    run = Run(tmp_path / "run")
    assert said in refused(capsys, "train", TINY, "--workdir", str(run.path), *flags.split())
    assert not run.has_checkpoint()


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
    for part in ("image", "text_mask", "label", "[8, 8, 8, 3]", "1149", "\nvalidation:", "\ntest:"):
        assert part in said, said


def test_data_inspect_shows_what_is_right_and_fails_for_what_is_wrong(capsys):
    assert main(["data", "inspect", TINY, "--data.validation.source.split", "tset"]) == 2
    said = capsys.readouterr()
    assert "records      1149" in said.out and "records      360" in said.out
    assert said.err.startswith("mmjax: data.validation: Digits.split='tset' is not a split (did you mean 'test'?)"), said.err


def test_data_inspect_writes_a_page(capsys, tmp_path):
    page = tmp_path / "page.html"
    words = ["data", "inspect", TINY, "--out", str(page), "--records", "50", "--seconds", "0"]
    assert main([*words, "--data.validation.source.split", "tset"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith(f"{page}: ") and "looked at train 50 of 1149, test 50 of 360" in said.out
    assert "mmjax: data.validation: Digits.split=" in said.err and "did you mean &#x27;test&#x27;?" in page.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]
    (tmp_path / "file").write_text("")
    for place, message in (
        (tmp_path, "it is a folder; give a file, for instance"),
        (tmp_path / "no" / "page.html", f"there is no folder {tmp_path / 'no'}"),
        (tmp_path / "file" / "page.html", "there is no folder"),
    ):
        assert message in refused(capsys, "data", "inspect", TINY, "--out", str(place))


def test_data_prepare_writes_shards(capsys, tmp_path):
    out = str(tmp_path / "out")
    words = ("data", "prepare", TINY, "--out", out, "--data", "test")
    first, last = asked(capsys, *words, "--shard", "1/3").splitlines()
    assert first.startswith(f"{out}: 1 of 3 shards written, 0 were there; 120 records, 120 images as PNG, ")
    assert json.loads(last)["missing"] == 2
    assert json.loads(asked(capsys, *words).splitlines()[-1])["written"] == 2
    assert json.loads(asked(capsys, *words, "--shards", "3").splitlines()[-1])["written"] == 0
    for more, message in (
        (("--shard", "3"), "--shard 3: give I/N, for instance 0/16"),
        (("--shard", "0/3", "--shards", "4"), "how many there are is said twice"),
        (("--shards", "4"), "holds other records (shards: 3 there, 4 here)"),
        (("--shards", "-1"), "--shards=-1: use a number from 0"),
        (("--data", "tset"), "--data tset: the config has train, validation, test (did you mean 'test'?)"),
    ):
        assert message in refused(capsys, *words, *more)
    assert "data prepare takes --out" in refused(capsys, *words[:3])


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
