"""A run folder knows whose it is."""

import dataclasses
import errno
import json
import shutil
import subprocess
from pathlib import Path

import jax
import pytest
import tiny

import mmjax.train.run
from mmjax.core.config import to_json
from mmjax.core.errors import UnreachableError, UserError
from mmjax.data import Flip, Folder, Pretrained
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
        trained.check(other)
    message = str(caught.value)
    assert "\n" not in message and str(trained.path) in message and "Use another --workdir" in message
    assert "optimizer._class: 'mmjax.train.optimizer:SGD' -> 'mmjax.train.optimizer:AdamW'" in message
    assert "; and " in message and " more." in message  # the five first of many
    assert to_json(trained.experiment()) == to_json(tiny.experiment())  # nothing was overwritten


def test_one_changed_field_is_shown_with_both_values(trained):
    with pytest.raises(UserError, match=r"another experiment: seed: 0 -> 3. Use another --workdir"):
        trained.check(tiny.experiment(seed=3))


@pytest.mark.parametrize(
    "changes",
    [{"steps": 100}, {"mesh": Mesh(fsdp=2)}, {"evaluate": {}}, {"checkpoint": Checkpoint(every=7)}, {"evaluate_every": 3}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_no_computed_step_may_change(trained, changes):
    trained.check(tiny.experiment(**changes))
    trained.open(tiny.experiment(**changes))
    assert to_json(trained.experiment()) == to_json(tiny.experiment(**changes))


def test_how_data_is_read_may_change(trained):
    data = {name: dataclasses.replace(d, workers=1, threads=3, prefetch=9) for name, d in tiny.experiment().data.items()}
    trained.check(tiny.experiment(data=data))
    trained.open(tiny.experiment(data=data))
    assert {d.threads for d in trained.experiment().data.values()} == {3}


def test_without_a_checkpoint_the_folder_takes_any_experiment(tmp_path):
    run = Run(tmp_path)
    run.open(tiny.experiment())
    run.check(tiny.experiment(seed=3))
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
        Run(tmp_path / "file").check(tiny.experiment())


def test_a_run_that_has_lost_its_checkpoints_is_not_begun_again(tmp_path):
    run = Run(tmp_path)
    run.open(tiny.experiment())
    (tmp_path / "finished.json").write_text("{}")
    with pytest.raises(UserError, match=r"finished\.json says that the run has come to its end, and it has no checkpoint"):
        run.check(tiny.experiment())
    run.open(tiny.experiment())  # as where the only one was broken and is set aside
    run.check(tiny.experiment())
    run.checkpoints.write_text("")
    with pytest.raises(UserError, match=r"checkpoints is a file there, not a folder"):
        run.check(tiny.experiment())


def test_what_is_wrong_in_a_runs_config_is_said_with_its_file(tmp_path):
    run = Run(tmp_path)
    run.open(tiny.experiment())
    text = (tmp_path / "config.json").read_text().replace("contrastive:Contrastive", "contrastive:Contrast")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: config\.tasks\.contrastive\.objective .*did you mean 'Contrastive'"):
        run.experiment()


def test_fewer_steps_than_were_done_are_refused(trained):
    with pytest.raises(UserError, match=r"the run is at step 2 and steps=1 are asked for; ask for as many or more"):
        trained.check(tiny.experiment(steps=1))
    trained.check(tiny.experiment(steps=2))


def test_a_config_of_a_later_version_is_refused(tmp_path):
    run = Run(tmp_path)
    run.open(tiny.experiment())
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"_format": 4}))
    with pytest.raises(UserError, match=r"config\.json has format 4, newer than this mmjax reads \(3\): upgrade mmjax"):
        run.experiment()
    for name in ("_format", "_folder"):  # as before there were any
        del data[name]
    (tmp_path / "config.json").write_text(json.dumps(data))
    begun = tiny.experiment()
    stored = {name: dataclasses.replace(own, order="stored") for name, own in begun.data.items()}
    assert run.experiment() == dataclasses.replace(begun, data=stored)


def test_a_run_from_before_orders_could_be_chosen_goes_on_in_its_own(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "old")
    config = tmp_path / "old" / "config.json"
    data = json.loads(config.read_text()) | {"_format": 1}
    for own in data["data"].values():
        assert own.pop("order") == "records" and own.pop("block_window")
    config.write_text(json.dumps(data))
    old, now = Run(tmp_path / "old"), tiny.experiment()
    with pytest.raises(UserError, match=r"of another experiment: .*data\.train\.order: 'stored' -> 'records'"):
        old.check(now)
    assert {own.order for own in old.continued(now).data.values()} == {"stored"}
    old.check(old.continued(now))
    assert trained.continued(now) == now and Run(tmp_path / "new").continued(now) == now
    chosen = dataclasses.replace(now, data={**now.data, "train": dataclasses.replace(now.data["train"], order="blocks")})
    assert old.continued(chosen).data["train"].order == "blocks"  # what somebody has chosen is refused by `check`


