"""A file is the old one or the new one, whenever the process dies."""

import os

import pytest

from mmjax.core.files import write_whole


def test_it_is_replaced(tmp_path):
    write_whole(tmp_path / "a", "one\n")
    write_whole(tmp_path / "a", b"two\n")
    assert (tmp_path / "a").read_text() == "two\n" and [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_death_half_way_leaves_the_old_one(tmp_path, monkeypatch, call):
    write_whole(tmp_path / "a", "one\n")

    def die(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, call, die)
    with pytest.raises(OSError, match="no space"):
        write_whole(tmp_path / "a", "two\n")
    assert (tmp_path / "a").read_text() == "one\n"
