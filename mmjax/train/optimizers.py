"""The optimizers by name."""

from mmjax.train.muon import Muon
from mmjax.train.optimizer import SGD, Adafactor, AdamW, Lion, Optimizer
from mmjax.train.schedule_free import ScheduleFree

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adamw": AdamW,
    "sgd": SGD,
    "lion": Lion,
    "adafactor": Adafactor,
    "muon": Muon,
    "schedule_free": ScheduleFree,
}
