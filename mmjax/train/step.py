"""The training step: a pure function of the state and one batch of each stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core.errors import within
from mmjax.core.random import fold_name
from mmjax.core.trees import map_with_path
from mmjax.core.types import Array, Batch, Loss, Params
from mmjax.models.forward import BoundForward
from mmjax.models.multimodal import Multimodal
from mmjax.parallel.mesh import constrain_batch
from mmjax.train.experiment import Task
from mmjax.train.optimizer import Optimizer
from mmjax.train.state import State

WARM = 20  # good steps before a spike can be told from noise
WATCH_DECAY = 0.98

Metrics = dict[str, Array]
Batches = Mapping[str, Batch]


def task_losses(
    model: Multimodal, tasks: Mapping[str, Task], params: Params, batches: Batches, rng: Array, train: bool = True
) -> dict[str, Loss]:
    """Each task's loss on its batch. Each stream has one forward, so a modality is encoded once for all its tasks."""
    forwards = {
        name: BoundForward(model, params, batch, _stream_key(rng, name) if train else None) for name, batch in batches.items()
    }
    return _losses(tasks, forwards, rng)


def make_step(
    model: Multimodal,
    tasks: Mapping[str, Task],
    weighting: Any,
    optimizer: Optimizer,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
) -> Callable[[State, Batches], tuple[State, Metrics]]:
    """The step of an experiment, to be jitted with shardings.

    The gradient comes from one vector-Jacobian product whose cotangents the weighting chooses, so the forward pass runs
    once for any weighting, and once more for each task only where the weighting looks at task gradients.
    """

    def step(state: State, batches: Batches) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def values(params: Params) -> tuple[dict[str, Array], Metrics]:
            params = map_with_path(lambda p, x: jax.lax.stop_gradient(x) if optimizer.is_frozen(p) else x, params)
            losses = accumulated(model, tasks, params, batches, rng, optimizer.accumulate)
            return {name: mean(loss.sum, loss.count) for name, loss in losses.items()}, _flatten(losses)

        losses, vjp, metrics = jax.vjp(values, state.params, has_aux=True)

        def pullback(cotangents: Mapping[str, Array]) -> Params:
            full = {name: jnp.asarray(cotangents.get(name, 0.0), jnp.float32) for name in losses}
            return vjp(full)[0]

        gradient, weighting_state, weighting_metrics = weighting.update(
            state.weighting, losses, pullback, fold_name(rng, "weighting")
        )
        metrics |= weighting_metrics | {f"loss/{name}": value for name, value in losses.items()}
        metrics["loss"] = metrics.pop("total")
        return _apply(state, gradient, weighting_state, metrics, optimizer, tx, rate)

    return step


