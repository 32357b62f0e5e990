"""One writer a run, and a lock that goes with its process."""

import os
import signal
import subprocess
import sys

import filelock
import pytest

from mmjax.core.errors import UserError
from mmjax.train.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from mmjax.train.lock import locked
with locked(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_and_named_until_it_is_killed(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        said = rf'--workdir runs/a: another process is training there \(.*"process": {holder.pid}.*\); wait for it'
        with pytest.raises(UserError, match=said), locked(folder, "runs/a"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(folder, "runs/a"):
        assert '"host"' in (folder / "writer.json").read_text()
    assert [path.name for path in folder.iterdir()] == ["writer.lock"]


def test_where_nothing_can_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    said = r"--workdir runs/a: the folder cannot be made \(Not a directory\)"
    with pytest.raises(UserError, match=said), locked(tmp_path / "file" / "run", "runs/a"):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"--workdir runs/a: nothing can be written there"), locked(tmp_path, "runs/a"):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(self):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with locked(tmp_path, "runs/a"):
        pass
    assert "runs/a: no lock can be taken there" in caplog.text