def test_a_run_from_before_texts_held_mirroring_back_goes_on_without(trained, tmp_path):
    def with_flips(*flips):
        now = tiny.experiment()
        data = {name: dataclasses.replace(own, transforms=(*flips, *own.transforms)) for name, own in now.data.items()}
        return dataclasses.replace(now, data=data)

    shutil.copytree(trained.path, tmp_path / "old")
    old, config, now = Run(tmp_path / "old"), tmp_path / "old" / "config.json", with_flips(Flip(0.25), Flip(0.5))
    old.write_config(now)
    assert old.continued(now) == now and old.experiment() == now
    data = json.loads(config.read_text()) | {"_format": 2}
    for own in data["data"].values():
        assert own["transforms"][0].pop("sided") and own["transforms"][1].pop("sided")
    config.write_text(json.dumps(data))
    before = with_flips(Flip(0.25, sided=()), Flip(0.5, sided=()))
    assert old.experiment() == before and old.continued(now) == before
    with pytest.raises(UserError, match=r"of another experiment: .*sided"):
        old.check(now)
    old.check(old.continued(now))
    chosen = old.continued(with_flips(Flip(0.25, sided=("left",)), Flip(0.5)))
    assert chosen == with_flips(Flip(0.25, sided=("left",)), Flip(0.5, sided=()))  # a choice is refused by `check`
    assert Run(tmp_path / "new").continued(now) == now


def test_trouble_with_the_disk_is_not_an_empty_folder(trained, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", fail)
        for ask in (trained.has_checkpoint, trained.tokenizer, lambda: trained.check(tiny.experiment())):
            with pytest.raises(UnreachableError):
                ask()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UnreachableError):
        trained.experiment()


def photos(root):
    (root / "photos" / "dark").mkdir(parents=True)


def on_photos(path="photos"):
    data = dataclasses.replace(tiny.data(), source=Folder(path, "all"))
    return tiny.experiment(data={"train": data, "validation": data}, init_from="somewhere", tokenizer=Pretrained("words"))


def test_relative_paths_are_found_from_anywhere(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        photos(folder)
    monkeypatch.chdir(here)
    run = Run("run")
    run.open(on_photos())
    (here / "run" / "checkpoints" / "2").mkdir(parents=True)
    monkeypatch.chdir(there)
    found = Run(here / "run").experiment()
    assert found.data["train"].source.path == str(here / "photos")
    assert (found.init_from, found.tokenizer.path) == ("somewhere", "words")  # neither is there: as it was written
    monkeypatch.chdir(here)
    run.check(on_photos())  # as it was written
    run.check(on_photos(str(here / "photos")))  # the same folder
    with pytest.raises(UserError, match=r"data\.train\.source\.path: 'photos' -> "):
        run.check(on_photos(str(there / "photos")))
    monkeypatch.chdir(tmp_path)
    here.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    Run("run").check(on_photos())  # a project that was moved as a whole goes on


def test_an_identity_is_kept_sent_on_and_never_shared(tmp_path):
    first = Run(tmp_path / "a")
    first.open(tiny.experiment())
    name = first.identity()
    assert len(name) == 32 and Run(tmp_path / "a").identity() == name
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    other = Run(tmp_path / "copy").identity()
    assert other != name and Run(tmp_path / "copy").identity() == other and first.identity() == name
    (tmp_path / "a").rename(tmp_path / "moved")
    assert Run(tmp_path / "moved").identity() == name
    (tmp_path / "moved" / "identity").write_text("0123")  # as before its place stood in it
    assert Run(tmp_path / "moved").identity() == "0123"


def test_a_tokenizer_that_was_being_written_is_not_taken(tmp_path):
    run, made = Run(tmp_path), tiny.experiment().tokenizer.train(["a b c"])
    (tmp_path / "tokenizer.new").mkdir()
    (tmp_path / "tokenizer.new" / "old.json").write_text("{}")
    assert run.tokenizer() is None
    run.keep_tokenizers({"": made, "titles": made})
    assert run.tokenizers().keys() == {"", "titles"}
    assert "old.json" not in [path.name for path in (tmp_path / "tokenizer").iterdir()]
    run.keep_tokenizers({})
    assert run.tokenizer() is None and run.tokenizers() == {}


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
