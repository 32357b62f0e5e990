"""A staged folder appears whole or not at all."""

import os
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