def accumulated(
    model: Multimodal, tasks: Mapping[str, Task], params: Params, batches: Batches, rng: Array, parts: int
) -> dict[str, Loss]:
    """Losses of the whole batch, computed in `parts` micro-batches whose activations are not held together.

    Sums and counts add up, so the result and its gradient are those of one large batch. Objectives that compare the examples
    of a batch by their embeddings alone (`embeds_only`) see the whole batch: the micro-batches leave their embeddings, and the
    derivative goes back through each in turn, encoding it again (GradCache: Gao 2021, sec. 3.2). Augmentation and masking
    belong to the example and are as in the large batch; dropout is drawn for each micro-batch, and is the same both times.
    """
    if parts == 1:
        return task_losses(model, tasks, params, batches, rng)
    compared = {name: task for name, task in tasks.items() if getattr(task.objective, "embeds_only", False)}
    added = {name: task for name, task in tasks.items() if name not in compared}

    @jax.checkpoint
    def one(total: Any, micro: tuple[Array, Batches]) -> tuple[Any, Any]:
        part, batch = micro
        forwards = {name: BoundForward(model, params, rows, _stream_key(rng, name), part) for name, rows in batch.items()}
        losses = _losses(added, forwards, rng)
        return (losses if total is None else jax.tree.map(jnp.add, total, losses)), _embeddings(compared, forwards)

    micro = (jnp.arange(parts), jax.tree.map(lambda x: _split(x, parts), batches))
    shapes = jax.eval_shape(lambda: one(None, jax.tree.map(lambda x: x[0], micro))[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    losses, embedded = jax.lax.scan(one, zeros, micro)
    forwards = {
        name: BoundForward(model, params, batch, _stream_key(rng, name), embedded=jax.tree.map(_join, embedded[name]))
        for name, batch in batches.items()
    }
    losses |= _losses(compared, forwards, rng)
    return {name: losses[name] for name in tasks if name in losses}


def _losses(tasks: Mapping[str, Task], forwards: Mapping[str, BoundForward], rng: Array) -> dict[str, Loss]:
    losses = {}
    for name, task in tasks.items():
        if task.data in forwards:
            forward = forwards[task.data]
            with within(f"tasks.{name}"):
                losses[name] = task.objective(forward, forward.batch, fold_name(rng, f"objective/{name}"))
    return losses


def _embeddings(tasks: Mapping[str, Task], forwards: Mapping[str, BoundForward]) -> dict[str, dict[tuple[str, str], Array]]:
    """Stream -> (fusion, modality) -> [B, E], all that the objectives of these tasks read."""
    found: dict[str, dict[tuple[str, str], Array]] = {name: {} for name in forwards}
    for name, task in tasks.items():
        if task.data in forwards:
            fusion, embed = task.objective.fusion, forwards[task.data].embed
            with within(f"tasks.{name}"):
                found[task.data] |= {(fusion, modality): embed(modality, fusion) for modality in task.objective.modalities}
    return found


def _split(x: Array, parts: int) -> Array:
    """[B, ...] -> [parts, B / parts, ...]: row i goes to micro-batch i mod parts, so that each device keeps the rows it has."""
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def _join(x: Array) -> Array:
    """The reverse of `_split`."""
    return constrain_batch(jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]))


def _stream_key(rng: Array, data: str) -> Array:
    return fold_name(rng, f"data/{data}")


def mean(total: Array, count: Array) -> Array:
    """total / count, and 0 where nothing was counted."""
    return jnp.where(count > 0, total / jnp.maximum(count, 1e-9), 0.0)


def _flatten(losses: Mapping[str, Loss]) -> Metrics:
    return {f"train/{name}/{metric}": mean(*pair) for name, loss in losses.items() for metric, pair in loss.metrics.items()}


def _apply(
    state: State,
    gradient: Params,
    weighting_state: Any,
    metrics: Metrics,
    optimizer: Optimizer,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
) -> tuple[State, Metrics]:
    """Take the step, unless it is a bad one: then everything but the step number stays as it was."""
    norm = optax.tree.norm(gradient)
    loss, watch = metrics["loss"], state.watch
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
    if optimizer.spike_factor:
        # The mean may be negative (an uncertainty-weighted total), so a spike is a rise by the mean's size.
        limit = watch["mean"] + (optimizer.spike_factor - 1.0) * jnp.abs(watch["mean"])
        bad |= (watch["good"] >= WARM) & (loss > limit)
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = tx.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda e, p: e - (1.0 - optimizer.ema) * (e - p), state.ema, params) if state.ema else {}
        metrics["learning_rate"] = jnp.asarray(rate(_updates_done(state)), jnp.float32)
    first = watch["good"] == 0
    seen = {
        "mean": jnp.where(first, loss, WATCH_DECAY * watch["mean"] + (1.0 - WATCH_DECAY) * loss),
        "good": watch["good"] + 1,
    }
    new = State(state.step, params, opt_state, weighting_state, ema, state.key, seen)
    kept: State = jax.tree.map(lambda old, taken: jnp.where(bad, old, taken), state, new)
    metrics |= {"gradient_norm": norm, "bad_step": bad.astype(jnp.float32)}
    return State(
        state.step + 1, *[getattr(kept, f) for f in ("params", "optimizer", "weighting", "ema", "key", "watch")]
    ), metrics


def _updates_done(state: State) -> Array:
    """How many updates were applied: what the schedule counts, skipped steps left out."""
    return state.watch["good"]
