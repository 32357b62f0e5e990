"""Checkpoints: in the run folder, and between those on each host's own disk."""

from __future__ import annotations

from collections.abc import Mapping

from mmjax.train.finish import check_best
from mmjax.train.hooks.figures import Figures
from mmjax.train.hooks.hook import Hook
from mmjax.train.streams import keep_positions
from mmjax.train.training import Training


class Saving(Hook):
    """Saves where it is due, and with the metrics measured at this very step, so that the best checkpoint is one that was
    measured."""

    def __init__(self, figures: Figures):
        self._figures = figures

    def at_boundary(self, step: int, training: Training) -> None:
        spec, metrics = training.experiment.checkpoint, training.metrics
        if metrics is not None or training.last or step % spec.every == 0:
            self._save(training, metrics or {}, wait=training.last or training.stopping)
        elif training.local is not None and step % spec.local_every == 0:
            self._figures.settle(training)
            training.local.save(step, training.state)
        if metrics is not None:
            check_best(training.experiment, metrics, step)

    def settle(self, training: Training) -> None:
        """Until the step at hand is on disk."""
        if training.step not in training.checkpoints.steps():
            self._save(training, {}, wait=True)
        training.checkpoints.wait()

    def _save(self, training: Training, metrics: Mapping[str, float], wait: bool) -> None:
        self._figures.settle(training)  # a bad step ends the run here, before it could be saved
        training.run.send()  # before the checkpoint, since it tells whether another process writes this run now
        keep_positions(training.setup, training.run)
        training.checkpoints.save(training.step, training.state, metrics, training.config, wait)
