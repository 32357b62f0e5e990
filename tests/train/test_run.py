"""A run folder knows whose it is."""

import dataclasses
import json
import shutil
import subprocess

import jax
import pytest
import tiny

import mmjax.train.run
from mmjax.core.config import to_json
from mmjax.core.errors import UserError
from mmjax.parallel.mesh import Mesh
from mmjax.train import AdamW, Checkpoint
from mmjax.train.run import Run, _revision, environment


@pytest.fixture
def trained(tmp_path):
    """A folder that holds a checkpoint of the tiny experiment, as far as its names go."""
    run = Run(tmp_path / "run")
    run.open(tiny.experiment())
    (run.checkpoints / "2").mkdir(parents=True)
    return run


def test_open_writes_the_whole_experiment(tmp_path):
    run = Run(tmp_path / "a" / "b")
    run.open(tiny.experiment())
    assert to_json(run.experiment()) == to_json(tiny.experiment())
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json"]


def test_another_experiment_is_refused_and_the_fields_named(trained):
    other = tiny.experiment(seed=3, optimizer=AdamW(learning_rate=0.5))
    with pytest.raises(UserError) as caught:
        trained.open(other)
    message = str(caught.value)
    assert "\n" not in message and str(trained.path) in message and "Use another --workdir" in message
    assert "optimizer._class: 'mmjax.train.optimizer:SGD' -> 'mmjax.train.optimizer:AdamW'" in message
    assert "; and " in message and " more." in message  # the five first of many
    assert to_json(trained.experiment()) == to_json(tiny.experiment())  # nothing was overwritten


def test_one_changed_field_is_shown_with_both_values(trained):
    with pytest.raises(UserError, match=r"another experiment: seed: 0 -> 3. Use another --workdir"):
        trained.open(tiny.experiment(seed=3))


@pytest.mark.parametrize(
    "changes",
    [{"steps": 100}, {"mesh": Mesh(fsdp=2)}, {"evaluate": {}}, {"checkpoint": Checkpoint(every=7)}, {"evaluate_every": 3}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_no_computed_step_may_change(trained, changes):
    trained.open(tiny.experiment(**changes))
    assert to_json(trained.experiment()) == to_json(tiny.experiment(**changes))


def test_how_data_is_read_may_change(trained):
    data = {name: dataclasses.replace(d, workers=1, threads=3, prefetch=9) for name, d in tiny.experiment().data.items()}
    trained.open(tiny.experiment(data=data))
    assert {d.threads for d in trained.experiment().data.values()} == {3}


def test_without_a_checkpoint_the_folder_takes_any_experiment(tmp_path):
    run = Run(tmp_path)
    run.open(tiny.experiment())
    run.open(tiny.experiment(seed=3))
    assert run.experiment().seed == 3


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config.json"):
        Run(tmp_path).experiment()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not JSON"):
        Run(tmp_path).experiment()
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"holds no experiment"):
        Run(tmp_path).experiment()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a file is there, not a folder"):
        Run(tmp_path / "file").open(tiny.experiment())


def test_environment_names_versions():
    found = environment()
    assert found["packages"]["jax"] == jax.__version__
    assert found["git"] is None or len(found["git"]) == 40


@pytest.mark.parametrize(
    "git",
    ["", "no program at all", "#!/bin/sh\nexit 128", "#!/bin/sh\nexec /bin/sleep 60", "#!/bin/sh\nprintf '\\377'"],
    ids=["absent", "broken", "no repository", "too slow", "no text"],
)
def test_whatever_is_the_matter_with_git_the_revision_is_unknown(git, tmp_path, monkeypatch):
    monkeypatch.setattr(mmjax.train.run, "GIT_TIMEOUT", 0.3)
    monkeypatch.setenv("PATH", str(tmp_path))
    if git:
        (tmp_path / "git").write_text(git)
        (tmp_path / "git").chmod(0o755)
    assert environment()["git"] is None


def test_a_git_that_may_not_be_run(tmp_path, monkeypatch):
    (tmp_path / "git").touch(mode=0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["git"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_is_that_of_mmjax_not_of_a_repository_around_it(tmp_path):
    """A checkout has one; a copy in a virtual environment that a repository of the user's ignores has none."""
    file = tmp_path / "checkout" / "mmjax" / "run.py"
    file.parent.mkdir(parents=True)
    file.touch()

    def git(*words):
        told = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path / "checkout"), *told, *words], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    assert _revision(file) is None  # no commit yet
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    assert _revision(file) is None  # not a file of it
    git("add", "mmjax")
    assert _revision(file) == git("rev-parse", "HEAD")
