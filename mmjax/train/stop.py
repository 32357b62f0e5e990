"""Being asked to stop: by a signal on any process, and one step at which all of them do."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jax.experimental.multihost_utils import reached_preemption_sync_point

from mmjax.parallel.multihost import processes

# What ends a program gently: a scheduler, Ctrl-C, a terminal that was closed, a quota of time that will be used up.
GENTLE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU", "SIGUSR1") if hasattr(signal, name))
SAYING = b"\nmmjax: asked to stop: saving at the end of this step (once more to end at once)\n"


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[int], bool]]:
    """Yields a function to call after each step, with its number: whether to stop there.

    A second SIGINT ends the process at once. Among several processes JAX's preemption service listens for SIGTERM and picks a
    step that none has passed, a few after the signal; a Python handler would silence it, so the others are passed on to it.
    What was ignored before (`nohup`, a job in the background) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield reached_preemption_sync_point if processes() > 1 else lambda step: False
        return
    asked = threading.Event()

    def stop(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        asked.set()
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, SAYING)
        if processes() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    listened = [number for number in GENTLE if not (processes() > 1 and number == signal.SIGTERM)]
    before = {number: signal.getsignal(number) for number in listened}
    for number in [number for number, handler in before.items() if handler is not signal.SIG_IGN]:
        signal.signal(number, stop)
    try:
        yield reached_preemption_sync_point if processes() > 1 else lambda step: asked.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
