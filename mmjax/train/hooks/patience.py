"""A run that no longer improves ends."""

from __future__ import annotations

import math

import numpy as np

from mmjax.parallel.multihost import told
from mmjax.train.hooks.hook import Hook
from mmjax.train.metrics import read_lines
from mmjax.train.training import Training


class Patience(Hook):
    """After each evaluation: whether `checkpoint.patience` has run out."""

    def at_boundary(self, step: int, training: Training) -> None:
        if training.metrics is not None:
            stop_if_out(training)


def stop_if_out(training: Training) -> None:
    """Stop where the best value is `patience` evaluations old; read off the written metrics, so a resumed run agrees."""
    c = training.experiment.checkpoint
    if not c.patience:
        return
    sign = 1.0 if c.mode == "max" else -1.0
    found = [line[c.best] for line in read_lines(training.run.metrics) if c.best in line]
    values = [sign * value if math.isfinite(value) else -math.inf for value in found]
    out = bool(values) and len(values) - 1 - int(np.argmax(values)) >= c.patience
    if told("patience", out):  # process 0 writes the file, so it alone has surely read all of it
        training.stop(f"{c.best} has not improved for {c.patience} evaluations")
