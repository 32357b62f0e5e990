"""A trace of a few steps, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax

from mmjax.train.hooks.hook import Hook
from mmjax.train.training import Training

SKIP, STEPS = 5, 6  # steps to leave out (caches warm up), and to trace


class Profile(Hook):
    """Traces the steps after `start + SKIP`, to `start + SKIP + STEPS` or to the end of the run, into a folder."""

    def __init__(self, folder: Path, start: int):
        self._folder, self._begin, self._tracing = folder, start + SKIP, False

    def after_step(self, step: int, training: Training) -> None:
        if step == self._begin + STEPS:
            self.close(broken_off=False)

    def at_boundary(self, step: int, training: Training) -> None:
        if step == self._begin and not training.last:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def close(self, broken_off: bool) -> None:
        """Write what was traced: a trace that is never stopped is never written."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
