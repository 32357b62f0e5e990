"""The data of an experiment, opened: each source once, for the texts that a tokenizer learns from and for the batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.data import Dataset, Tokenizer
from mmjax.data.types import Records
from mmjax.models import Multimodal
from mmjax.train.experiment import Experiment


class Sources:
    """The sources of an experiment's data, each opened when it is first asked for."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._spare = experiment, not reads_texts(experiment)
        self._open: dict[str, Records] = {}

    def records(self, name: str) -> Records:
        """Those of one set of data. Raises `UserError` as `Data.open` does."""
        if name not in self._open:
            self._open[name] = self._experiment.data[name].open(name)
        return self._open[name]

    def texts(self, name: str, tokenizer: str) -> Iterator[str]:
        """As `Data.texts`."""
        found: Iterator[str] = self._experiment.data[name].texts(name, tokenizer, lambda: self.records(name))
        return found

    def dataset(self, name: str, tokenizers: Mapping[str, Tokenizer]) -> Dataset:
        """One set of data, built. Raises `UserError` as `Data.build` does."""
        e = self._experiment
        spec = e.data[name]
        made: Dataset = spec.build(tokenizers.get(""), e.seed, name, tokenizers, self.records(name), self._spare)
        return made


def readers(model: Multimodal) -> list[tuple[str, str, Any]]:
    """The parts that read a modality: `encoders.NAME` or `decoders.NAME`, the modality, and the part."""
    found: list[tuple[str, str, Any]] = [(f"encoders.{name}", name, part) for name, part in model.encoders.items()]
    return found + [(f"decoders.{name}", getattr(part, "writes", ""), part) for name, part in model.decoders.items()]


def reads_texts(experiment: Experiment) -> bool:
    """Whether anybody may read `text`, the texts that need no column: a part of the model, a task, or a teacher.

    An objective that does not say what it `needs` may read anything.
    """
    needs = [key for task in experiment.tasks.values() for key in getattr(task.objective, "needs", ("text",))]
    read = {key for _, key, _ in readers(experiment.model)}
    return bool(experiment.teachers) or "text" in read or any(f"{key}_".startswith("text_") for key in needs)
