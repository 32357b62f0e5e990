"""The training step: a pure function of the state and one batch of each stream."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core.errors import UserError, within
from mmjax.core.random import fold_name
from mmjax.core.trees import leaves_by_path, map_with_path
from mmjax.core.types import Array, Batch, Loss, Params
from mmjax.models.forward import BoundForward
from mmjax.models.multimodal import Multimodal
from mmjax.models.teaching import TAUGHT, Teaching
from mmjax.objectives.lacking import counting
from mmjax.parallel.mesh import constrain_batch
from mmjax.train.experiment import Task
from mmjax.train.optimizer import Optimizer
from mmjax.train.state import TEACHERS, State, changing, teachers_of, together, with_teachers, with_variables

WARM = 20  # good steps before a spike can be told from noise
WATCH_DECAY = 0.98

Metrics = dict[str, Array]
Batches = Mapping[str, Batch]
Variables = dict[str, Any]  # see `State.variables`
Teachers = Mapping[str, Teaching]


def task_losses(
    model: Multimodal,
    tasks: Mapping[str, Task],
    params: Params,
    batches: Batches,
    rng: Array,
    train: bool = True,
    variables: Variables | None = None,
    teachers: Teachers | None = None,
) -> dict[str, Loss]:
    """Each task's loss on its batch."""
    variables = variables or {}
    forwards = forwards_of(model, params, batches, rng if train else None, variables, teachers=teachers)
    return losses_of(tasks, forwards, rng, variables)


def forwards_of(
    model: Multimodal,
    params: Params,
    batches: Batches,
    rng: Array | None,
    variables: Variables,
    part: Array | None = None,
    embedded: Mapping[str, Any] | None = None,
    teachers: Teachers | None = None,
    still: Collection[str] = (),
) -> dict[str, BoundForward]:
    """The model bound to the batch of each stream: one forward each, so a modality is encoded once for all its tasks.

    Args:
      rng: the step's key; None when not training.
      part, embedded, still: as `BoundForward` takes them, `embedded` by stream.
      teachers: by name; their parameters are among the variables.
    """
    bound = with_variables(params, variables.get("model", {}))
    taught = {name: (teaching, variables[TEACHERS][name]) for name, teaching in (teachers or {}).items()}
    keys = {name: None if rng is None else _stream_key(rng, name) for name in batches}
    return {
        name: BoundForward(model, bound, rows, keys[name], part, (embedded or {}).get(name), taught, still)
        for name, rows in batches.items()
    }


