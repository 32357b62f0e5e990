"""A trace of a few steps, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

SKIP, STEPS = 5, 5  # steps to leave out (caches warm up), and to trace


class Profile:
    """Traces steps `start + SKIP` to `start + SKIP + STEPS`, or to `close`; does nothing when `start` is None."""

    def __init__(self, folder: Path, start: int | None):
        self._folder, self._start, self._tracing = folder, start, False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        if self._start is None:
            yield
            return
        if step == self._start + SKIP:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step == self._start + SKIP + STEPS:
            self.close()

    def close(self) -> None:
        """Write what was traced: a trace that is never stopped is never written."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
