"""The evaluators, every `evaluate_every` steps."""

from __future__ import annotations

from mmjax.train.finish import run_evaluators, shown
from mmjax.train.hooks.figures import Figures
from mmjax.train.hooks.hook import Hook
from mmjax.train.training import Training


class Evaluation(Hook):
    """Measures where it is due; the hooks after it find the metrics in `training.metrics`."""

    def __init__(self, figures: Figures):
        self._figures = figures

    def at_boundary(self, step: int, training: Training) -> None:
        e = training.experiment
        if not (e.evaluate and e.evaluate_every > 0 and (step % e.evaluate_every == 0 or training.last)):
            return
        self._figures.settle(training)
        training.metrics = run_evaluators(e, training.evaluation, training.setup.evaluated(training.state))
        training.write(step, training.metrics)
        training.say(f"step {step}: " + shown(training.metrics))
