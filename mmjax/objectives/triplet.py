"""Triplet ranking of two modalities: a positive must be nearer than a negative, by a margin."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import counted, positive_pairs, retrieval_metrics, similarity, valid_pairs, valid_rows


@dataclasses.dataclass(frozen=True)
class Triplet:
    """Hinges `margin + d(anchor, positive) - d(anchor, negative)`, with the cosine distance d = 1 - similarity.

    Both modalities take their turn as anchor, and the two losses add up. Examples of an equal `group` are positives; an
    anchor's loss is the mean over its positives, and an anchor without a negative counts nowhere. Summed over examples.

    Attributes:
      margin: how much nearer a positive must be.
      modalities: the two.
      fusion: the fusion that holds their shared space.
      mining: which negatives make a hinge. `hard`: the nearest (VSE++: Faghri 2018, eq. 6). `semi_hard`: the nearest of those
        further than the positive (FaceNet: Schroff 2015, eq. 4), or the furthest if all are nearer. `all`: every one, summed
        (Faghri 2018, eq. 5).
      group: the batch key whose equal values make examples each other's positives.
    """

    margin: float = 0.2
    modalities: tuple[str, str] = ("image", "text")
    fusion: str = "dual"
    mining: str = "hard"
    group: str = "group"

    in_batch: ClassVar[bool] = True
    embeds_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("triplet.mining", self.mining, ("hard", "semi_hard", "all"))
        checks.two_modalities("triplet.modalities", self.modalities)
        checks.at_least("triplet.margin", self.margin, 0)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.modalities)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        a_BE, b_BE = (forward.embed(modality, self.fusion) for modality in self.modalities)
        valid_B = valid_rows(batch, a_BE.shape[0])
        positive_BB = positive_pairs(batch, valid_B, self.group)
        negative_BB = valid_pairs(valid_B) & ~positive_BB
        distance_BB = 1 - similarity(a_BE, b_BE)
        loss_B = self._anchors(distance_BB, positive_BB, negative_BB) + self._anchors(distance_BB.T, positive_BB, negative_BB)
        metrics = retrieval_metrics(self.modalities, -distance_BB, positive_BB, valid_B)
        return Loss(*counted(loss_B, jnp.any(negative_BB, axis=1)), metrics)

    def _anchors(self, distance_BB: Array, positive_BB: Array, negative_BB: Array) -> Array:
        """[B] float32: the loss of each row as an anchor."""

        def anchor(distance_N: Array, positive_N: Array, negative_N: Array) -> Array:
            hinges_N = _hinges(distance_N, negative_N, self.margin, self.mining)
            total, count = counted(hinges_N, positive_N)
            return total / jnp.maximum(count, 1.0)

        return jax.vmap(anchor)(distance_BB, positive_BB, negative_BB)


def _hinges(distance_N: Array, negative_N: Array, margin: float, mining: str) -> Array:
    """[N] float32: one anchor's loss for each row taken as its positive.

    Sorting the negatives answers every positive at once, in N log N rather than N^2 steps an anchor.
    """
    negatives_N = jnp.where(negative_N, distance_N, jnp.inf)
    edge_N = margin + distance_N
    if mining == "hard":
        return jax.nn.relu(edge_N - jnp.min(negatives_N))
    sorted_N = jnp.sort(negatives_N)
    if mining == "semi_hard":
        furthest = jnp.maximum(jnp.sum(negative_N) - 1, 0)
        rank_N = jnp.minimum(jnp.searchsorted(sorted_N, distance_N, side="right"), furthest)
        return jax.nn.relu(edge_N - sorted_N[rank_N])
    nearer_N = jnp.searchsorted(sorted_N, edge_N)
    sums_N = jnp.cumsum(jnp.where(jnp.isfinite(sorted_N), sorted_N, 0.0))
    return nearer_N.astype(jnp.float32) * edge_N - jnp.where(nearer_N > 0, sums_N[nearer_N - 1], 0.0)
