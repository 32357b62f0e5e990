"""Alignment and uniformity: positives close together, everything else spread over the sphere."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import similarity, valid_pairs, valid_rows


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Squared distance of the pairs, plus the log of the mean Gaussian potential of each modality (Wang & Isola 2020, eq. 1-2).

    Attributes:
      modalities: the two.
      fusion: the fusion that holds their shared space.
      uniformity: weight of the second term; 0 leaves it out.
    """

    modalities: tuple[str, str] = ("image", "text")
    fusion: str = "dual"
    uniformity: float = 1.0

    in_batch: ClassVar[bool] = True
    embeds_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.two_modalities("alignment.modalities", self.modalities)
        checks.at_least("alignment.uniformity", self.uniformity, 0)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.modalities)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        a_BE, b_BE = (forward.embed(modality, self.fusion) for modality in self.modalities)
        valid_B = valid_rows(batch, a_BE.shape[0])
        count = jnp.sum(valid_B.astype(jnp.float32))
        distance_B = jnp.sum(jnp.square(a_BE - b_BE), axis=-1)
        alignment = jnp.sum(jnp.where(valid_B, distance_B, 0.0)) / jnp.maximum(count, 1.0)
        uniformity = (_potential(a_BE, valid_B) + _potential(b_BE, valid_B)) / 2
        metrics = {"alignment": (alignment * count, count), "uniformity": (uniformity * count, count)}
        return Loss((alignment + self.uniformity * uniformity) * count, count, metrics)


def _potential(x_BE: Array, valid_B: Array) -> Array:
    """[] log mean exp(-2 |x - y|^2) over the ordered pairs of different rows; 0 where there is no pair."""
    pairs_BB = valid_pairs(valid_B) & ~jnp.eye(x_BE.shape[0], dtype=bool)
    energy_BB = jnp.exp(-2 * (2 - 2 * similarity(x_BE, x_BE)))
    count = jnp.sum(pairs_BB.astype(jnp.float32))
    mean = jnp.sum(jnp.where(pairs_BB, energy_BB, 0.0)) / jnp.maximum(count, 1.0)
    return jnp.where(count > 0, jnp.log(jnp.where(count > 0, mean, 1.0)), 0.0)
