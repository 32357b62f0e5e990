"""A run that is given so much time stops in time, saved, instead of being killed."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from mmjax.core.config import setting
from mmjax.parallel.multihost import is_main
from mmjax.train.hooks.hook import Hook

if TYPE_CHECKING:
    from mmjax.train.training import Training


@dataclasses.dataclass(frozen=True)
class TimeBudget:
    """Stops a run as a signal does, once its time is used up: it is saved, and the same command goes on from there.

    Attributes:
      seconds: from the call that trains, set-up and compilation included. The step at hand, an evaluation that is due with it
        and the save come on top.

    Usage: `hooks={"budget": TimeBudget(3.5 * 3600)}` in a job that is killed after four hours; or
    `--hooks.budget time_budget --hooks.budget.seconds 12600`.
    """

    seconds: float = setting(above=0, below=float("inf"))

    def start(self, name: str, training: Training) -> Hook:
        return _Clock(name, self.seconds)


class _Clock(Hook):
    """Looks at the clock of process 0, since those of others may differ: it asks, and all stop at one step."""

    def __init__(self, name: str, seconds: float):
        self._name, self._seconds = name, seconds

    def at_boundary(self, step: int, training: Training) -> None:
        if is_main() and time.monotonic() - training.began >= self._seconds:
            training.interrupt(f"after hooks.{self._name}.seconds={self._seconds:g}")
