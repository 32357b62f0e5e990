"""Cross-modal retrieval: recall at K, both ways."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.data.strings import strings
from mmjax.evaluate.evaluation import Evaluation

BLOCK_SCORES = 2**24  # scores held at once: 64 MiB of float32


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """The share of queries with a right answer among the K nearest of the whole dataset, and the mean of all these shares.

    Answers are right when their `group` equals the query's (the query's own pair when the data has no groups). Other right
    answers do not push one down. Ties are broken against the query, so a collapsed model scores 0. Where the data says which
    records hold one and the same image (or text), by a key `MODALITY_id`, it is one query and one answer.

    Attributes:
      at: the Ks.
      fusion: the fusion whose space is shared.
      modalities: the two that look each other up.
      data: the dataset.
      group: the batch key whose equal values make right answers.
      captions: the batch key of all texts of a record, a column of `Strings`, which then stand for its second modality, each
        one query and one answer: the usual five captions an image. "" where a record has one.

    Raises:
      UserError: `at` is empty or holds a number below 1, `modalities` are not two different ones, or no record has captions.
    """

    at: tuple[int, ...] = (1, 5, 10)
    fusion: str = "dual"
    modalities: tuple[str, str] = ("image", "text")
    data: str = "validation"
    group: str = "group"
    captions: str = ""

    def __post_init__(self) -> None:
        if not self.at or min(self.at) < 1:
            raise UserError(f"at={self.at}: give whole numbers of 1 or more, such as (1, 5, 10)")
        if len(set(self.modalities)) != 2 or len(self.modalities) != 2:
            raise UserError(f"modalities={self.modalities}: give two different ones, such as ('image', 'text')")

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        first, second = self.modalities
        own = (first,) if self.captions else self.modalities

        def embed(forward: Forward, batch: Batch) -> dict[str, Array]:
            rows = {modality: forward.embed(modality, self.fusion) for modality in own}
            keys = (self.group, self.captions, *(f"{m}_id" for m in own))
            return rows | {key: batch[key] for key in keys if key in batch}

        needs = (*own, *((self.group,) if self.group != "group" else ()), *((self.captions,) if self.captions else ()))
        rows = evaluation.rows("retrieval", self.data, params, embed, needs=needs)
        group_N = numbered(rows[self.group]) if self.group in rows else np.arange(len(rows[first]))
        once = {m: first_of_each(rows[f"{m}_id"]) if f"{m}_id" in rows else np.arange(len(group_N)) for m in own}
        sides = {m: (rows[m][once[m]], group_N[once[m]]) for m in own}
        if self.captions:
            sides[second] = self._captioned(evaluation, params, rows[self.captions][once[first]], sides[first][1])

        metrics: dict[str, float] = {}
        for query, answer in ((first, second), (second, first)):
            (asked_QE, asked_Q), (given_AE, given_A) = sides[query], sides[answer]
            rank_Q = best_ranks(asked_QE, given_AE, asked_Q, answer_group_N=given_A)
            metrics |= {f"{query}_to_{answer}_r{k}": float(np.mean(rank_Q < k)) for k in self.at}
        return metrics | {"mean_recall": float(np.mean(list(metrics.values())))}

    def _captioned(
        self, evaluation: Evaluation, params: Params, captions_NRL: np.ndarray, group_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """All captions, embedded, and the group of each."""
        _, second = self.modalities

        def embed(forward: Forward, batch: Batch) -> Array:
            return forward.embed(second, self.fusion)

        texts = [(text, group) for own, group in zip(strings(captions_NRL), group_N, strict=True) for text in own]
        if not texts:
            raise UserError(f"data={self.data!r} has no text in {self.captions!r}: retrieval needs at least one")
        embedded_ME = evaluation.texts("retrieval", params, [text for text, _ in texts], embed, second)
        return embedded_ME, np.array([group for _, group in texts])


def numbered(group_N: np.ndarray) -> np.ndarray:
    """[N] whole numbers, equal where the rows of [N] or [N, n] are."""
    return group_N if group_N.ndim == 1 else np.unique(group_N, axis=0, return_inverse=True)[1].reshape(-1)


def first_of_each(id_N: np.ndarray) -> np.ndarray:
    """The places of the first record of each id, ascending; each negative id is one of its own."""
    own_N = np.where(id_N < 0, -1 - np.arange(len(id_N)), id_N)
    return np.sort(np.unique(own_N, return_index=True)[1])


def best_ranks(
    query_NE: np.ndarray,
    answer_NE: np.ndarray,
    group_N: np.ndarray,
    block_scores: int = BLOCK_SCORES,
    answer_group_N: np.ndarray | None = None,
) -> np.ndarray:
    """[N] how many wrong answers score at least as high as the best right one.

    Computed for a block of queries at a time: memory is `block_scores` scores, never N x N. A score that is not a number counts
    as high, so that a diverged model cannot look good.
    """
    answer_group_N = group_N if answer_group_N is None else answer_group_N
    block = max(1, block_scores // len(answer_NE))
    ranks = []
    for start in range(0, len(query_NE), block):
        rows = slice(start, start + block)
        score_QN = query_NE[rows] @ answer_NE.T
        right_QN = group_N[rows, None] == answer_group_N[None]
        best_Q1 = np.max(score_QN, axis=1, keepdims=True, where=right_QN, initial=-np.inf)
        ranks.append((~right_QN & ~(score_QN < best_Q1)).sum(axis=1))
    return np.concatenate(ranks)
