"""How well a head says which of its classes each example has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.objectives import routes
from mmjax.objectives.multi_label import known_labels


@dataclasses.dataclass(frozen=True)
class MultiLabels:
    """Mean average precision, F1 at a threshold, and how many examples have all their classes right, as scikit-learn's.

    `mean_average_precision` is the mean over classes that some example has, NaN where none has any, `macro_auroc` (the area
    under the ROC curve) that over classes that some example has and some has not; `micro_f1` is of all labels
    together, `macro_f1` the mean over classes, of which one that is neither there nor said counts 0; `subset_accuracy` is of
    examples of which something is known. Labels that are not known (below 0, NaN) count nowhere. Each class has its `f1/NAME`
    and, where there is one, `average_precision/NAME` and `auroc/NAME`.

    Attributes:
      head: a head of C classes, whose logits' sigmoids are how likely each is.
      label: the batch key of the labels [B, C].
      data: the dataset.
      threshold: a class at least so likely is said.

    Raises:
      UserError: another number of labels than logits, other classes than the head's, or no known label in the data.
    """

    head: str = "classes"
    label: str = "labels"
    data: str = "validation"
    threshold: float = setting(above=0, below=1, default=0.5)

    outcome: ClassVar[str] = "several"

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        names = class_names(evaluation.dataset(self.data), self.label)

        def predict(forward: Forward, batch: Batch) -> dict[str, Array]:
            logits_BC, label_BC, known_BC = known_labels(self.head, forward.head(self.head), self.label, batch[self.label])
            if names:
                routes.check_classes(self.head, logits_BC, len(names), f"data.{self.data} has {len(names)} classes")
            return {"index": batch["index"], "logits": logits_BC, "label": label_BC, "known": known_BC}

        rows = evaluation.rows("multi_labels", self.data, params, predict, needs=(self.label,))
        known_NC, there_NC = rows["known"], rows["label"] > 0.5
        if not known_NC.any():
            raise UserError(f"data={self.data!r} has no known {self.label!r} (all below 0): this needs at least one")
        logits_NC = rows["logits"].astype(np.float64)
        likely_NC = 0.5 * (1.0 + np.tanh(0.5 * logits_NC))  # the sigmoid
        said_NC = likely_NC >= self.threshold
        classes = names or tuple(map(str, range(known_NC.shape[1])))
        evaluation.keep(_examples(classes, rows["index"], known_NC, there_NC, said_NC, likely_NC))
        right_C, missed_C, wrong_C = (
            np.sum(known_NC & part, axis=0) for part in (there_NC & said_NC, there_NC & ~said_NC, said_NC & ~there_NC)
        )
        f1_C = _f1(right_C, missed_C, wrong_C)
        # In the order of the logits, not of the sigmoids, of which many round to 1.
        found = [average_precision(logits_NC[known, c], there_NC[known, c]) for c, known in enumerate(known_NC.T)]
        precision = {name: value for name, value in zip(classes, found, strict=True) if value is not None}
        areas = {
            name: auroc(logits_NC[known_N, c], there_NC[known_N, c])
            for c, (name, known_N) in enumerate(zip(classes, known_NC.T, strict=True))
        }
        area = {name: value for name, value in areas.items() if value is not None}
        some_N = known_NC.any(axis=1)
        metrics = {
            "mean_average_precision": np.mean([*precision.values()]) if precision else np.nan,
            "macro_auroc": np.mean([*area.values()]) if area else np.nan,
            "micro_f1": _f1(right_C.sum(), missed_C.sum(), wrong_C.sum()),
            "macro_f1": np.mean(f1_C),
            "subset_accuracy": np.mean(((there_NC == said_NC) | ~known_NC).all(axis=1)[some_N]),
            **{f"f1/{name}": f1 for name, f1 in zip(classes, f1_C, strict=True)},
            **{f"average_precision/{name}": value for name, value in precision.items()},
            **{f"auroc/{name}": value for name, value in area.items()},
        }
        return {name: float(value) for name, value in metrics.items()}


def average_precision(score_N: np.ndarray, there_N: np.ndarray) -> float | None:
    """The area under precision over recall, as scikit-learn sums it; None where nothing is there, NaN where a score is none."""
    if not there_N.any():
        return None
    if np.isnan(score_N).any():
        return float("nan")
    order_N = np.argsort(-score_N, kind="stable")
    score_N, there_N = score_N[order_N], there_N[order_N]
    last = np.append(np.flatnonzero(score_N[1:] != score_N[:-1]), len(score_N) - 1)  # of those that are scored alike
    found = np.cumsum(there_N)[last]
    return float(np.sum(np.diff(found, prepend=0) * found / (last + 1)) / found[-1])


def auroc(score_N: np.ndarray, there_N: np.ndarray) -> float | None:
    """How likely one that is there is scored above one that is not, ties by half, as scikit-learn's `roc_auc_score`; None where
    one of the two kinds is missing, NaN where a score is none."""
    there, rest = score_N[there_N], np.sort(score_N[~there_N])
    if not len(there) or not len(rest):
        return None
    if np.isnan(score_N).any():
        return float("nan")
    below = np.searchsorted(rest, there, "left") + np.searchsorted(rest, there, "right")
    return float(below.sum() / (2 * len(there) * len(rest)))


def _f1(right: Any, missed: Any, wrong: Any) -> Any:
    """2 right / (2 right + missed + wrong), 0 where that has no denominator."""
    return 2 * right / np.maximum(2 * right + missed + wrong, 1)


def _examples(
    classes: tuple[str, ...],
    index_N: np.ndarray,
    known_NC: np.ndarray,
    there_NC: np.ndarray,
    said_NC: np.ndarray,
    likely_NC: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """One a line of `predictions.jsonl`: the classes that each example has and those said, with how likely they are."""
    for n, index in enumerate(index_N.tolist()):
        if known_NC[n].any():
            has = [name for name, there in zip(classes, there_NC[n] & known_NC[n], strict=True) if there]
            said = {name: float(likely_NC[n, c]) for c, name in enumerate(classes) if said_NC[n, c]}
            yield {"index": index, "label": has, "predicted": said}
