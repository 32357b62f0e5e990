"""What a weighting is, and the few lines its kinds share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from mmjax.core.types import Array, Params

Scalars = dict[str, Array]  # task -> [] float32
Pullback = Callable[[Scalars], Params]


class Weighting(Protocol):
    """A frozen dataclass that turns the tasks' losses into one gradient. Its state is a tree of arrays, kept in checkpoints.

    `base`, each task's configured weight, multiplies whatever the weighting itself decides. A step may bring only some of the
    tasks (they alternate) unless a weighting says otherwise.

    Losses may be 0, below 0, or no number at all. What they make of the state is finite, or is not kept (`sound`); a weight
    that is not finite goes into the total as it is, so that the step counts as a bad one.
    """

    def init(self, tasks: tuple[str, ...], base: Mapping[str, float]) -> Any:
        """The state before the first step."""
        ...

    def update(self, state: Any, losses: Scalars, pullback: Pullback, rng: Array) -> tuple[Params, Any, Scalars]:
        """One step.

        Args:
          state: from `init` or the step before.
          losses: the tasks of this step, each [] float32.
          pullback: linear; given one cotangent a task it returns the gradient of `sum_t cotangent_t * loss_t`.
          rng: this step's key.

        Returns:
          The gradient to apply, the next state, and metrics: `total`, the combined loss, and `weight/<task>`.
        """
        ...


def scalars(tasks: tuple[str, ...], value: float = 0.0) -> Scalars:
    """One [] float32 a task."""
    return {task: jnp.asarray(value, jnp.float32) for task in tasks}


def base_weights(tasks: tuple[str, ...], base: Mapping[str, float]) -> Scalars:
    """The configured weights as arrays."""
    return {task: jnp.asarray(base[task], jnp.float32) for task in tasks}


def total(terms: Scalars) -> Array:
    """[] float32: the sum over tasks, always in the same order."""
    return jnp.sum(jnp.stack([terms[task] for task in sorted(terms)]))


def sound(state: Any, new: Any, losses: Scalars) -> Any:
    """The next state; the one before where a loss, or anything in the next one, is not finite.

    A step throws away what a bad step makes of the state. This holds beyond it: for figures that overflow while the loss and
    the gradient are finite, and a NaN in the state would stay there for ever.
    """
    figures = [*losses.values(), *(x for x in jax.tree.leaves(new) if jnp.issubdtype(x.dtype, jnp.floating))]
    good = jnp.all(jnp.stack([jnp.isfinite(x) for x in figures]))
    return jax.tree.map(lambda taken, old: jnp.where(good, taken, old), new, state)


def weighted(losses: Scalars, weights: Scalars) -> Scalars:
    """Metrics of a plain weighted sum."""
    terms = {task: weights[task] * loss for task, loss in losses.items()}
    return {"total": total(terms)} | {f"weight/{task}": weights[task] for task in losses}
