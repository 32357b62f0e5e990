"""The worker processes of grain: what comes from them, and how they end."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

from mmjax.core.errors import UserError

DIED = "Worker process was terminated unexpectedly with exit code "  # as grain says it
PAUSE = 0.01  # seconds between looks whether workers have sent something


def taken(steps: Iterator[Any]) -> Any:
    """What comes next; a `UserError`, given back, where the process that was to make it has died."""
    try:
        return next(steps)
    except RuntimeError as error:
        if not str(error).startswith(DIED):
            raise
        code = str(error).removeprefix(DIED).partition(".")[0]
        return UserError(
            f"workers: a process that reads has died with exit code {code}"
            + ("; the system kills one where memory runs out: give fewer workers, or less prefetch" if code == "-9" else "")
        )


def closed(steps: Any) -> None:
    """Close an iterator of grain, and take meanwhile what its worker processes still send.

    A process ends when all that it has sent was taken, and a batch above the 64 kB of a pipe waits there for a reader. grain
    reads once and then waits 25 s for each process (`_PROCESS_KILL_TIMEOUT_S`), which a job that is told to stop may not have.
    Its own fields are read for this: where it has no such ones, that wait is what remains.
    """
    inner = [getattr(one, "_maybe_nonnative_parent", one) for one in getattr(steps, "_iterators_in_use", ())]
    workers = [one for one in inner if hasattr(one, "_prefetch_process")]
    over = threading.Event()
    if workers:
        threading.Thread(target=_emptied, args=(workers, over), daemon=True).start()
    try:
        steps.close()
    finally:
        over.set()


def _emptied(workers: list[Any], over: threading.Event) -> None:
    while not over.wait(PAUSE):
        for one in workers:
            if one._prefetch_should_stop.is_set():  # before that, others wait for what it sends
                with contextlib.suppress(queue.Empty, EOFError, OSError):
                    while True:
                        one._buffer.get_nowait()
