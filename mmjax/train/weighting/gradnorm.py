"""GradNorm (Chen 2018): weights that make every task train at a similar rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Params
from mmjax.train.weighting.protocol import Pullback, Scalars, base_weights, scalars, sound, weighted
from mmjax.train.weighting.shared import combine, inner, shared_paths, task_gradients

LEAST = 1e-3  # no weight falls below it: Adam's steps know no sign, and a negative weight would climb its loss
TINY = float(jnp.finfo(jnp.float32).tiny)
MOST = 1e30  # largest ratio of a loss to its first: sums of them are finite


@dataclasses.dataclass(frozen=True)
class GradNorm:
    """Learned weights w, summing to the number of tasks K; the gradient is `sum_t base_t w_t grad_t`.

    With n_t the norm of task t's own gradient on the shared parameters and r_t its loss relative to its first one, divided by
    the mean over tasks, w follows (by Adam) the derivative of `sum_t |w_t n_t - mean(w n) r_t^alpha|` with the second part held
    constant (Chen 2018, eq. 1-2 and algorithm 1). The base weights stay outside, or w would undo them. Every step must bring
    every task.

    The paper's losses are positive. Here the first loss above 0 is a task's first one, until which its rate is 1; a loss below
    0 has a rate of 0, as one that has reached 0; and where no task has anything left to fall, all are as fast.

    Attributes:
      alpha: how strongly a slow task is pulled along; 0 makes all norms equal.
      learning_rate: of w.
      shared: the path pattern of the shared parameters.
    """

    alpha: float = setting(least=0, default=1.5)
    learning_rate: float = setting(above=0, default=0.025)
    shared: str = "encoders_*"

    def __post_init__(self) -> None:
        check_ranges(self, "weighting.")

    def init(self, tasks: tuple[str, ...], base: Mapping[str, float]) -> dict[str, Any]:
        weight = scalars(tasks, 1.0)
        return {
            "base": base_weights(tasks, base),
            "weight": weight,
            "initial": scalars(tasks),
            "optimizer": optax.adam(self.learning_rate).init(weight),
        }

    def update(self, state: Any, losses: Scalars, pullback: Pullback, rng: Array) -> tuple[Params, Any, Scalars]:
        """Raises UserError when a task is missing, or `shared` matches no parameter."""
        missing = sorted(set(state["weight"]) - set(losses))
        if missing:
            raise UserError(
                f"weighting: GradNorm needs every task in every step, {missing[0]!r} is missing: mix, do not alternate"
            )
        gradients = task_gradients(losses, pullback, scalars(tuple(losses), 1.0))
        weights = {task: state["base"][task] * state["weight"][task] for task in losses}
        total = combine(gradients, weights)
        paths = shared_paths(self.shared, total)
        norms = {task: jnp.sqrt(inner(gradient, gradient, paths)) for task, gradient in gradients.items()}
        return total, sound(state, self._learn(state, losses, norms), losses), weighted(losses, weights)

    def targets(self, weights: Scalars, norms: Scalars, losses: Scalars, initial: Scalars) -> Scalars:
        """The norm each task should have: `mean(w n) r^alpha` (Chen 2018, eq. 1)."""
        tasks = sorted(losses)
        mean_norm = jnp.mean(jnp.stack([weights[t] * norms[t] for t in tasks]))
        begun = jnp.stack([initial[t] >= TINY for t in tasks])
        ratios = jnp.stack([losses[t] / jnp.maximum(initial[t], TINY) for t in tasks])
        left = jnp.where(begun, jnp.clip(ratios, 0.0, MOST), 1.0)  # a power of what is below 0 would be NaN
        mean_left = jnp.mean(left)
        rates = jnp.where(mean_left > 0, left / jnp.where(mean_left > 0, mean_left, 1.0), 1.0)
        return {task: mean_norm * rates[i] ** self.alpha for i, task in enumerate(tasks)}

    def slopes(self, weights: Scalars, norms: Scalars, targets: Scalars) -> Scalars:
        """The derivative of `sum_t |w_t n_t - target_t|` for each w_t (Chen 2018, eq. 2)."""
        return {t: jnp.sign(weights[t] * norms[t] - targets[t]) * norms[t] for t in weights}

    def _learn(self, state: Any, losses: Scalars, norms: Scalars) -> dict[str, Any]:
        weights = state["weight"]
        initial = {t: jnp.where(state["initial"][t] >= TINY, state["initial"][t], losses[t]) for t in weights}
        slopes = self.slopes(weights, norms, self.targets(weights, norms, losses, initial))
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = optax.adam(self.learning_rate).update(slopes, state["optimizer"])
        moved = {t: jnp.maximum(weight + updates[t], LEAST) for t, weight in weights.items()}
        scale = len(moved) / jnp.sum(jnp.stack(list(moved.values())))
        moved = {t: weight * scale for t, weight in moved.items()}
        return {"base": state["base"], "weight": moved, "initial": initial, "optimizer": optimizer}
