"""The classification report of a head: precision, recall, F1 and support, as scikit-learn computes and prints them."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation

logger = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Report:
    """Accuracy, macro and weighted averages and the F1 of each class. A score whose denominator is 0 is 0.

    Calling it also logs the table. Records without a label (label < 0) do not count.

    Attributes:
      head: the classification head.
      modality: what is classified.
      fusion: fuse `modality` with `context` before the head; "" gives the head the encoder's own tokens.
      context: the other modalities that are fused.
      data: the dataset.

    Raises:
      UserError: `context` without `fusion`, data without labels, or a label or prediction that has no class name.
    """

    head: str = "classes"
    modality: str = "image"
    fusion: str = ""
    context: tuple[str, ...] = ()
    data: str = "validation"

    def __post_init__(self) -> None:
        if self.context and not self.fusion:
            raise UserError(f"context={self.context} with fusion='': name the fusion that joins them to {self.modality!r}")

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

        def predict(forward: Forward, batch: Batch) -> tuple[Array, Array]:
            tokens = forward.encode(self.modality)
            if self.fusion:
                parts = {self.modality: tokens} | {name: forward.encode(name) for name in self.context}
                tokens = forward.fuse(self.fusion, parts, key="report")
            return batch["label"], forward.head(self.head, tokens, key="report").argmax(axis=-1)

        key = f"report/{self.head}/{self.modality}/{self.fusion}/{self.context}"
        needs = ("label", self.modality, *self.context)
        label_N, predicted_N = evaluation.rows(key, self.data, params, predict, needs=needs)
        label_N, predicted_N = label_N[label_N >= 0], predicted_N[label_N >= 0]
        if len(label_N) == 0:
            raise UserError(f"data={self.data!r} has no labelled record (all labels < 0): a report needs at least one")

        highest = int(max(label_N.max(), predicted_N.max()))
        classes = evaluation.dataset(self.data).classes or tuple(str(label) for label in range(highest + 1))
        if highest >= len(classes):
            what = "labels" if label_N.max() == highest else f"head {self.head!r} predictions"
            raise UserError(f"data={self.data!r} has {len(classes)} class names, but its {what} go up to {highest}")
        return label_N, predicted_N, classes


def _table(label_N: np.ndarray, predicted_N: np.ndarray, classes: tuple[str, ...]) -> str:
    from sklearn.metrics import classification_report

    return classification_report(label_N, predicted_N, labels=range(len(classes)), target_names=classes, zero_division=0)
