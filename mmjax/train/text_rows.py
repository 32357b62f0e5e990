"""Rows of texts that are not all padded to one length, held against the parts of a model that read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmjax.core.errors import UserError
from mmjax.data import Dataset
from mmjax.models import Multimodal
from mmjax.train.experiment import Experiment
from mmjax.train.sources import readers
from mmjax.train.teacher import Known


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


def check_buckets(experiment: Experiment, datasets: Mapping[str, Dataset], teachers: Mapping[str, Known]) -> None:
    """Hold each part that counts padding as real against texts whose padding is cut: it would read what depends on the batch.

    Raises:
      UserError: such a part, of the model or of a teacher.
    """
    models: list[tuple[str, Multimodal, Mapping[str, str]]] = [("model", experiment.model, {})]
    models += [(f"teachers.{name}", known.model, experiment.teachers[name].inputs) for name, known in teachers.items()]
    for name in experiment.task_data():
        key = datasets[name].bucketed if name in datasets else ""
        for path, model, inputs in models if key else ():
            for reason in _counting(model, {own for own in (key, *inputs) if inputs.get(own, own) == key}):
                raise UserError(f"data.{name}.packing: {path}.{reason}, and buckets cut it batch by batch; leave packing away")


def _counting(model: Multimodal, keys: set[str]) -> Iterator[str]:
    """The parts of a model to which the padding of some modalities is real."""
    for path, read, part in readers(model):
        if read in keys and not getattr(part, "mask_padding", True):
            yield f"{path}.mask_padding=False reads padding as words"
    for name, decoder in model.decoders.items():
        context = getattr(decoder, "context", ())
        seen = {own for one in context for own in (one, *getattr(model.fusions.get(one), "modalities", ()))}
        if seen & keys and not getattr(decoder, "mask_context", True):
            yield f"decoders.{name}.mask_context=False attends to the padding of {', '.join(sorted(seen & keys))}"
