"""metrics.jsonl: JSON for every reader, and whole after any crash."""

import json
import math
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.train import Log
from mmjax.train.metrics import MetricWriter, read_lines, rewind

QUIET = Log(tensorboard=False, progress=False)


def writer(folder, step=0, **log):
    return MetricWriter(folder, Log(**{"tensorboard": False, "progress": False} | log), step, 9, {}, "identity")


def test_what_is_no_number_is_null_and_read_as_nan(tmp_path):
    made = writer(tmp_path)
    made.write(1, {"a": float("nan"), "b": float("inf"), "c": 0.1 + 0.2})
    made.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "a": None, "b": None, "c": 0.1 + 0.2}
    (found,) = read_lines(tmp_path / "metrics.jsonl")
    assert math.isnan(found["a"]) and found["c"] == 0.1 + 0.2


def test_rewind_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rewind(path, 3)  # nothing there yet
    lines = [{"step": step, "loss": 0.1 + 0.2 * step} for step in (1, 2, 2, 3, 4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    assert read_lines(path) == lines
    rewind(path, 3)
    assert read_lines(path) == lines[:4] and path.read_text().endswith("\n")
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_start_from_step_0_moves_what_was_there_aside(tmp_path, capsys):
    for number in range(3):
        made = writer(tmp_path)
        made.write(1, {"loss": float(number)})
        made.close()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["metrics.0.jsonl", "metrics.1.jsonl", "metrics.jsonl"]
    assert [read_lines(p)[0]["loss"] for p in sorted(tmp_path.iterdir())] == [0.0, 1.0, 2.0]
    assert "the metrics.jsonl of an earlier start is metrics.1.jsonl now" in capsys.readouterr().err.splitlines()[-1]
    writer(tmp_path, step=1).close()
    assert len(list(tmp_path.iterdir())) == 3


LINES = [json.dumps({"step": step, "loss": step / 3, "note": "a {} b"}) for step in range(1, 6)]


@given(
    st.integers(0, 4),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([b"", b"\x00" * 9, b"\xff\xfe", b"[1]", b'{"loss": 2}']),
)
def test_a_torn_line_costs_itself_alone(tmp_path_factory, at, cut, glued, junk):
    """Torn where power was lost; a later start wrote on, on the same line where it had no end."""
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    torn = LINES[at][: min(cut, len(LINES[at]) - 1)].encode() + (b"" if glued else b"\n")
    whole = [line.encode() + b"\n" for line in LINES]
    path.write_bytes(b"".join([*whole[:at], junk, b"\n" * bool(junk), torn, *whole[at:]]))
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4, 5]
    rewind(path, 4)
    assert path.read_text().splitlines() == LINES[:4]


def test_a_terminal_that_is_gone_does_not_end_a_run(tmp_path, monkeypatch):
    class Gone:
        encoding = "utf-8"

        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            raise OSError(5, "Input/output error")

        def isatty(self):
            return False

    for progress in (False, True):
        made = writer(tmp_path, progress=progress)
        monkeypatch.setattr(sys, "stderr", Gone())
        if made._bar is not None:
            made._bar.fp = Gone()
        made.say("a line")
        made.advance(3, {"loss/a": 1.0})
        made.write(3, {"a": 1.0})
        made.close()
        monkeypatch.undo()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")][-1:] == [3]


def test_each_sink_is_closed_whatever_another_raises(tmp_path, monkeypatch):
    finished = []

    class Remote:
        def log(self, *_, **__): ...

        def finish(self):
            finished.append(1)
            raise ConnectionError("wandb")

    called = {}
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **said: (called.update(said), Remote())[1]))
    made = writer(tmp_path / ".", wandb="project")
    with pytest.raises(ConnectionError):
        made.close()
    assert finished and made._file.closed
    assert called["id"] == "identity" and called["name"] == tmp_path.name and called["resume"] == "allow"
