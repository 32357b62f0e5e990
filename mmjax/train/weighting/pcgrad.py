"""PCGrad (Yu 2020): where two tasks' gradients conflict, each gives up the part that works against the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax.core.trees import map_with_path
from mmjax.core.types import Array, Params
from mmjax.train.weighting.protocol import Pullback, Scalars, base_weights, weighted
from mmjax.train.weighting.shared import combine, inner, shared_paths, task_gradients


@dataclasses.dataclass(frozen=True)
class PCGrad:
    """The sum of the projected gradients `base_t grad_t` (Yu 2020, algorithm 1, which sums; it does not average).

    The projection treats the shared parameters as one vector; the gradients of all others are plainly summed. Its state is the
    base weights. `weight/<task>` is what a task's gradient is multiplied by on the shared parameters, and `conflicts` the share
    of pairs of tasks whose gradients point apart.

    Attributes:
      shared: the path pattern of the shared parameters.
    """

    shared: str = "*"

    def init(self, tasks: tuple[str, ...], base: Mapping[str, float]) -> Scalars:
        return base_weights(tasks, base)

    def update(self, state: Scalars, losses: Scalars, pullback: Pullback, rng: Array) -> tuple[Params, Scalars, Scalars]:
        """Raises UserError when `shared` matches no parameter."""
        tasks = sorted(losses)
        base = {task: state[task] for task in tasks}
        gradients = task_gradients(losses, pullback, base)
        plain = combine(gradients, {task: jnp.ones((), jnp.float32) for task in tasks})
        paths = shared_paths(self.shared, plain)
        gram_KK = gram([gradients[task] for task in tasks], paths)
        factors_K = jnp.sum(project(gram_KK, rng), axis=0)
        factors = {task: factors_K[i] for i, task in enumerate(tasks)}
        projected = combine(gradients, factors)
        gradient = map_with_path(lambda path, new, old: new if path in paths else old, projected, plain)
        pairs = max(len(tasks) * (len(tasks) - 1), 1)
        metrics = weighted(losses, base) | {f"weight/{task}": base[task] * factors[task] for task in tasks}
        return gradient, state, metrics | {"conflicts": jnp.sum((gram_KK < 0).astype(jnp.float32)) / pairs}


def gram(gradients: list[Params], paths: frozenset[str]) -> Array:
    """[K, K] float32: the inner products of the tasks' gradients, each pair computed once."""
    size = len(gradients)
    half = {(i, j): inner(gradients[i], gradients[j], paths) for i in range(size) for j in range(i, size)}
    return jnp.stack([jnp.stack([half[min(i, j), max(i, j)] for j in range(size)]) for i in range(size)])


def project(gram_KK: Array, rng: Array) -> Array:
    """[K, K] float32: row i holds the factors of all K gradients in task i's projected one.

    Every projection subtracts a multiple of another task's gradient, so inner products are all that is needed: algorithm 1 runs
    on K numbers a task instead of on parameters. Each task meets the others in its own random order.
    """
    size = gram_KK.shape[0]

    def meet(task: Array, factors_K: Array, other: Array) -> Array:
        dot = jnp.sum(factors_K * gram_KK[:, other])
        # A gradient whose square vanishes has no direction to speak of; dividing by it would leave infinities.
        conflict = (dot < 0) & (other != task) & (gram_KK[other, other] >= jnp.finfo(jnp.float32).tiny)
        return factors_K.at[other].add(-jnp.where(conflict, dot / jnp.where(conflict, gram_KK[other, other], 1.0), 0.0))

    def project_one(task: Array, key: Array, own_K: Array) -> Array:
        order_K = jax.random.permutation(key, size)
        return jax.lax.scan(lambda factors_K, other: (meet(task, factors_K, other), None), own_K, order_K)[0]

    return jax.vmap(project_one)(jnp.arange(size), jax.random.split(rng, size), jnp.eye(size, dtype=jnp.float32))