def make_step(
    model: Multimodal,
    tasks: Mapping[str, Task],
    weighting: Any,
    optimizer: Optimizer,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    group: int | None = None,
    teachers: Teachers | None = None,
) -> Callable[[State, Batches], tuple[State, Metrics]]:
    """The step of an experiment, to be jitted with shardings.

    The gradient comes from one vector-Jacobian product whose cotangents the weighting chooses, so the forward pass runs
    once for any weighting, and once more for each task only where the weighting looks at task gradients. It is of the trained
    parameters alone: weighting, norm, clipping and optimizer never see the others.

    Args:
      group: which of the groups of streams that alternate this is the step of; None where there is one.
      teachers: what is known of the experiment's; their parameters are in the state and stay as they are.
    """

    def step(state: State, batches: Batches) -> tuple[State, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        trained = optimizer.trained(state.params)
        own = trained.of(state.params)

        def values(own: Params) -> tuple[dict[str, Array], tuple[Metrics, Variables]]:
            params, parts = trained.bind(own, state.params), optimizer.accumulate
            still = trained.still(state.params)
            losses, variables = accumulated(model, tasks, params, batches, rng, parts, state.variables, teachers, still)
            return {name: mean(loss.sum, loss.count) for name, loss in losses.items()}, (_flatten(losses), variables)

        losses, vjp, (metrics, variables) = jax.vjp(values, own, has_aux=True)

        def pullback(cotangents: Mapping[str, Array]) -> Params:
            full = {name: jnp.asarray(cotangents.get(name, 0.0), jnp.float32) for name in losses}
            return vjp(full)[0]

        gradient, weighting_state, weighting_metrics = weighting.update(
            state.weighting, losses, pullback, fold_name(rng, "weighting")
        )
        metrics |= weighting_metrics | {f"loss/{name}": value for name, value in losses.items()}
        metrics["loss"] = metrics.pop("total")
        made = _Made(gradient, weighting_state, variables, metrics)
        return _apply(state, own, made, optimizer, tx, rate, tasks, group)

    return step


def accumulated(
    model: Multimodal,
    tasks: Mapping[str, Task],
    params: Params,
    batches: Batches,
    rng: Array,
    parts: int,
    variables: Variables | None = None,
    teachers: Teachers | None = None,
    still: Collection[str] = (),
) -> tuple[dict[str, Loss], Variables]:
    """Losses of the whole batch, computed in `parts` micro-batches whose activations are not held together; and the variables
    that modules and objectives have written.

    Sums and counts add up, so the result and its gradient are those of one large batch. Objectives that compare the examples
    of a batch by their embeddings alone (`embeds_only`) see the whole batch: the micro-batches leave their embeddings, and the
    derivative goes back through each in turn, encoding it again (GradCache: Gao 2021, sec. 3.2). Augmentation and masking
    belong to the example and are as in the large batch; dropout is drawn for each micro-batch, and is the same both times. What
    a teacher has said is kept for the backward pass, so that it runs once.

    What a module keeps is written once a step: where it is used several times (in micro-batches, streams, or on other inputs)
    what each use makes of it is averaged, whole numbers taken from the last. Objectives' variables go from one micro-batch to
    the next.
    """
    variables, bound = variables or {}, functools.partial(forwards_of, model, params, teachers=teachers, still=still)
    if parts == 1:
        forwards = bound(batches, rng, variables)
        losses, kept = _kept_apart(losses_of(tasks, forwards, rng, variables), variables.get("tasks", {}))
        return losses, _settled(variables, _written(forwards), kept)
    compared = {name: task for name, task in tasks.items() if getattr(task.objective, "embeds_only", False)}
    added = {name: task for name, task in tasks.items() if name not in compared}

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(TAUGHT))
    def one(carry: tuple[Any, Any], micro: tuple[Array, Batches]) -> tuple[Any, Any]:
        (total, kept), (part, batch) = carry, micro
        forwards = bound(batch, rng, variables, part)
        losses, kept = _kept_apart(losses_of(added, forwards, rng, {"tasks": kept}), kept)
        embedded = _embeddings(compared, forwards)
        return (losses if total is None else jax.tree.map(jnp.add, total, losses), kept), (embedded, _written(forwards))

    micro = (jnp.arange(parts), jax.tree.map(lambda x: _split(x, parts), batches))
    kept = {name: tree for name, tree in variables.get("tasks", {}).items() if name in added}
    shapes = jax.eval_shape(lambda: one((None, kept), jax.tree.map(lambda x: x[0], micro))[0][0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (losses, kept), (embedded, written) = jax.lax.scan(one, (zeros, kept), micro)
    joined = jax.tree.map(_join, embedded)
    forwards = bound(batches, rng, variables, embedded=joined)
    others, more = _kept_apart(losses_of(compared, forwards, rng, variables), variables.get("tasks", {}))
    losses |= others
    written = {path: _combined(list(steps)) for path, steps in written.items()}
    return {name: losses[name] for name in tasks if name in losses}, _settled(variables, written, {**more, **kept})


def losses_of(
    tasks: Mapping[str, Task], forwards: Mapping[str, BoundForward], rng: Array, variables: Variables
) -> dict[str, Loss]:
    """Each task's loss by the forward of its stream, of those that have one."""
    losses = {}
    for name, task in tasks.items():
        if task.data in forwards:
            forward = forwards[task.data]
            rest = (variables["tasks"][name],) if hasattr(task.objective, "init_variables") else ()
            with within(f"tasks.{name}"):
                loss = counting(task.objective, forward, forward.batch, fold_name(rng, f"objective/{name}"), *rest)
                check_loss(type(task.objective).__name__, loss, *rest)
                losses[name] = loss
    return losses


def check_loss(who: str, loss: Any, kept: Any = None) -> None:
    """Raises UserError where what an objective has returned is no `Loss` of one number and one count, or its variables are of
    another shape than those it was given."""
    right = "return Loss(sum, count, {name: (sum, count)}), each one float32 number"
    if not isinstance(loss, Loss):
        raise UserError(f"{who} returned {type(loss).__name__}: {right}")
    pairs = {"sum": loss.sum, "count": loss.count}
    for name, pair in loss.metrics.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UserError(f"{who}: metric {name!r} is {type(pair).__name__} and not (sum, count): {right}")
        pairs |= {f"{name} sum": pair[0], f"{name} count": pair[1]}
    for name, value in pairs.items():
        if jnp.shape(value) != ():
            raise UserError(f"{who}: {name} has shape {jnp.shape(value)}: {right}")
    if loss.variables is not None:
        check_variables(who, kept, loss.variables)


def check_variables(who: str, kept: Any, made: Any) -> None:
    """Raises UserError unless variables keep their names, shapes and dtypes."""
    old, new = (
        {path: (jnp.shape(x), jnp.result_type(x).name) for path, x in leaves_by_path(tree).items()} for tree in (kept, made)
    )
    for path in old | new:
        if old.get(path) != new.get(path):
            raise UserError(
                f"{who}: variable {path!r} is {new.get(path)} after a step, and init_variables made {old.get(path)}"
            )


def _kept_apart(losses: Mapping[str, Loss], kept: Mapping[str, Any]) -> tuple[dict[str, Loss], dict[str, Any]]:
    """The losses alone, and the variables of tasks as they have left them."""
    written = {name: jax.lax.stop_gradient(loss.variables) for name, loss in losses.items() if loss.variables is not None}
    return {name: dataclasses.replace(loss, variables=None) for name, loss in losses.items()}, {**kept, **written}


def _written(forwards: Mapping[str, BoundForward]) -> dict[str, Array]:
    """Path -> what all uses of a module have made of a variable, of those that were written."""
    found: dict[str, list[Array]] = {}
    for forward in forwards.values():
        for written in forward.written():
            for path, value in written.items():
                found.setdefault(path, []).append(value)
    return {path: _combined(values) for path, values in found.items()}


def _combined(values: Sequence[Array]) -> Array:
    """The mean; of whole numbers, which count or point at something, the last."""
    if len(values) == 1 or not jnp.issubdtype(values[0].dtype, jnp.floating):
        return values[-1]
    return jnp.mean(jnp.stack(list(values)), axis=0)


def _settled(variables: Variables, written: Mapping[str, Array], tasks: Mapping[str, Any]) -> Variables:
    """The variables after the losses: what was written in its place, the rest as it was."""
    model = map_with_path(lambda path, old: written.get(path, old), variables.get("model", {}))
    return together(model, tasks)


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


@dataclasses.dataclass(frozen=True)
class _Made:
    """What the losses of a step have come to."""

    gradient: Params  # of the trained ones
    weighting: Any
    variables: Variables
    metrics: Metrics


def _apply(
    state: State,
    own: Params,
    made: _Made,
    optimizer: Optimizer,
    tx: optax.GradientTransformation,
    rate: optax.Schedule,
    tasks: Mapping[str, Task],
    group: int | None,
) -> tuple[State, Metrics]:
    """Take the step, unless it is a bad one: then everything but the step number stays as it was."""
    metrics = dict(made.metrics)
    norm, loss = optax.tree.norm(made.gradient), metrics["loss"]
    mean, seen = _watched(state.watch, group)
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
    if optimizer.spike_factor:
        # The mean may be negative (an uncertainty-weighted total), so a spike is a rise by the mean's size.
        limit = mean + (optimizer.spike_factor - 1.0) * jnp.abs(mean)
        bad |= (seen >= WARM) & (loss > limit)
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = tx.update(made.gradient, state.optimizer, own)
        after = optax.apply_updates(own, updates)
        ema = moving_average(state.ema, after, optimizer.ema, state.watch["good"]) if state.ema else {}
        metrics["learning_rate"] = jnp.asarray(rate(_updates_done(state)), jnp.float32)
    trained = optimizer.trained(state.params)
    variables = _after_step(tasks, made.variables, trained.put(state.params, after))
    watch = _watch(state.watch, group, loss)
    old = dataclasses.replace(state, params=own, variables=changing(state.variables))
    new = State(state.step, after, opt_state, made.weighting, ema, state.key, watch, variables)
    kept: State = jax.tree.map(lambda old, taken: jnp.where(bad, old, taken), old, new)
    metrics |= {"gradient_norm": norm, "bad_step": bad.astype(jnp.float32)}
    kept = dataclasses.replace(kept, step=state.step + 1, params=trained.put(state.params, kept.params))
    return with_teachers(kept, teachers_of(state)), metrics


def moving_average(ema: Params, params: Params, decay: float, updates: Array) -> Params:
    """The mean of the parameters that `updates` + 1 updates have made, weighted by powers of `decay`.

    That is Kingma & Ba 2015, section 3, whose correction 1 / (1 - decay^t) is folded into the share of the newest: what was
    there before the first update has none.

    Args:
      ema: after the updates before this one; of no weight before the first.
      updates: [] int32, how many there were before this one.
    """
    share = (1.0 - decay) / (1.0 - decay ** (updates + 1).astype(jnp.float32))
    return jax.tree.map(lambda e, p: jnp.where(updates == 0, p, e - share * (e - p)), ema, params)


def _watched(watch: Mapping[str, Array], group: int | None) -> tuple[Array, Array]:
    """The running mean of the losses of a group of streams, and how many good steps it has had."""
    return (watch["mean"], watch["good"]) if group is None else (watch["mean"][group], watch["seen"][group])


def _watch(watch: Mapping[str, Array], group: int | None, loss: Array) -> dict[str, Array]:
    """`State.watch` after a good step."""
    mean, seen = _watched(watch, group)
    mean = jnp.where(seen == 0, loss, WATCH_DECAY * mean + (1.0 - WATCH_DECAY) * loss)
    good = {"good": watch["good"] + 1}
    if group is None:
        return good | {"mean": mean}
    return good | {"mean": watch["mean"].at[group].set(mean), "seen": watch["seen"].at[group].add(1)}


def _after_step(tasks: Mapping[str, Task], variables: Variables, params: Params) -> Variables:
    """The variables once the parameters are the new ones."""
    after = {}
    for name, tree in variables.get("tasks", {}).items():
        after[name] = tree
        if name in tasks and hasattr(tasks[name].objective, "after_step"):
            after[name] = tasks[name].objective.after_step(tree, params)
            check_variables(f"tasks.{name}: {type(tasks[name].objective).__name__}.after_step", tree, after[name])
    return together(variables.get("model", {}), after)


def _updates_done(state: State) -> Array:
    """How many updates were applied: what the schedule counts, skipped steps left out."""
    return state.watch["good"]
