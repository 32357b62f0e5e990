"""Ends a run whose step hangs: a collective that waits for ever costs as much as one that computes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from mmjax.parallel.multihost import fail, process


class Watchdog:
    """Watches one thing at a time.

    Args:
      seconds: how long a thing may take; 0 watches nothing.
      end: called with one line when it took longer.
    """

    def __init__(self, seconds: float, end: Callable[[str], None] = fail):
        self._seconds, self._end = seconds, end
        self._watched: tuple[str, float] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="mmjax-watchdog")
        if seconds:
            self._thread.start()

    @contextlib.contextmanager
    def watch(self, what: str) -> Iterator[None]:
        """While the block runs, `what` names it: "step 12 waits for a batch of train"."""
        self._watched = (what, time.monotonic())
        try:
            yield
        finally:
            self._watched = None

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 1.0)):
            watched = self._watched
            if watched is not None and time.monotonic() - watched[1] > self._seconds:
                self._end(
                    f"process {process()}: {watched[0]} for more than {self._seconds:g} s; if that is normal raise "
                    "log.watchdog, else look for a slow or dead host, and start again: the run goes on from its last checkpoint"
                )
                return
