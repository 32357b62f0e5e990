"""Shapes of the training batches: from the data where it is at hand, else from what the model and the objectives read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data import Buckets, Packed, Tokenizer, WordPiece
from mmjax.models.parts import example_of
from mmjax.objectives.routes import named
from mmjax.train.experiment import Experiment
from mmjax.train.sources import Sources

Spec = dict[str, tuple[tuple[int, ...], str]]  # key of a batch -> shape and dtype


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Stands for a dataset of which only the shapes matter."""

    batch: Spec

    def train_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """As `Dataset.train_spec`, of the one length that is known."""
        return {key: (tuple(shape), np.dtype(dtype)) for key, (shape, dtype) in self.batch.items()}


def batch_shapes(experiment: Experiment) -> tuple[dict[str, Spec], str]:
    """The shapes of every batch that tasks train on, and where they come from, for the report."""
    tokenizer = any_tokenizer() if experiment.tokenizer is not None or experiment.init_from else None
    sources, tokenizers = Sources(experiment), {} if tokenizer is None else {"": tokenizer}
    shapes, reasons = {}, []
    for name in experiment.task_data():
        try:
            found = sources.dataset(name, tokenizers).train_spec()
            shapes[name] = {key: (shape, str(dtype)) for key, (shape, dtype) in found.items()}
        except UserError as error:
            shapes[name] = from_model(experiment, name)
            reasons.append(f"data.{name} is not at hand: {str(error).removeprefix(f'data.{name}: ')}")
    said = f"the model ({'; '.join(reasons)})" if reasons else "the data"
    cut = [name for name in shapes if isinstance(experiment.data[name].packing, Buckets)]
    return shapes, "; ".join([said, *(f"data.{name} with the longest texts of its buckets in every step" for name in cut)])


def from_model(experiment: Experiment, name: str) -> Spec:
    """What a batch of one stream must hold for its tasks: an input of each modality they read, and their labels."""
    data, encoders = experiment.data[name], experiment.model.encoders
    rows = data.batch_size
    read = {key for task in experiment.tasks.values() if task.data == name for key in read_by(experiment.model, task.objective)}
    spec: Spec = {}
    written = [decoder.writes for decoder in experiment.model.decoders.values() if hasattr(decoder, "writes")]
    if {"text"} & {*encoders, *written} and read & {"text", "text_mask"}:
        spec |= {"text": ((rows, data.max_length), "int32"), "text_mask": ((rows, data.max_length), "bool")}
    for modality in encoders:
        if modality in read and modality != "text":
            example = example_of(encoders[modality])[""]
            spec[modality] = ((rows, *example.shape[1:]), str(example.dtype))
    if "text_segments" in read:
        spec["text_segments"] = ((rows, data.max_length), "int32")
    if isinstance(data.packing, Packed) and "text" in spec:
        return _packed(data, spec)
    labels = {"label", "next"} & read
    return spec | dict.fromkeys(sorted(labels | {"group", "index"}), ((rows,), "int32"))


def _packed(data: Any, spec: Spec) -> Spec:
    """The same where rows hold several texts."""
    full = data.packing.of(data.batch_size, data.max_length, lambda: float(data.max_length))
    own: Spec = {key: ((shape[0], full.length), dtype) for key, (shape, dtype) in spec.items() if key.startswith("text")}
    return own | {"text_lengths": ((data.batch_size, full.texts), "int32"), "index": ((data.batch_size,), "int32")}


def read_by(model: Any, objective: Any) -> set[str]:
    """The batch keys that an objective is known to read: those it says, and the modalities that its parts of the model read."""
    found = set(getattr(objective, "needs", model.encoders)) | set(getattr(objective, "modalities", ()))
    names: list[str] = []
    if head := model.heads.get(getattr(objective, "head", "")):
        names += named(head.input)
    if decoder := model.decoders.get(getattr(objective, "decoder", "")):
        context = getattr(objective, "context", None)
        names += decoder.context if context is None else context
    for name in names:
        first, _, one = name.partition(":")
        fusion = model.fusions.get(first)
        found |= {first} if fusion is None else {one} if one else set(fusion.modalities)
    return found


def rows(shapes: Mapping[str, Spec], name: str) -> int:
    """Examples in a batch."""
    return shapes[name]["index"][0][0]


def resized(shapes: Mapping[str, Spec], sizes: Mapping[str, int]) -> dict[str, Spec]:
    """The same batches with other numbers of examples."""
    return {
        name: {key: ((sizes[name], *shape[1:]), dtype) for key, (shape, dtype) in spec.items()} for name, spec in shapes.items()
    }


def with_batch_per_chip(experiment: Experiment, chips: int, examples: int) -> Experiment:
    """The experiment with this many examples a chip in every batch that tasks train on."""
    return _with_sizes(experiment, dict.fromkeys(experiment.task_data(), chips * examples))


def _with_sizes(experiment: Experiment, sizes: Mapping[str, int]) -> Experiment:
    data: dict[str, Any] = {
        name: dataclasses.replace(spec, batch_size=sizes[name]) if name in sizes else spec
        for name, spec in experiment.data.items()
    }
    return dataclasses.replace(experiment, data=data)


def any_tokenizer() -> Tokenizer:
    """Shapes do not depend on the words, so no corpus is read."""
    return WordPiece(256).train(iter(["any words at all"]))
