"""Learning to rank: the items of a query are put in the order of their relevance."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import EXCLUDED, counted, same_group, valid_pairs, valid_rows
from mmjax.parallel.mesh import constrain_batch


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Score the items of a query so that the more relevant come first; examples are items, compared within their query.

    Only items that are in one batch are compared, on whatever device they lie: the source `Grouped` keeps those of a query
    together, and data without it is refused before the first step. The figure `paired` is the share of items that had another
    to be compared with. An item whose relevance is below 0 or NaN, or whose query is below 0,
    does not count.

    Attributes:
      head: a head of one logit, the score.
      target: the batch key of the relevance [B], more is better.
      query: the batch key of whole numbers [B], equal for items of one query.
      loss: `pairwise`, log(1 + exp(-(s_i - s_j))) for each pair of which i is more relevant (RankNet: Burges 2005, eq. 3, of
        certain pairs); `margin`, max(0, margin - (s_i - s_j)) for the same; both a mean over pairs. Or `listwise`, the cross
        entropy of the softmax of the scores and that of the relevance over a query's items (ListNet: Cao 2007, section 4.3,
        top one), a mean over queries of two items or more.
      margin: of the margin loss.
      scattered: compare what a batch happens to hold of a query, of data that is not kept together: for batches that are large
        beside the number of queries.

    Raises:
      UserError: when called: logits that are not one an item, relevance or queries of another shape, queries that are no whole
        numbers.
    """

    head: str = "score"
    target: str = "relevance"
    query: str = "query"
    loss: str = "pairwise"
    margin: float = setting(above=0, default=1.0)
    scattered: bool = False

    in_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("ranking.loss", self.loss, ("pairwise", "margin", "listwise"))
        checks.positive("ranking.margin", self.margin)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.target, self.query)

    @property
    def together(self) -> str:
        """The batch key whose equal values have to be in one batch; "" for none."""
        return "" if self.scattered else self.query

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        score_B, relevance_B, known_B = scored(
            self.head, forward.head(self.head), self.target, batch[self.target], self.query, batch[self.query]
        )
        known_B &= valid_rows(batch, score_B.shape[0])
        query_B = batch[self.query]
        together_BB = constrain_batch(same_group(query_B, query_B) & valid_pairs(known_B))
        above_BB = together_BB & (relevance_B[:, None] > relevance_B[None, :])
        apart_BB = constrain_batch(score_B[:, None] - score_B[None, :])
        differs_B = jnp.any(above_BB, axis=1) | jnp.any(above_BB, axis=0)
        metrics = {"pair_accuracy": counted(apart_BB > 0, above_BB), "paired": counted(differs_B, known_B)}
        if self.loss == "listwise":
            return Loss(*_listwise(score_B, relevance_B, together_BB), metrics)
        losses_BB = jax.nn.softplus(-apart_BB) if self.loss == "pairwise" else jax.nn.relu(self.margin - apart_BB)
        return Loss(*counted(losses_BB, above_BB), metrics)


def _listwise(score_B: Array, relevance_B: Array, together_BB: Array) -> tuple[Array, Array]:
    """The sum over queries of two items or more, and how many those are."""
    log_p_B, log_y_B = (x_B - _log_sum(x_B, together_BB) for x_B in (score_B, relevance_B))
    counts_B = jnp.sum(together_BB.astype(jnp.int32), axis=1) >= 2
    total, _ = counted(-jnp.exp(log_y_B) * log_p_B, counts_B)
    place_B = jnp.arange(score_B.shape[0])
    first_B = counts_B & (jnp.argmax(together_BB, axis=1).astype(place_B.dtype) == place_B)
    return total, jnp.sum(first_B.astype(jnp.float32))


def _log_sum(x_B: Array, together_BB: Array) -> Array:
    """[B]: log of the sum of exp(x) over each row's query; x itself where it is in none."""
    summed_B = jax.nn.logsumexp(jnp.where(together_BB, x_B[None, :], EXCLUDED), axis=1)
    return jnp.where(jnp.any(together_BB, axis=1), summed_B, x_B)


def scored(head: str, logits: Array, target: str, relevance: Array, query: str, ids: Array) -> tuple[Array, Array, Array]:
    """Scores, relevance (0 where that is not known), and which items count: all [B], two float32 and a bool.

    Raises:
      UserError: as `Ranking`.
    """
    size = logits.shape[0]
    if logits.shape not in ((size,), (size, 1)):
        raise UserError(
            f"head={head!r} gives {'x'.join(map(str, logits.shape[1:]))} logits an item: a ranking needs one, its score"
        )
    for key, found in ((target, relevance), (query, ids)):
        if found.shape != (size,):
            raise UserError(f"{key!r} is {'x'.join(map(str, found.shape[1:]))} an item: a ranking needs one number")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"query={query!r} is {ids.dtype}: queries are whole numbers, equal for items of one query")
    relevance = relevance.astype(jnp.float32)
    known = (relevance >= 0) & jnp.isfinite(relevance) & (ids >= 0)
    return logits.reshape(size).astype(jnp.float32), jnp.where(known, relevance, 0.0), known
