"""The classification report of a head: precision, recall, F1 and support, as scikit-learn computes and prints them."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.objectives import routes
from mmjax.objectives.classification import check_places

logger = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Report:
    """Accuracy, macro and weighted averages and the F1 of each class. A score whose denominator is 0 is 0.

    Calling it also logs the table. Records without a label (label < 0) do not count. The head's `input` says what is
    classified.

    Attributes:
      head: the classification head.
      modality: what is classified, where that is to be said here too: it is held against the head's `input`. "" says nothing.
      fusion: the same, for a head that a fusion feeds.
      context: the other modalities of that fusion; () says nothing.
      data: the dataset.
      label: the batch key of the labels, one an example.

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

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        from sklearn.metrics import precision_recall_fscore_support  # it doubles the time of every start

        label_N, predicted_N, classes = self._predict(evaluation, params)
        logger.info("%s on %s\n%s", self.head, self.data, _table(label_N, predicted_N, classes))
        precision_C, recall_C, f1_C, support_C = precision_recall_fscore_support(
            label_N, predicted_N, labels=range(len(classes)), zero_division=0
        )
        metrics = {
            "accuracy": np.mean(predicted_N == label_N),
            "macro_precision": np.mean(precision_C),
            "macro_recall": np.mean(recall_C),
            "macro_f1": np.mean(f1_C),
            "weighted_f1": np.average(f1_C, weights=support_C),
        }
        per_class = {f"f1/{name}": f1 for name, f1 in zip(classes, f1_C, strict=True)}
        return {name: float(value) for name, value in (metrics | per_class).items()}

    def table(self, evaluation: Evaluation, params: Params) -> str:
        """The text that `sklearn.metrics.classification_report` prints."""
        return _table(*self._predict(evaluation, params))

    def _predict(self, evaluation: Evaluation, params: Params) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Labels [N], predictions [N] and the name of each class."""

        names = class_names(evaluation.dataset(self.data), self.label)

        def predict(forward: Forward, batch: Batch) -> tuple[Array, Array]:
            routes.check(forward, self.head, self.modality, self.fusion, self.context)
            logits = forward.head(self.head)
            check_places(self.head, logits, self.label, batch[self.label])
            if logits.ndim != 2:
                raise UserError(f"head={self.head!r} gives logits of many places of an example; a report reads one an example")
            if names:
                routes.check_classes(self.head, logits, len(names), f"data.{self.data} has {len(names)} classes")
            return batch[self.label], logits.argmax(axis=-1)

        label_N, predicted_N = evaluation.rows("report", self.data, params, predict, needs=(self.label,))
        label_N, predicted_N = label_N[label_N >= 0], predicted_N[label_N >= 0]
        if len(label_N) == 0:
            raise UserError(f"data={self.data!r} has no labelled record (all labels < 0): a report needs at least one")

        highest = int(max(label_N.max(), predicted_N.max()))
        classes = names or tuple(str(label) for label in range(highest + 1))
        if highest >= len(classes):
            what = "labels" if label_N.max() == highest else f"head {self.head!r} predictions"
            raise UserError(f"data={self.data!r} has {len(classes)} class names, but its {what} go up to {highest}")
        return label_N, predicted_N, classes


def _table(label_N: np.ndarray, predicted_N: np.ndarray, classes: tuple[str, ...]) -> str:
    from sklearn.metrics import classification_report

    return classification_report(label_N, predicted_N, labels=range(len(classes)), target_names=classes, zero_division=0)
