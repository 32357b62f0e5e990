"""How one of several processes ends: with one line that says why, and not before the others know.

JAX's coordination agent notices a dead peer by itself (a heartbeat that stops, a coordinator that hangs up) and then ends the
process from C++, with a stack trace that no Python code can catch. So file descriptor 2 goes through a small process that
turns that report into our one line; Python's own standard error does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from typing import Any

LINGER = 5.0  # seconds that the last word may take to reach the others
FAILED = "mmjax/failed"
HEARD = "mmjax/heard"


class Ending:
    """The ends of this process: it hears of a peer's failure, and tells the peers of its own. One a process.

    Args:
      client: JAX's key-value client.
    """

    def __init__(self, client: Any, process: int, processes: int, peer_timeout: float):
        self._client, self._process, self._processes = client, process, processes
        self._patience = peer_timeout + LINGER
        self._once = threading.Lock()
        self._ear = threading.Thread(target=self._listen, daemon=True, name="mmjax-ending")
        self._ear.start()

    def fail(self, line: str, status: int) -> None:
        """Print the line, tell the others, and end the process."""
        if not self._once.acquire(blocking=False):
            time.sleep(2 * LINGER)  # a peer's failure is being reported, and ends the process
        with contextlib.suppress(Exception):  # another was first, or nobody is left to tell
            self._client.key_value_set(FAILED, json.dumps([self._process, status, line]))
        _last_line(line)
        self._heard()
        os._exit(status)

    def lost(self) -> None:
        """Wait, after an error that a dead peer may have caused, for the news of it; returns where there are none."""
        time.sleep(self._patience)

    def finish(self) -> None:
        """A good end, called on every process when all have come there: stop listening."""
        with contextlib.suppress(Exception):
            self._client.key_value_set(FAILED, "")
        self._ear.join(self._patience)

    def _listen(self) -> None:
        while True:
            try:
                said = self._client.blocking_key_value_get(FAILED, 3_600_000)
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                return  # the coordinator is gone, which the agent reports
            break
        if not said:
            return
        process, status, line = json.loads(said)
        if process == self._process or not self._once.acquire(blocking=False):
            return
        _last_line(line if line.startswith("process") else f"process {process}: {line}")
        self._heard()
        os._exit(status)

    def _heard(self) -> None:
        """Say so; process 0, which carries the news, stays until all have."""
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{HEARD}/{self._process}", "")
        deadline = time.monotonic() + LINGER
        while self._process == 0 and time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if len(self._client.key_value_dir_get(HEARD)) >= self._processes:
                    return
            time.sleep(0.05)


def _last_line(line: str) -> None:
    """To file descriptor 2: what comes there after it is not shown."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(2, f"mmjax: {' '.join(line.split())}\n".encode())


def filter_native_errors(process: int, peer_timeout: float) -> None:
    """From here on file descriptor 2 goes through `filter_lines`, in a process that ends with this one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it ends by abort, not by a bug
    terminal = os.dup(2)
    sys.stderr.flush()
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    words = [
        sys.executable,
        "-I",
        os.path.join(os.path.dirname(__file__), "native_errors.py"),
        str(process),
        f"{peer_timeout:g}",
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=terminal, start_new_session=True) as reader:
        assert reader.stdin is not None
        os.dup2(reader.stdin.fileno(), 2)
        reader.stdin.close()
        reader.returncode = 0  # it lives until the last writer is gone: nobody waits for it
