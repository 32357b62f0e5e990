"""Cross-modal retrieval: recall at K, both ways."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation

BLOCK_SCORES = 2**24  # scores held at once: 64 MiB of float32


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """The share of queries with a right answer among the K nearest of the whole dataset, and the mean of all these shares.

    Answers are right when their `group` equals the query's (the query's own pair when the data has no groups). Other right
    answers do not push one down. Ties are broken against the query, so a collapsed model scores 0.

    Attributes:
      at: the Ks.
      fusion: the fusion whose space is shared.
      modalities: the two that look each other up.
      data: the dataset.

    Raises:
      UserError: `at` is empty or holds a number below 1, or `modalities` are not two different ones.
    """

    at: tuple[int, ...] = (1, 5, 10)
    fusion: str = "dual"
    modalities: tuple[str, str] = ("image", "text")
    data: str = "validation"

    def __post_init__(self) -> None:
        if not self.at or min(self.at) < 1:
            raise UserError(f"at={self.at}: give whole numbers of 1 or more, such as (1, 5, 10)")
        if len(set(self.modalities)) != 2 or len(self.modalities) != 2:
            raise UserError(f"modalities={self.modalities}: give two different ones, such as ('image', 'text')")

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        def embed(forward: Forward, batch: Batch) -> dict[str, Array]:
            rows = {modality: forward.embed(modality, self.fusion) for modality in self.modalities}
            return rows | {"group": batch["group"]} if "group" in batch else rows

        first, second = self.modalities
        rows = evaluation.rows(f"retrieval/{first}/{second}/{self.fusion}", self.data, params, embed, needs=self.modalities)
        group_N = rows["group"] if "group" in rows else np.arange(len(rows[first]))

        metrics: dict[str, float] = {}
        for query, answer in ((first, second), (second, first)):
            rank_N = best_ranks(rows[query], rows[answer], group_N)
            metrics |= {f"{query}_to_{answer}_r{k}": float(np.mean(rank_N < k)) for k in self.at}
        return metrics | {"mean_recall": float(np.mean(list(metrics.values())))}


def best_ranks(
    query_NE: np.ndarray, answer_NE: np.ndarray, group_N: np.ndarray, block_scores: int = BLOCK_SCORES
) -> np.ndarray:
    """[N] how many wrong answers score at least as high as the best right one.

    Computed for a block of queries at a time: memory is `block_scores` scores, never N x N. A score that is not a number counts
    as high, so that a diverged model cannot look good.
    """
    block = max(1, block_scores // len(answer_NE))
    ranks = []
    for start in range(0, len(query_NE), block):
        rows = slice(start, start + block)
        score_QN = query_NE[rows] @ answer_NE.T
        right_QN = group_N[rows, None] == group_N[None]
        best_Q1 = np.max(score_QN, axis=1, keepdims=True, where=right_QN, initial=-np.inf)
        ranks.append((~right_QN & ~(score_QN < best_Q1)).sum(axis=1))
    return np.concatenate(ranks)
