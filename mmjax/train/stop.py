"""Being asked to stop: by a signal on any process, and one step at which all of them do."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from jax.experimental.multihost_utils import reached_preemption_sync_point

from mmjax.parallel.multihost import processes

# What ends a program gently: a scheduler, Ctrl-C, a terminal that was closed, a quota of time that will be used up.
GENTLE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU", "SIGUSR1") if hasattr(signal, name))
SAYING = b"\nmmjax: asked to stop: saving at the end of this step (once more to end at once)\n"


class Stop:
    """Whether a run is asked to stop. Called after each step, with its number, by all processes: whether to stop there."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        """Whether this process was asked."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Stop this process at the next call; with others, all of them at the step that JAX's preemption service picks."""
        if processes() > 1 and not self.asked:
            os.kill(os.getpid(), signal.SIGTERM)  # which the service listens for
        self._asked.set()

    def __call__(self, step: int) -> bool:
        return reached_preemption_sync_point(step) if processes() > 1 else self.asked


@contextlib.contextmanager
def stop_requested() -> Iterator[Stop]:
    """While it lasts, what ends a program gently asks for a stop.

    A second SIGINT ends the process at once. Among several processes JAX's preemption service listens for SIGTERM and picks a
    step that none has passed, a few after the signal; a Python handler would silence it, so the others are passed on to it.
    What was ignored before (`nohup`, a job in the background) stays ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def heard(number: int, frame: Any) -> None:
        if stop.asked and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        stop.ask()
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, SAYING)

    listened = [number for number in GENTLE if not (processes() > 1 and number == signal.SIGTERM)]
    before = {number: signal.getsignal(number) for number in listened}
    for number in [number for number, handler in before.items() if handler is not signal.SIG_IGN]:
        signal.signal(number, heard)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
