"""Dynamic weight average (Liu 2019): a task whose loss falls slowly gets more weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.config import check_ranges, setting
from mmjax.core.types import Array, Params
from mmjax.train.weighting.protocol import Pullback, Scalars, base_weights, scalars, sound, weighted

TINY = float(jnp.finfo(jnp.float32).tiny)
MOST = 1e30  # largest ratio of two means: differences of them are finite


@dataclasses.dataclass(frozen=True)
class DynamicWeightAverage:
    """Weights `base_t K softmax_t(r_t / temperature)`, r_t = a task's mean loss over the last window / over the one before.

    Liu 2019, eq. 7, with a window of steps for the paper's epoch. Weights change only between windows, and are the base weights
    in the first two. A window in which a task never came leaves its mean as it was. The paper's losses are positive: a mean
    below 0 after one above 0 has a ratio of 0, the fastest fall there is, and after a mean that is not above 0 the ratio is 1.

    Attributes:
      window: steps.
      temperature: higher is more even.
    """

    window: int = setting(least=1, default=50)
    temperature: float = setting(above=0, default=2.0)

    def __post_init__(self) -> None:
        check_ranges(self, "weighting.")

    def init(self, tasks: tuple[str, ...], base: Mapping[str, float]) -> dict[str, Any]:
        return {
            "base": base_weights(tasks, base),
            "step": jnp.zeros((), jnp.int32),
            "weight": scalars(tasks, 1.0),
            "sum": scalars(tasks),
            "count": scalars(tasks),
            "mean": scalars(tasks),
        }

    def update(self, state: Any, losses: Scalars, pullback: Pullback, rng: Array) -> tuple[Params, Any, Scalars]:
        weights = {task: state["base"][task] * state["weight"][task] for task in losses}
        return pullback(weights), sound(state, self._next(state, losses), losses), weighted(losses, weights)

    def _next(self, state: dict[str, Any], losses: Scalars) -> dict[str, Any]:
        tasks = tuple(state["sum"])
        step = state["step"] + 1
        closed = step % self.window == 0
        sums = {t: state["sum"][t] + losses[t] if t in losses else state["sum"][t] for t in tasks}
        counts = {t: state["count"][t] + 1 if t in losses else state["count"][t] for t in tasks}
        means = {t: jnp.where(counts[t] > 0, sums[t] / jnp.maximum(counts[t], 1), state["mean"][t]) for t in tasks}
        # A mean of 0 is one that has not been seen (or has nothing left to fall): its task neither gains nor loses.
        rates = jnp.stack([jnp.where(state["mean"][t] >= TINY, _ratio(means[t], state["mean"][t]), 1.0) for t in tasks])
        share = jax.nn.softmax((rates - jnp.max(rates)) / self.temperature)  # the largest is 0 now, however low the temperature
        weights = {t: jnp.where(step >= 2 * self.window, len(tasks) * share[i], 1.0) for i, t in enumerate(tasks)}
        zeros = scalars(tasks)
        changed = {"weight": weights, "mean": means, "sum": zeros, "count": zeros}
        kept = {"weight": state["weight"], "mean": state["mean"], "sum": sums, "count": counts}
        return {"base": state["base"], "step": step} | jax.tree.map(lambda new, old: jnp.where(closed, new, old), changed, kept)


def _ratio(value: Array, reference: Array) -> Array:
    return jnp.clip(value / jnp.maximum(reference, TINY), 0.0, MOST)
