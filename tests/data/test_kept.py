"""What is worked out once: by one process, whole or not at all, and whose fault it is when it cannot be."""

import errno
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmjax.core.errors import UserError
from mmjax.data.files.kept import folder, made_once


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_made_once_by_many(cache):
    made = []

    def make(place):
        made.append(place)
        (place / "a").write_text("a")

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: made_once("k-1", ["of", "this"], make), range(16)))
    assert len(found) == len(made) == 1 and (found.pop() / "a").read_text() == "a"
    assert made_once("k-1", ["ofthis", ""], make) != made_once("k-1", ["of", "this"], make) and len(made) == 2
    assert folder() == cache


def test_what_fails_leaves_nothing(cache):
    def make(place):
        (place / "half").touch()
        raise UserError("no")

    with pytest.raises(UserError, match=r"^no$"):
        made_once("k-1", ["x"], make)
    assert [path.name for path in (cache / "k-1").iterdir() if path.is_dir()] == []


def test_an_input_that_cannot_be_read_is_blamed_itself(tmp_path):
    with pytest.raises(UserError) as raised:
        made_once("k-1", ["x"], lambda place: (tmp_path / "absent").read_text())
    assert str(raised.value) == f"{tmp_path / 'absent'}: No such file or directory"

    def broken(place):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        made_once("k-1", ["x"], broken)


def test_a_cache_that_cannot_be_written_is_blamed(cache, tmp_path, monkeypatch):
    def full(place):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"cache/k-1: No space left on device; free some of its disk, or set MMJAX_CACHE"):
        made_once("k-1", ["x"], full)
    with pytest.raises(UserError, match=r"cache/k-1: No such file or directory; make it writable, or set MMJAX_CACHE"):
        made_once("k-1", ["x"], lambda place: (place / "absent" / "a").write_text(""))
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/k-1: Not a directory; make it writable, or set MMJAX_CACHE"):
        made_once("k-1", ["x"], full)
