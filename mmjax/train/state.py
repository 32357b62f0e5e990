"""What changes from step to step, and how it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.adapt import adapted
from mmjax.core.random import fold_name
from mmjax.core.trees import map_with_path
from mmjax.core.types import Array, Params
from mmjax.models.forward import VARIABLES
from mmjax.models.multimodal import Multimodal, init_model
from mmjax.train.narrow import WIDE, narrow_places, narrowed
from mmjax.train.optimizer import Optimizer
from mmjax.train.schedule_free import averaged
from mmjax.train.trained import Trained

TEACHERS = "teachers"  # of `State.variables`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The state of a run; with it and the experiment, every later step follows.

    Attributes:
      step: [] int32, steps done.
      params: float32, but for what is frozen and kept narrower.
      optimizer: optax's state, for the trained ones of `params` (see `train.trained`).
      weighting: the weighting's state.
      ema: moving average of the trained ones of `params`, or {} when there is none.
      key: [2] uint32, the run's random key; a step folds its number into it.
      watch: `good`, how many good steps there were ([] int32), and `mean`, a running mean of their losses ([] float32). Where
        streams alternate, groups of them have losses of their own: `mean` is [G], and so is `seen`, how many each has had.
      variables: what no gradient makes: `model`, by Linen collection, what its modules keep; `tasks`, by task, what objectives
        keep; `teachers`, by name, their parameters, which no step changes. {} where nothing is kept.
    """

    step: Array
    params: Params
    optimizer: Any
    weighting: Any
    ema: Params
    key: Array
    watch: dict[str, Array]
    variables: dict[str, Any] = dataclasses.field(default_factory=dict)


def init_state(
    model: Multimodal,
    optimizer: Optimizer,
    steps: int,
    weighting: Any,
    weights: Mapping[str, float],
    seed: Array,
    groups: int = 1,
    objectives: Mapping[str, Any] | None = None,
    batches: Mapping[str, Any] | None = None,
    adapt: Mapping[str, Any] | None = None,
    frozen_dtype: str = WIDE,
    drawn: bool = True,
) -> State:
    """The state before the first step. Parameters depend on the model and the seed alone, whatever tasks it has or adapts it.

    Args:
      steps: of the run, which the learning rate follows.
      groups: how many groups of streams alternate.
      objectives: task -> objective; those that keep variables make them here.
      batches: task -> the shapes of its batches.
      adapt: pattern -> method, what is added to the parameters.
      frozen_dtype: what the frozen kernels are kept in (`train.narrow`).
      drawn: whether those kept narrower are drawn; else they are 0, for another run's to take their place: what fits on a
        device in 8 bits does not while it is being drawn in 32.
    """
    key = jax.random.key(seed)
    params, kept = init_model(model, fold_name(key, "params"))
    narrow = {}
    if frozen_dtype != WIDE:
        whole = jax.eval_shape(lambda: adapted(model, params, adapt or {}, adapter_key(seed)))
        narrow = narrow_places(model, optimizer.trained(whole), frozen_dtype)
    if not drawn:
        params = map_with_path(lambda path, x: jnp.zeros_like(x) if path in narrow else x, params)
    params = narrowed(adapted(model, params, adapt or {}, adapter_key(seed)), narrow, frozen_dtype)
    own = optimizer.trained(params).of(params)
    with jax.numpy_dtype_promotion("standard"):
        optimizer_state = optimizer.build(params, steps).init(own)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=optimizer_state,
        weighting=weighting.init(tuple(weights), weights),
        ema=jax.tree.map(jnp.copy, own) if optimizer.ema else {},
        key=jax.random.key_data(fold_name(key, "steps")),
        watch=init_watch(groups),
        variables=together(kept, task_variables(objectives or {}, params, batches or {})),
    )


def adapter_key(seed: Array) -> Array:
    """The key of what adapters begin with."""
    return fold_name(jax.random.key(seed), "adapt")


def init_watch(groups: int) -> dict[str, Array]:
    """`State.watch` before the first step."""
    good = {"good": jnp.zeros((), jnp.int32)}
    if groups == 1:
        return good | {"mean": jnp.zeros((), jnp.float32)}
    return good | {"mean": jnp.zeros(groups, jnp.float32), "seen": jnp.zeros(groups, jnp.int32)}


def task_variables(objectives: Mapping[str, Any], params: Params, batches: Mapping[str, Any]) -> dict[str, Any]:
    """Task -> what its objective keeps before the first step, of those that keep something."""
    keeping = {name: objective for name, objective in objectives.items() if hasattr(objective, "init_variables")}
    # Copied, so that a teacher and the parameters it starts from are not one array that a step would give away twice.
    return {name: jax.tree.map(jnp.copy, o.init_variables(params, batches.get(name, {}))) for name, o in keeping.items()}


def together(model: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """`State.variables`; what is empty is left out, so that most states have none."""
    return {name: dict(tree) for name, tree in (("model", model), ("tasks", tasks)) if tree}


def changing(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Of `State.variables` those that a step may change."""
    return {name: tree for name, tree in variables.items() if name != TEACHERS}


def teachers_of(state: State) -> dict[str, Params]:
    """The parameters of the teachers, by name; {} where there are none."""
    return dict(state.variables.get(TEACHERS, {}))


def with_teachers(state: State, teachers: Mapping[str, Params]) -> State:
    """The state with the parameters of teachers beside its other variables; where there are none, without."""
    kept = {TEACHERS: dict(teachers)} if teachers else {}
    return dataclasses.replace(state, variables={**changing(state.variables), **kept})


def evaluated(state: State, trained: Trained) -> Params:
    """The parameters to evaluate and export: the moving average where there is one, or the optimizer's own mean; with what the
    modules keep, if anything."""
    own = state.ema or averaged(state.optimizer, trained.of(state.params))
    return with_variables(trained.put(state.params, own), state.variables.get("model", {}))


def with_variables(params: Params, model: Mapping[str, Any]) -> Params:
    """Parameters as `BoundForward` takes them, with the variables of the model's modules beside them."""
    return {**params, VARIABLES: model} if model else params
