"""Fixed weights: the sum of the losses, each times its configured weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mmjax.core.types import Array, Params
from mmjax.train.weighting.protocol import Pullback, Scalars, base_weights, weighted


@dataclasses.dataclass(frozen=True)
class Fixed:
    """`sum_t base_t * loss_t`. Its state is the base weights."""

    def init(self, tasks: tuple[str, ...], base: Mapping[str, float]) -> Scalars:
        return base_weights(tasks, base)

    def update(self, state: Scalars, losses: Scalars, pullback: Pullback, rng: Array) -> tuple[Params, Scalars, Scalars]:
        weights = {task: state[task] for task in losses}
        return pullback(weights), state, weighted(losses, weights)
