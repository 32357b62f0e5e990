"""Rung 5: an experiment, its state, its step, and the loop that runs it."""

from mmjax.train.experiment import Checkpoint, Experiment, Log, Task
from mmjax.train.hooks import HOOKS, Hook, Norms, TimeBudget
from mmjax.train.loop import train
from mmjax.train.muon import Muon
from mmjax.train.optimizer import SGD, Adafactor, AdamW, Lion
from mmjax.train.optimizers import OPTIMIZERS
from mmjax.train.schedule_free import ScheduleFree
from mmjax.train.teacher import Teacher

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
    "Muon",
    "Norms",
    "ScheduleFree",
    "Task",
    "Teacher",
    "TimeBudget",
    "train",
]
