"""What changes from step to step, and how it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core.random import fold_name
from mmjax.core.types import Array, Params
from mmjax.models.multimodal import Multimodal, init_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The state of a run; with it and the experiment, every later step follows.

    Attributes:
      step: [] int32, steps done.
      params: float32.
      optimizer: optax's state.
      weighting: the weighting's state.
      ema: moving average of `params`, or {} when there is none.
      key: [2] uint32, the run's random key; a step folds its number into it.
      watch: running mean of the loss ([] float32) and how many good steps it has seen ([] int32).
    """

    step: Array
    params: Params
    optimizer: Any
    weighting: Any
    ema: Params
    key: Array
    watch: dict[str, Array]


def init_state(
    model: Multimodal,
    make_tx: Callable[[Params], optax.GradientTransformation],
    weighting: Any,
    weights: Mapping[str, float],
    ema: bool,
    seed: Array,
) -> State:
    """The state before the first step. Parameters depend on the model and the seed alone, whatever the tasks.

    Args:
      make_tx: parameters -> what makes updates of their gradients.
    """
    key = jax.random.key(seed)
    params = init_params(model, fold_name(key, "params"))
    with jax.numpy_dtype_promotion("standard"):
        optimizer = make_tx(params).init(params)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=optimizer,
        weighting=weighting.init(tuple(weights), weights),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        key=jax.random.key_data(fold_name(key, "steps")),
        watch={"mean": jnp.zeros((), jnp.float32), "good": jnp.zeros((), jnp.int32)},
    )


def evaluated(state: State) -> Params:
    """The parameters to evaluate and export: the moving average where there is one."""
    return state.ema or state.params
