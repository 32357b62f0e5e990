"""Schedule-free AdamW: an average of the run's parameters takes the place of a falling learning rate."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, map_with_path
from mmjax.core.types import Array, Params
from mmjax.train.optimizer import Optimizer

AHEAD = "y_minus_x"  # the field of `Averaged` by which a checkpoint is read


@dataclasses.dataclass(frozen=True)
class ScheduleFree(Optimizer):
    """AdamW without a schedule (Defazio 2024, arXiv 2405.15682, eq. 3-5 and algorithm 1).

    z moves by AdamW without momentum, x is the running mean of z, and gradients are taken at y = (1 - b1) z + b1 x. The
    parameters of a run's state are y; what is evaluated, exported and started from is x (see `averaged`). A step counts in the
    mean by the largest rate so far to the power of `weight_power`, so those of a warm-up count for less.

    It wants a warm-up, and a learning rate of 1 to 10 times AdamW's. It takes as much memory as AdamW.

    Attributes:
      b1: share of the mean in the point where gradients are taken.
      b2: decay of the mean of squared gradients.
      eps: added to the root of the latter.
      weight_power: power of the largest rate so far by which a step counts in the mean; 0 for a plain mean.
    """

    schedule: str = "constant"
    b1: float = setting(least=0, below=1, default=0.9)
    b2: float = setting(least=0, below=1, default=0.999)
    eps: float = setting(least=0, default=1e-8)
    weight_power: float = setting(least=0, default=2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema:
            raise UserError(f"optimizer.ema={self.ema}: schedule_free evaluates an average of its own; use 0")

    def core(self) -> optax.GradientTransformation:
        # Adam without its mean of gradients, and without the memory for one.
        return optax.scale_by_rms(self.b2, self.eps, eps_in_sqrt=False, bias_correction=True)

    def around(self, chain: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        return average(chain, self.rate(steps), self.b1, self.weight_power)


class Averaged(NamedTuple):
    """What `average` keeps.

    Attributes:
      chain: the state of what moves z.
      y_minus_x: like the parameters; 0 at first and wherever nothing moves.
      weight: [] float32, of all the steps in the mean.
      rate: [] float32, the largest so far.
      updates: [] int32, how many were done.
    """

    chain: Any
    y_minus_x: Params
    weight: Array
    rate: Array
    updates: Array


def average(
    chain: optax.GradientTransformation, rate: optax.Schedule, b1: float, weight_power: float
) -> optax.GradientTransformation:
    """Schedule-free around a chain that has no momentum and whose updates hold the learning rate `rate` already.

    The same sequence as `optax.contrib.schedule_free`, which keeps z. Here y - x = (1 - b1) (z - x) is kept: it is 0 at the
    start, whatever parameters a run starts from; it stays exactly 0 where nothing moves; and x is found without dividing.
    """

    def init(params: Params) -> Averaged:
        zero = jnp.zeros((), jnp.float32)
        return Averaged(chain.init(params), jax.tree.map(jnp.zeros_like, params), zero, zero, jnp.zeros((), jnp.int32))

    def update(gradient: Any, state: Averaged, params: Any = None) -> tuple[Any, Averaged]:
        moves, inner = chain.update(gradient, state.chain, params)
        largest = jnp.maximum(state.rate, jnp.asarray(rate(state.updates), jnp.float32))
        weight = largest**weight_power
        total = state.weight + weight
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), 0.0)
        ahead = jax.tree.map(lambda old, move: old / (1.0 - b1) + move, state.y_minus_x, moves)  # the next z - the last x
        new = jax.tree.map(lambda far: (1.0 - b1) * (1.0 - share) * far, ahead)

        def step(far: Array, now: Array, before: Array) -> Array:
            # -0.0, because adding 0.0 to a parameter of -0.0 would change its bits.
            return jnp.where((far == 0) & (before == 0), -0.0, share * far + (now - before))

        updates = jax.tree.map(step, ahead, new, state.y_minus_x)
        return updates, Averaged(inner, new, total, largest, state.updates + 1)

    return optax.GradientTransformation(init, update)


def averaged(optimizer: Any, params: Params) -> Params:
    """The parameters to evaluate: x = y - (y - x) where an optimizer's state holds that, all others as they are.

    Args:
      optimizer: the state of an optimizer, of any.
      params: those that gradients are taken at; arrays, or shapes, which stay as they are.
    """
    held = [part for part in jax.tree.leaves(optimizer, is_leaf=_is_averaged) if _is_averaged(part)]
    lead = {path: leaf for part in held for path, leaf in leaves_by_path(part.y_minus_x).items()}

    def mean(path: str, y: Any) -> Any:
        return y if path not in lead or isinstance(y, jax.ShapeDtypeStruct) else y - lead[path]

    return map_with_path(mean, params)


def _is_averaged(part: Any) -> bool:
    return isinstance(part, Averaged)
