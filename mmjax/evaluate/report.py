"""The classification report of a head: precision, recall, F1 and support, as scikit-learn computes and prints them."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from mmjax.core.types import Params
from mmjax.evaluate.classified import Classified, OfHead
from mmjax.evaluate.evaluation import Evaluation

logger = logging.getLogger("mmjax")
SHOWN = 20  # classes whose confusions are printed


@dataclasses.dataclass(frozen=True)
class Report(OfHead):
    """Accuracy, macro and weighted averages and the F1 of each class. A score whose denominator is 0 is 0: a class that never
    occurs counts so in the macro averages.

    Calling it also logs the table and, of no more than `SHOWN` classes, the confusion matrix: its rows are the labels.
    The attributes and what is raised are those of `OfHead`.
    """

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        from sklearn.metrics import precision_recall_fscore_support  # it doubles the time of every start

        found = self.classified(evaluation, params)
        evaluation.keep(found.examples())
        label_N, predicted_N, classes = found.label, found.predicted, found.classes
        logger.info("%s on %s\n%s", self.head, self.data, _table(found))
        if len(classes) <= SHOWN:
            logger.info("%s on %s, labels (rows) taken for classes\n%s", self.head, self.data, _grid(found))
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
        return _table(self.classified(evaluation, params))

    def confusion(self, evaluation: Evaluation, params: Params) -> np.ndarray:
        """[C, C] int: how many examples of each class (rows) were taken for each (columns); a class that never occurs has a row
        of zeros."""
        return _confusion(self.classified(evaluation, params))


def _table(found: Classified) -> str:
    from sklearn.metrics import classification_report

    labels = range(len(found.classes))
    return classification_report(found.label, found.predicted, labels=labels, target_names=found.classes, zero_division=0)


def _confusion(found: Classified) -> np.ndarray:
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(found.label, found.predicted, labels=range(len(found.classes)))


def _grid(found: Classified) -> str:
    """The confusion matrix in lines."""
    count_CC = _confusion(found)
    names = [*map(str, found.classes)]
    width, first = max(len(str(count_CC.max())), *map(len, names)) + 1, max(map(len, names))
    lines = [" " * first + "".join(f"{name:>{width}}" for name in names)]
    lines += [f"{name:<{first}}" + "".join(f"{n:>{width}}" for n in row) for name, row in zip(names, count_CC, strict=True)]
    return "\n".join(lines)
