"""Being asked to stop: SIGTERM on any process, and one step at which all of them do."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from jax.experimental.multihost_utils import reached_preemption_sync_point

from mmjax.parallel.multihost import processes


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[int], bool]]:
    """Yields a function to call after each step, with its number: whether to stop there.

    Among several processes JAX's preemption service listens for the signal and picks a step that none has passed, a few after
    the signal; a Python handler would silence it, so there is none then.
    """
    if processes() > 1:
        yield reached_preemption_sync_point
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
