"""Which failures of a read mean what."""

import errno
import json

import pytest

from mmjax.core.errors import UnreachableError, UserError
from mmjax.train import reading
from mmjax.train.reading import UnfitError, again, is_broken, is_storage, names_in, read_json, read_text, together

BROKEN = [
    json.JSONDecodeError("x", "", 0),
    UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
    FileNotFoundError(errno.ENOENT, "No such file"),
    KeyError('Item "state" was not found in the checkpoint. Available items: []'),
    ValueError("DATA_LOSS: Error decoding manifest"),
    ValueError("NOT_FOUND: Error opening driver"),
]
STORAGE = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    ConnectionResetError(),
    MemoryError(),
    ValueError("UNAVAILABLE: no network"),
    Exception("HTTP 503"),
    RuntimeError("DEADLINE_EXCEEDED"),
]
OURS = [
    TypeError("x"),
    ValueError("shapes (1, 2) and (3, 4)"),
    KeyError("x"),
    ZeroDivisionError(),
    UserError("503"),
    UnfitError("503"),
]


def test_three_kinds():
    for error in BROKEN:
        assert is_broken(error) and not is_storage(error), error
    for error in STORAGE:
        assert is_storage(error) and not is_broken(error), error
    for error in OURS:
        assert not is_storage(error) and not is_broken(error), error


class Failing:
    def __init__(self, error, times, value="value"):
        self.error, self.times, self.value, self.calls = error, times, value, 0

    def __call__(self, *_, **__):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.value


@pytest.mark.parametrize("error", STORAGE, ids=repr)
def test_storage_is_tried_again_and_then_told(error):
    attempts = 1 + len(reading.WAITS)
    assert again("it", Failing(error, attempts - 1)) == "value"
    with pytest.raises(UnreachableError, match=r"^it: it cannot be reached just now .*; nothing was changed") as caught:
        again("it", Failing(error, attempts))
    assert caught.value.exit_status == 1 and caught.value.__cause__ is error
    assert together("it", Failing(error, attempts - 1), 1.0) == ("value", "", "")
    with pytest.raises(UnreachableError, match=r"^it: it cannot be read just now"):
        together("it", Failing(error, attempts), 1.0)


@pytest.mark.parametrize("error", [*BROKEN, *OURS], ids=repr)
def test_nothing_else_is_tried_again(error):
    act = Failing(error, 1)
    with pytest.raises(type(error)):
        again("it", act)
    assert act.calls == 1


def test_what_is_whole_and_of_another_run_is_told_apart_from_what_is_broken():
    assert together("it", Failing(UnfitError("of another mesh"), 1), 1.0) == (None, "unfit", "of another mesh")
    assert together("it", Failing(BROKEN[4], 1), 1.0) == (None, "broken", "DATA_LOSS: Error decoding manifest")
    with pytest.raises(ZeroDivisionError):
        together("it", Failing(ZeroDivisionError(), 1), 1.0)


def test_absent_is_an_answer_and_trouble_is_none(tmp_path, monkeypatch):
    assert names_in(tmp_path / "none") == [] and read_text(tmp_path / "none") is None and read_json(tmp_path / "none") is None
    (tmp_path / "a").write_bytes(b'{"x": 1}')
    assert names_in(tmp_path) == ["a"] and read_json(tmp_path / "a") == {"x": 1} and names_in(tmp_path / "a") == []
    (tmp_path / "a").write_bytes(b"\xff{")
    assert read_text(tmp_path / "a") == "\ufffd{"
    with pytest.raises(UserError, match="a: not JSON"):
        read_json(tmp_path / "a")
    for name in ("iterdir", "read_bytes"):
        monkeypatch.setattr(type(tmp_path), name, Failing(OSError(errno.EIO, "Input/output error"), 99))
    with pytest.raises(UnreachableError):
        names_in(tmp_path)
    with pytest.raises(UnreachableError):
        read_json(tmp_path / "a")


def test_a_number_is_taken_that_no_name_has(tmp_path):
    for name in ("code", "code.0", "code.2", "metrics.jsonl", "metrics.0.jsonl"):
        (tmp_path / name).mkdir()
    found = [reading.numbered(tmp_path / name).name for name in ("code", "metrics.jsonl", "6")]
    assert found == ["code.1", "metrics.1.jsonl", "6.0"]
