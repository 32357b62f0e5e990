"""Each step's figures: read when it is done, written where they are due, and a bad one noticed."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import jax
import numpy as np

from mmjax.core.errors import UserError
from mmjax.train.hooks.hook import Hook
from mmjax.train.speed import Speed
from mmjax.train.training import Training

LAG = 2  # steps whose figures may still be on the device
ROW = 20  # skipped steps in a row, or half of a short run's, after which it is the parameters that are bad


class Figures(Hook):
    """Reads a step's figures two steps later, so that the devices always have something to do; other hooks find them in
    `training.done`."""

    def __init__(self, speed: Speed):
        self._speed = speed
        self._pending: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        self._skipped = 0  # in a row
        self._said: set[str] = set()

    def after_step(self, step: int, training: Training) -> None:
        self._pending.append((step, training.figures))
        self._speed.tick(training.kind, training.examples)
        self._read(training, LAG)

    def settle(self, training: Training) -> None:
        """Read those of every step that was started: from here on the state is known to be good."""
        self._read(training, 0)

    def _read(self, training: Training, lag: int) -> None:
        """All but the last `lag` steps; write those that are due; stop at a bad one."""
        e = training.experiment
        while len(self._pending) > lag:
            step, figures = self._pending.popleft()
            due = step % e.log.every == 0 or step == e.steps
            read = _floats(figures) if due else {}
            bad = read["bad_step"] if due else float(figures["bad_step"])
            self._skipped = self._skipped + 1 if bad else 0
            if bad:
                _bad_step(step, _floats(figures), training, self._skipped)
            if due:
                read |= self._speed.figures()
                training.write(step, read)
                self._tell(step, read, training)
            training.advance_bar(step, read)
            training.done.append((step, figures))

    def _tell(self, step: int, read: Mapping[str, float], training: Training) -> None:
        """Say once of each figure that an objective tells of (`told`) when it is first seen above 0."""
        for name, task in training.experiment.tasks.items():
            for metric, what in getattr(task.objective, "told", {}).items():
                figure = f"train/{name}/{metric}"
                if read.get(figure, 0) > 0 and figure not in self._said:
                    self._said.add(figure)
                    training.say(f"step {step}: tasks.{name}: {read[figure]:.1%} {what}")


def _floats(figures: Mapping[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(figures).items()}


def _bad_step(step: int, figures: Mapping[str, float], training: Training, row: int) -> None:
    """Name the task and the step; stop the run, or say that the step was skipped: the last of `row` steps."""
    broken = [name.removeprefix("loss/") for name, v in figures.items() if name.startswith("loss/") and not np.isfinite(v)]
    if broken:
        what = f"the loss of task {', '.join(broken)} is not finite"
    elif not np.isfinite(figures["gradient_norm"]):
        what = "the gradient is not finite"
    else:
        what = f"the loss jumped to {figures['loss']:.4g}"
    skips = training.experiment.optimizer.on_bad_step == "skip"
    if skips and row < max(2, min(ROW, training.experiment.steps // 2)):
        training.say(f"step {step}: {what}; the step was skipped")
        return
    training.checkpoints.wait()
    kept = training.checkpoints.steps()
    if skips:
        saved = f"the checkpoints are of {', '.join(map(str, kept))}" if kept else "no checkpoint had been saved yet"
        raise UserError(
            f"step {step}: {what}, and {row} steps in a row were skipped: none can mend what the last good one left "
            f"(optimizer.learning_rate={training.experiment.optimizer.learning_rate}); {saved}"
        )
    last = f"the last good checkpoint is step {kept[-1]}" if kept else "no checkpoint had been saved yet"
    raise UserError(f"step {step}: {what}; {last} (optimizer.on_bad_step=skip goes on)")
