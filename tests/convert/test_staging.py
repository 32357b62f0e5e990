"""A staged folder appears whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.convert.staging import staged_folder
from mmjax.core.errors import UserError


@pytest.mark.parametrize("target", ["new", "deep/er/new", "there", "deep/../new", "."])
def test_a_staged_folder_takes_the_targets_place(tmp_path, monkeypatch, target):
    (tmp_path / "cwd/there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd" / ("there" if target == "." else ""))
    place = Path(target).resolve()
    with staged_folder(Path(target)) as folder:
        assert folder.parent == place.parent and folder != place
        (folder / "file").write_text("x")
        assert not (place / "file").exists()
    assert os.listdir(place) == ["file"]
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_a_staged_folder_leaves_nothing_behind_on_an_error(tmp_path, error):
    (tmp_path / "there").mkdir()
    for target in ("there", "new", "deep/er/new"):
        with pytest.raises(error), staged_folder(tmp_path / target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub/file").write_text("half")
            raise error
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_staged_folder_refuses_a_target_in_use(tmp_path):
    (tmp_path / "file").write_text("x")
    for target, message in (
        (tmp_path, "already holds files; give a new folder"),
        (tmp_path / "file", "is a file; give a new folder"),
        (tmp_path / "file/new", "cannot be created: Not a directory"),
    ):
        with pytest.raises(UserError) as error, staged_folder(target):
            pytest.fail("entered")
        assert str(error.value) == f"{target} {message}"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


WRITER = """
import sys, time
from pathlib import Path
from mmjax.convert.staging import staged_folder
with staged_folder(Path(sys.argv[1])) as folder:
    (folder / "sub").mkdir()
    (folder / "sub/file").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_of_two_that_write_one_target_the_second_is_refused_and_what_a_killed_one_left_is_cleared(tmp_path):
    target = tmp_path / "out"
    command = [sys.executable, "-c", WRITER, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "writing\n"
            for _ in range(2):  # being refused takes nothing away
                with pytest.raises(UserError) as error, staged_folder(target):
                    pytest.fail("entered")
                assert str(error.value) == f"{target} is being written by another process; wait for it, or give another folder"
            lock, left = sorted(tmp_path.iterdir())
            assert (lock.name, left.name) == (".out.lock", ".out.partial")
            assert (left / "sub/file").read_text() == "half"
        finally:
            writer.kill()
    with staged_folder(target) as folder:
        assert folder == left and not any(folder.iterdir())
        (folder / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and os.listdir(target) == ["file"]


def test_two_threads_are_two_writers(tmp_path):
    with staged_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        with pytest.raises(UserError, match="is being written"), staged_folder(tmp_path / "out"):
            pytest.fail("entered")
    assert os.listdir(tmp_path / "out") == ["file"]


def test_a_target_that_was_filled_meanwhile_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="already holds files"), staged_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("mine")
        (tmp_path / "out").mkdir()
        (tmp_path / "out/file").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out/file").read_text() == "theirs"
