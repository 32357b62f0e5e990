"""Gradients of single tasks, and inner products over the parameters that tasks share, on trees split over any mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, match
from mmjax.core.types import Array, Params
from mmjax.train.weighting.protocol import Pullback, Scalars


def task_gradients(losses: Scalars, pullback: Pullback, weights: Scalars) -> dict[str, Params]:
    """Each task's own gradient times its weight: one pass backward a task."""
    zeros = {task: jnp.zeros_like(loss) for task, loss in losses.items()}
    return {task: pullback(zeros | {task: weights[task]}) for task in sorted(losses)}


def shared_paths(pattern: str, params: Params) -> frozenset[str]:
    """The paths of the parameters that a pattern names.

    Raises:
      UserError: it names none.
    """
    paths = list(leaves_by_path(params))
    matched = frozenset(path for path in paths if match(pattern, path))
    if not matched:
        rooms = ", ".join(sorted({path.split("/")[0] for path in paths}))
        raise UserError(
            f"weighting.shared={pattern!r} matches no parameter that is trained; the first part of a path is one of {rooms}"
        )
    return matched


def inner(a: Params, b: Params, paths: frozenset[str]) -> Array:
    """[] float32: the inner product over the leaves at `paths`.

    Products and sums leaf by leaf: each device adds up what it holds, and only scalars travel.
    """
    left, right = leaves_by_path(a), leaves_by_path(b)
    parts = [jnp.sum(left[path].astype(jnp.float32) * right[path].astype(jnp.float32)) for path in left if path in paths]
    return jnp.sum(jnp.stack(parts))


def combine(gradients: dict[str, Params], weights: Scalars) -> Params:
    """`sum_t weight_t * gradient_t`, leaf by leaf, in the leaves' own dtype."""
    tasks = sorted(gradients)

    def leaf(*parts: Array) -> Array:
        terms = [weights[task].astype(part.dtype) * part for task, part in zip(tasks, parts, strict=True)]
        return sum(terms[1:], start=terms[0])

    return jax.tree.map(leaf, *(gradients[task] for task in tasks))
