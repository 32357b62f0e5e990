"""How well a head puts the items of a query in the order of their relevance."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation
from mmjax.objectives.checks import one_of
from mmjax.objectives.ranking import scored

NAMES = ("ndcg", "mean_reciprocal_rank", "chance/ndcg", "chance/mean_reciprocal_rank")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Normalised discounted cumulative gain (Jarvelin & Kekalainen 2002, as scikit-learn's `ndcg_score`) and mean reciprocal
    rank: means over the queries of the whole dataset, wherever their items stand in it.

    It gives `ndcg`, `mean_reciprocal_rank` of the first item whose relevance is above 0, for both what orders by chance have in
    the mean (`chance/ndcg`, `chance/mean_reciprocal_rank`), and `queries`, how many it is of: those of two items or more of
    which one is relevant. The gain of items that are scored alike is their mean; for the
    reciprocal rank a tie counts against the relevant one. An item whose relevance is below 0 or NaN, or whose query is below 0,
    does not count.

    Attributes:
      head: a head of one logit, the score.
      target: the batch key of the relevance [N].
      query: the batch key of whole numbers [N], equal for items of one query.
      k: only the first k items count for `ndcg`; 0 for all.
      gain: of an item: `linear`, its relevance, or `exponential`, 2^relevance - 1 (Burges 2005).
      data: the dataset.

    Raises:
      UserError: as `objectives.Ranking`, or no query that counts.
    """

    head: str = "score"
    target: str = "relevance"
    query: str = "query"
    k: int = setting(least=0, default=10)
    gain: str = "linear"
    data: str = "validation"

    def __post_init__(self) -> None:
        one_of("gain", self.gain, ("linear", "exponential"))

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        def score(forward: Forward, batch: Batch) -> dict[str, Array]:
            keys = self.target, batch[self.target], self.query, batch[self.query]
            score_B, relevance_B, known_B = scored(self.head, forward.head(self.head), *keys)
            return {
                "score": score_B,
                "relevance": relevance_B,
                "known": known_B,
                "query": batch[self.query],
                "index": batch["index"],
            }

        rows = evaluation.rows("ranked", self.data, params, score, needs=(self.target, self.query))
        rows = {name: row_N[rows["known"]] for name, row_N in rows.items()}
        score_N, relevance_N = (rows[name].astype(np.float64) for name in ("score", "relevance"))
        evaluation.keep(
            {"index": int(index), "query": int(query), "relevance": float(relevance), "score": float(own)}
            for index, query, relevance, own in zip(rows["index"], rows["query"], relevance_N, score_N, strict=True)
        )
        order_N = np.argsort(rows["query"], kind="stable")
        edges = np.flatnonzero(np.diff(rows["query"][order_N])) + 1
        found = [(score_N[own], relevance_N[own]) for own in np.split(order_N, edges)]
        found = [(own, relevance) for own, relevance in found if len(own) > 1 and relevance.max() > 0]
        if not found and not evaluation.dry:
            raise UserError(f"data={self.data!r} has no query in {self.query!r} of two known items, one of them relevant")
        if not found or np.isnan(score_N).any():
            return dict.fromkeys(NAMES, math.nan) | {"queries": float(len(found))}
        gains = [(own, relevance if self.gain == "linear" else np.exp2(relevance) - 1) for own, relevance in found]
        values = (
            [ndcg(own, gain, self.k) for own, gain in gains],
            [reciprocal_rank(own, relevance) for own, relevance in found],
            [ndcg(np.zeros(len(gain)), gain, self.k) for _, gain in gains],
            [chance_of_rank(relevance) for _, relevance in found],
        )
        means = (float(np.mean(own)) for own in values)
        return dict(zip(NAMES, means, strict=True)) | {"queries": float(len(found))}


def ndcg(score_N: np.ndarray, gain_N: np.ndarray, k: int) -> float:
    """The discounted gain of one query's items in the order of their scores, over that of the best order."""
    discount_N = 1 / np.log2(np.arange(len(gain_N)) + 2)
    discount_N[k or len(gain_N) :] = 0.0
    order_N = np.argsort(-score_N, kind="stable")
    alike_N = np.cumsum(np.append(0, score_N[order_N][1:] != score_N[order_N][:-1]))  # a number for each score
    mean_S = np.bincount(alike_N, gain_N[order_N]) / np.bincount(alike_N)
    return float(mean_S @ np.bincount(alike_N, discount_N) / (np.sort(gain_N)[::-1] @ discount_N))


def reciprocal_rank(score_N: np.ndarray, relevance_N: np.ndarray) -> float:
    """One over the place of the first relevant item, behind all others that are scored as it is."""
    best = score_N[relevance_N > 0].max()
    return 1.0 / (1 + int(np.sum(score_N[relevance_N <= 0] >= best)))


def chance_of_rank(relevance_N: np.ndarray) -> float:
    """The mean of one over the place of the first relevant item over all orders: that it is at place n is that none of the
    others is among the n - 1 before it."""
    size, relevant = len(relevance_N), int(np.sum(relevance_N > 0))
    orders = [math.comb(size - place, relevant - 1) for place in range(1, size - relevant + 2)]
    return sum(count / place for place, count in enumerate(orders, 1)) / math.comb(size, relevant)
