"""Rung 5: an experiment, its state, its step, and the loop that runs it."""

from mmjax.train.experiment import Checkpoint, Experiment, Log, Task
from mmjax.train.hooks import HOOKS, Hook, Norms, TimeBudget
from mmjax.train.loop import train
from mmjax.train.optimizer import OPTIMIZERS, SGD, Adafactor, AdamW, Lion

__all__ = [
    "HOOKS",
    "OPTIMIZERS",
    "SGD",
    "Adafactor",
    "AdamW",
    "Checkpoint",
    "Experiment",
    "Hook",
    "Lion",
    "Log",
    "Norms",
    "Task",
    "TimeBudget",
    "train",
]
