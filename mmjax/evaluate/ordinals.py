"""How far off a head of ordered classes is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.objectives.ordinal import check_one_an_example


@dataclasses.dataclass(frozen=True)
class Ordinals:
    """Quadratic weighted kappa (Cohen 1968), accuracy, and the mean absolute error in classes, of a head trained by `Ordinal`.

    An example's class is how many of its C - 1 questions are answered with yes (Cao 2020, eq. 1). Kappa is 1 where all is
    right, 0 where as much is as by chance, NaN where labels and predictions are all of one class. Negative labels do not count.

    Attributes:
      head: a head of C - 1 logits.
      label: the batch key of the labels [B].
      data: the dataset.

    Raises:
      UserError: another number of classes than logits and one, no label in the data, or one beyond the head.
    """

    head: str = "classes"
    label: str = "label"
    data: str = "validation"

    outcome: ClassVar[str] = "ordered"

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        names = class_names(evaluation.dataset(self.data), self.label)

        def predict(forward: Forward, batch: Batch) -> dict[str, Array]:
            logits_BK, label_B = forward.head(self.head), batch[self.label]
            check_one_an_example(self.head, logits_BK, self.label, label_B)
            if names and logits_BK.shape[1] != len(names) - 1:
                raise UserError(
                    f"model.heads.{self.head} gives {logits_BK.shape[1]} logits: data.{self.data} has {len(names)} ordered "
                    f"classes, so it needs {len(names) - 1}"
                )
            return {"index": batch["index"], "label": label_B, "logits": logits_BK}

        rows = evaluation.rows("ordinals", self.data, params, predict, needs=(self.label,))
        index_N, label_N, logits_NK = (row[rows["label"] >= 0] for row in (rows["index"], rows["label"], rows["logits"]))
        if len(label_N) == 0:
            raise UserError(f"data={self.data!r} has no labelled record (all labels < 0): this needs at least one")
        classes = names or tuple(map(str, range(logits_NK.shape[1] + 1)))
        if label_N.max() >= len(classes):
            raise UserError(f"data={self.data!r} has label {label_N.max()}, and head={self.head!r} has {len(classes)} classes")
        rank_N, share_NC = ranks(logits_NK), shares(logits_NK)
        evaluation.keep(_examples(classes, index_N, label_N, rank_N, share_NC))
        if np.isnan(logits_NK).any():  # which answer no question, and so would all be of the least class
            return dict.fromkeys(("quadratic_weighted_kappa", "accuracy", "mean_absolute_error"), math.nan)
        return {
            "quadratic_weighted_kappa": quadratic_kappa(label_N, rank_N, len(classes)),
            "accuracy": float(np.mean(rank_N == label_N)),
            "mean_absolute_error": float(np.mean(np.abs(rank_N - label_N))),
        }


def ranks(logits_NK: np.ndarray) -> np.ndarray:
    """[N] int: how many classes each is above, of logits [N, C - 1]."""
    found: np.ndarray = np.sum(logits_NK > 0, axis=1)
    return found


def shares(logits_NK: np.ndarray) -> np.ndarray:
    """[N, C] float64: how likely each class is by logits [N, C - 1] of whether it is above the first, the second, ...

    Answers that contradict each other are put into falling order first, which leaves as many of them above one half: `ranks`
    and these shares have the same median.
    """
    above_NK = -np.sort(-0.5 * (1.0 + np.tanh(0.5 * logits_NK.astype(np.float64))), axis=1)
    edge_N1 = np.ones((len(above_NK), 1))
    found: np.ndarray = -np.diff(np.concatenate([edge_N1, above_NK, 0 * edge_N1], axis=1), axis=1)
    return found


def quadratic_kappa(label_N: np.ndarray, rank_N: np.ndarray, classes: int) -> float:
    """1 - (squared misses) / (those of labels and predictions that know nothing of each other); NaN where the latter are 0."""
    apart_CC = np.square(np.arange(classes)[:, None] - np.arange(classes)[None]).astype(np.float64)
    label_C, rank_C = (np.bincount(x, minlength=classes) / len(label_N) for x in (label_N, rank_N))
    chance = float(label_C @ apart_CC @ rank_C)
    return 1.0 - float(np.mean(np.square(label_N - rank_N, dtype=np.float64))) / chance if chance else math.nan


def _examples(
    classes: tuple[str, ...], index_N: np.ndarray, label_N: np.ndarray, rank_N: np.ndarray, share_NC: np.ndarray
) -> Iterator[dict[str, Any]]:
    """One a line of `predictions.jsonl`."""
    for index, label, rank, share_C in zip(index_N.tolist(), label_N, rank_N, share_NC, strict=True):
        yield {"index": index, "label": classes[label], "predicted": classes[rank], "score": float(share_C[rank])}
