"""The worker processes of grain: what comes from them, how one that dies is noticed, and how they end.

Fields of grain's own are read for this. Where a version of it has no such ones, it is as without this file: what a dead process
did not finish may be waited for, and closing takes 25 s.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from mmjax.core.errors import UserError

DIED = "Worker process was terminated unexpectedly with exit code "  # as grain says it
PAUSE = 0.01  # seconds between looks whether workers have sent something
LOOK = 0.5  # seconds between looks whether they live


def watch(steps: Any) -> None:
    """See to it that nobody waits for the rest of what a process was sending when it died.

    Whoever reads from a pipe waits as long as somebody may write into it, and this process could, too: its end is closed once
    the other is dead.
    """
    threading.Thread(target=_watched, args=(weakref.ref(steps),), daemon=True).start()


def taken(steps: Iterator[Any]) -> Any:
    """What comes next; a `UserError`, given back, where the process that was to make it has died."""
    try:
        return next(steps)
    except (RuntimeError, EOFError, OSError) as error:
        codes = [code for one in _workers(steps) if (code := _code(one))]
        if isinstance(error, RuntimeError) and not str(error).startswith(DIED):
            raise
        if str(error).startswith(DIED):
            codes = [str(error).removeprefix(DIED).partition(".")[0]]
        if not codes:
            raise
        return UserError(
            f"workers: a process that reads has died with exit code {codes[0]}"
            + ("; the system kills one where memory runs out: give fewer workers, or less prefetch" if codes[0] == "-9" else "")
        )


def closed(steps: Any) -> None:
    """Close an iterator of grain, and take meanwhile what its worker processes still send.

    A process ends when all that it has sent was taken, and a batch above the 64 kB of a pipe waits there for a reader. grain
    reads once and then waits 25 s for each process (`_PROCESS_KILL_TIMEOUT_S`), which a job that is told to stop may not have.
    """
    workers, over = _workers(steps), threading.Event()
    _forget_dead(workers)
    if workers:
        threading.Thread(target=_emptied, args=(workers, over), daemon=True).start()
    try:
        steps.close()
    except (EOFError, OSError):  # of one that died just now; the others are to end too
        _forget_dead(workers)
        for one in workers:
            one.close()
    finally:
        over.set()


def _forget_dead(workers: list[Any]) -> None:
    """Those that died are not asked to stop: of what they were sending the rest would be waited for."""
    for one in workers:
        if one._prefetch_process is not None and _code(one):
            one._prefetch_process.join(0)
            one._prefetch_process = None


def _workers(steps: Any) -> list[Any]:
    """grain's iterators of which each has a process."""
    inner = [getattr(one, "_maybe_nonnative_parent", one) for one in getattr(steps, "_iterators_in_use", ())]
    return [one for one in inner if getattr(one, "_prefetch_process", None) is not None]


def _code(worker: Any) -> str:
    """With which code its process has ended; "" while it lives, or where it ended as it should."""
    code = worker._prefetch_process.exitcode
    return str(code) if code else ""


def _watched(steps: weakref.ref[Any]) -> None:
    over = threading.Event()
    while (living := steps()) is not None and not getattr(living, "_closed", False):
        for one in _workers(living):
            writer = getattr(getattr(one, "_buffer", None), "_writer", None)
            if writer is not None and _code(one) and not writer.closed:
                writer.close()
        del living
        over.wait(LOOK)


def _emptied(workers: list[Any], over: threading.Event) -> None:
    while not over.wait(PAUSE):
        for one in workers:
            if one._prefetch_should_stop.is_set():  # before that, others wait for what it sends
                with contextlib.suppress(queue.Empty, EOFError, OSError):
                    while True:
                        one._buffer.get_nowait()
