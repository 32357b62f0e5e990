"""What a head says of each labelled example: the part that all evaluators of classification share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.objectives import routes
from mmjax.objectives.classification import check_places


@dataclasses.dataclass(frozen=True)
class Classified:
    """Examples in the dataset's order, those without a label left out. All arrays are [N].

    Attributes:
      index: int32, the place of each in the data.
      label, predicted: int, its class and the likeliest one.
      confidence: float32, how likely that is to the head.
      log_likelihood: float32, of its class, in nats.
      brier: float32, the squared distance of the head's shares and the class (Brier 1950).
      classes: names in the order of their labels.
    """

    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    log_likelihood: np.ndarray
    brier: np.ndarray
    classes: tuple[str, ...]

    def examples(self) -> Iterator[dict[str, Any]]:
        """One a line of `predictions.jsonl`."""
        for n, index in enumerate(self.index.tolist()):
            names = {"label": self.classes[self.label[n]], "predicted": self.classes[self.predicted[n]]}
            yield {"index": index, **names, "score": float(self.confidence[n])}


@dataclasses.dataclass(frozen=True)
class OfHead:
    """The fields of an evaluator of a head that classifies; the head's `input` says what is classified.

    Attributes:
      head: the classification head.
      modality: what is classified, where that is to be said here too: it is held against the head's `input`. "" says nothing.
      fusion: the same, for a head that a fusion feeds.
      context: the other modalities of that fusion; () says nothing.
      data: the dataset.
      label: the batch key of the labels, one an example. Records without a label (label < 0) do not count.

    Raises:
      UserError: `context` without `fusion`, a head that something else feeds or whose classes are not the data's, data without
        labels, or a label that has no class name.
    """

    head: str = "classes"
    modality: str = ""
    fusion: str = ""
    context: tuple[str, ...] = ()
    data: str = "validation"
    label: str = "label"

    def __post_init__(self) -> None:
        if self.context and not self.fusion:
            raise UserError(
                f"context={self.context} with fusion='': name the fusion that joins them to modality={self.modality!r}"
            )

    def classified(self, evaluation: Evaluation, params: Params) -> Classified:
        """What the head says of the whole dataset."""
        names = class_names(evaluation.dataset(self.data), self.label)

        def predict(forward: Forward, batch: Batch) -> dict[str, Array]:
            routes.check(forward, self.head, self.modality, self.fusion, self.context)
            logits_BC, label_B = forward.head(self.head), batch[self.label]
            check_places(self.head, logits_BC, self.label, label_B)
            if logits_BC.ndim != 2:
                raise UserError(f"head={self.head!r} gives logits of many places of an example; a report reads one an example")
            if names:
                routes.check_classes(self.head, logits_BC, len(names), f"data.{self.data} has {len(names)} classes")
            log_BC = jax.nn.log_softmax(logits_BC)
            right_BC = (label_B[:, None] == jnp.arange(logits_BC.shape[1])[None]).astype(jnp.float32)
            return {
                "index": batch["index"],
                "label": label_B,
                "predicted": logits_BC.argmax(axis=-1),
                "confidence": jnp.exp(jnp.max(log_BC, axis=-1)),
                "log_likelihood": jnp.sum(jnp.where(right_BC > 0, log_BC, 0.0), axis=-1),
                "brier": jnp.sum(jnp.square(jnp.exp(log_BC) - right_BC), axis=-1),
            }

        rows = evaluation.rows(self._key(), self.data, params, predict, needs=(self.label,))
        rows = {name: row_N[rows["label"] >= 0] for name, row_N in rows.items()}
        label_N, predicted_N = rows["label"], rows["predicted"]
        if len(label_N) == 0:
            raise UserError(f"data={self.data!r} has no labelled record (all labels < 0): a report needs at least one")
        highest = int(max(label_N.max(), predicted_N.max()))
        classes = names or tuple(str(label) for label in range(highest + 1))
        if highest >= len(classes):
            what = "labels" if label_N.max() == highest else f"head {self.head!r} predictions"
            raise UserError(f"data={self.data!r} has {len(classes)} class names, but its {what} go up to {highest}")
        return Classified(classes=classes, **rows)

    def _key(self) -> str:
        """What this evaluation is called in what is said, and where its program is kept."""
        return type(self).__name__.lower()
