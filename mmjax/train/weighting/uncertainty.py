"""Homoscedastic uncertainty (Kendall 2018): each task's noise is learned, and noisy tasks weigh less."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest
from mmjax.core.types import Array, Params
from mmjax.train.weighting.protocol import Pullback, Scalars, base_weights, scalars, sound, total

LIMIT = 10.0  # |s| stays below it: a loss that nears 0 would otherwise drive its weight exp(-s) to infinity


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """`sum_t base_t * (c_t exp(-s_t) loss_t + s_t / 2)`, with s = log sigma^2 learned beside the parameters by Adam.

    c is 1 for a classification (any cross entropy: Kendall 2018, eq. 10) and 1/2 for a regression (eq. 7). s rests where
    `s = log(2 c loss)`.

    No noise makes a loss of 0 or below likely (the best s is minus infinity, and the weight would grow for ever). A loss of 0,
    also that of a step in which nothing was counted, leaves s as it is; one below 0 draws it back to 0, where the weight is c.

    Attributes:
      learning_rate: of s.
      regression: the tasks whose loss is a squared error; all others are classifications.
    """

    learning_rate: float = setting(above=0, default=1e-2)
    regression: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self, "weighting.")

    def init(self, tasks: tuple[str, ...], base: Mapping[str, float]) -> dict[str, Any]:
        """Raises UserError when `regression` names no task."""
        for name in self.regression:
            if name not in tasks:
                raise UserError(f"weighting.regression={name!r}: the tasks are {', '.join(tasks)}{nearest(name, tasks)}")
        s = scalars(tasks)
        return {"base": base_weights(tasks, base), "s": s, "optimizer": optax.adam(self.learning_rate).init(s)}

    def update(self, state: Any, losses: Scalars, pullback: Pullback, rng: Array) -> tuple[Params, Any, Scalars]:
        base, s = state["base"], state["s"]
        weights = {task: base[task] * self._precision(task, s[task]) for task in losses}
        terms = {task: weights[task] * loss + base[task] * s[task] / 2 for task, loss in losses.items()}
        metrics = {"total": total(terms)} | {f"weight/{task}": weight for task, weight in weights.items()}
        return pullback(weights), sound(state, self._learn(state, losses), losses), metrics

    def slopes(self, s: Scalars, losses: Scalars, base: Scalars) -> Scalars:
        """d total / d s: `base * (1/2 - c exp(-s) loss)`, and 0 for a task that this step does not bring or whose loss is 0.

        A loss below 0 counts as 1 / (2 c), which is at rest where s is 0.
        """
        zero = jnp.zeros((), jnp.float32)

        def slope(task: str) -> Array:
            told = self._precision(task, s[task]) * losses[task]
            noise = jnp.where(losses[task] < 0, 0.5 * jnp.exp(-s[task]), told)
            return jnp.where(losses[task] == 0, zero, base[task] * (0.5 - noise))

        return {task: slope(task) if task in losses else zero for task in s}

    def _precision(self, task: str, s: Array) -> Array:
        return (0.5 if task in self.regression else 1.0) * jnp.exp(-s)

    def _learn(self, state: Any, losses: Scalars) -> dict[str, Any]:
        slopes = self.slopes(state["s"], losses, state["base"])
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = optax.adam(self.learning_rate).update(slopes, state["optimizer"])
        s = {task: jnp.clip(value + updates[task], -LIMIT, LIMIT) for task, value in state["s"].items()}
        return {"base": state["base"], "s": s, "optimizer": optimizer}
