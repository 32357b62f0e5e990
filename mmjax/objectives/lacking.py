"""Rows that lack what an objective reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from mmjax.core.types import Array, Batch, Forward


def counting(objective: Callable[..., Any], forward: Forward, batch: Batch, rng: Array, *rest: Any) -> Any:
    """What an objective, or what evaluates, gives of the rows that have what it reads: the others are not `valid` to it.

    Which rows these are, the masks of what it reads say (`Forward.complete`), so that none needs to know of it. One that goes
    by `valid_rows` of single modalities itself says so by a class attribute `by_modality = True`.
    """
    if not getattr(objective, "by_modality", False):
        has_B = forward.complete(lambda other: objective(other, batch, rng, *rest))
        if has_B is not None:
            batch = {**batch, "valid": has_B & batch.get("valid", jnp.ones_like(has_B))}
    return objective(forward, batch, rng, *rest)
