"""Rows of texts that are not all padded to one length, held against the parts of a model that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data import Dataset
from mmjax.models import Multimodal
from mmjax.train.experiment import Experiment


def readers(model: Multimodal) -> list[tuple[str, str, Any]]:
    """The parts that read a modality: `encoders.NAME` or `decoders.NAME`, the modality, and the part."""
    found: list[tuple[str, str, Any]] = [(f"encoders.{name}", name, part) for name, part in model.encoders.items()]
    return found + [(f"decoders.{name}", getattr(part, "writes", ""), part) for name, part in model.decoders.items()]


def check_packed(experiment: Experiment, datasets: Mapping[str, Dataset]) -> None:
    """Hold each part with a table of positions against the longest text of rows that hold several: how long one is shows in no
    shape.

    Raises:
      UserError: a table that has no position for its last words.
    """
    for name, dataset in datasets.items():
        longest = {key: most for key, (_, most) in dataset.texts().items()} if dataset.packed else {}
        for path, key, part in readers(experiment.model):
            if key in longest and getattr(part, "positions", "") == "learned" and part.max_length < longest[key]:
                raise UserError(
                    f"data.{name}.max_length={longest[key]}: model.{path}.max_length={part.max_length} has no position for "
                    "the end of such a text; give one of them as many as the other"
                )


def check_buckets(experiment: Experiment, datasets: Mapping[str, Dataset]) -> None:
    """Hold each part that counts padding as real against texts whose padding is cut: it would read what depends on the batch.

    Raises:
      UserError: such a part.
    """
    model = experiment.model
    for name in experiment.task_data():
        key = datasets[name].bucketed if name in datasets else ""
        if not key:
            continue
        for path, read, part in readers(model):
            if read == key and not getattr(part, "mask_padding", True):
                raise _counts_padding(name, f"model.{path}.mask_padding=False reads padding as words")
        for decoder, part in model.decoders.items():
            seen = {own for one in getattr(part, "context", ()) for own in (one, *_modalities(model, one))}
            if key in seen and not getattr(part, "mask_context", True):
                raise _counts_padding(name, f"model.decoders.{decoder}.mask_context=False attends to the padding of {key!r}")


def _modalities(model: Multimodal, name: str) -> tuple[str, ...]:
    """What a fusion joins; () for what is none."""
    return tuple(getattr(model.fusions.get(name), "modalities", ()))


def _counts_padding(name: str, what: str) -> UserError:
    return UserError(f"data.{name}.packing: {what}, and buckets cut it as the batch has it; leave packing away")
