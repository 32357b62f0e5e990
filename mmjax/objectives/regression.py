"""Regression: numbers from a head."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.spatial import NONE
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import counted, valid_rows

FLOOR = 1e-6  # of a variance


@dataclasses.dataclass(frozen=True)
class Regression:
    """Predict a number; one that is NaN does not count. The loss is summed over what counts.

    The head gives one logit for each number: [B, 1] for numbers [B], [B, n] for [B, n], [B, H, W, 1] for a map [B, H, W]. With
    `gaussian_nll` it gives two, a mean and the logarithm of a variance: [B, 2] for numbers [B], [B, n, 2] or [B, 2 n] (means
    first) for [B, n], [B, H, W, 2] for a map.

    Attributes:
      head: a head whose logits are the prediction.
      target: the batch key of the numbers.
      loss: `squared`, `absolute`, or `huber` (Huber 1964): squared up to `delta`, then linear; halved as PyTorch's; or
        `gaussian_nll`, the negative log-likelihood of a normal distribution of which the head says both mean and variance (Nix
        & Weigend 1994), without the constant log(2 pi) / 2, as PyTorch's `GaussianNLLLoss`. It may be below 0.
      delta: of the Huber loss.
      floor: of `gaussian_nll`: a smaller variance counts as this, in the target's unit squared (PyTorch's `eps`). The
        derivative is still by the variance that the head has given, as PyTorch's, so it fades below the floor.

    Raises:
      UserError: an unknown loss; when called: another number of logits than numbers.
    """

    head: str = "value"
    target: str = "value"
    loss: str = "squared"
    delta: float = 1.0
    floor: float = setting(above=0, default=FLOOR)

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.one_of("regression.loss", self.loss, ("squared", "absolute", "huber", "gaussian_nll"))
        checks.positive("regression.delta", self.delta)
        checks.positive("regression.floor", self.floor)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.target,)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        target = forward.view(self.target)
        logits, log_variance = forward.head(self.head), None
        if self.loss == "gaussian_nll":
            logits, log_variance = mean_and_variance(self.head, logits, self.target, target)
        error, known = errors(self.head, logits, self.target, target)
        known &= valid_rows(batch, target.shape[0]).reshape(-1, *[1] * (target.ndim - 1))
        size = jnp.abs(error)
        if log_variance is not None:
            losses = gaussian_nll(error, log_variance, self.floor)
        elif self.loss == "squared":
            losses = jnp.square(error)
        elif self.loss == "absolute":
            losses = size
        else:
            losses = jnp.where(size <= self.delta, 0.5 * jnp.square(error), self.delta * (size - 0.5 * self.delta))
        return Loss(*counted(losses, known), {"absolute_error": counted(size, known)})


def has_variance(logits: Array, target: Array) -> bool:
    """Whether there are two logits for each number."""
    side_by_side = target.ndim == 2 and logits.shape == (target.shape[0], 2 * target.shape[1])
    return side_by_side or logits.shape == (*target.shape, 2)


def mean_and_variance(head: str, logits: Array, key: str, target: Array) -> tuple[Array, Array]:
    """The means, and the logarithms of the variances, that a head gives: both of the target's shape, float32.

    Raises:
      UserError: another number of logits than two for each number.
    """
    if not has_variance(logits, target):
        there, own = ("x".join(map(str, shape[1:])) or "one an example" for shape in (logits.shape, target.shape))
        raise UserError(
            f"head={head!r} gives {there} and {key!r} is {own}: loss='gaussian_nll' needs two logits for each number, its mean "
            "and the logarithm of its variance"
        )
    if logits.shape == (*target.shape, 2):
        mean, log_variance = logits[..., 0], logits[..., 1]
    else:
        mean, log_variance = jnp.split(logits, 2, axis=-1)
    return mean.astype(jnp.float32), log_variance.astype(jnp.float32)


def gaussian_nll(error: Array, log_variance: Array, floor: float = FLOOR) -> Array:
    """(log v + error^2 / v) / 2 with v = max(exp(log_variance), floor), of their shape, float32; PyTorch's, and its derivative:
    the floor is not seen by it, so it is that at v times the change of the variance itself."""
    held = jax.lax.stop_gradient(jnp.maximum(log_variance, jnp.log(floor)))
    passed = jnp.exp(log_variance - held)  # 1 above the floor, and below it what is left of the variance
    log_v = held + passed - jax.lax.stop_gradient(passed)
    return 0.5 * (log_v + jnp.square(error) * jnp.exp(-log_v))


def errors(head: str, logits: Array, key: str, target: Array) -> tuple[Array, Array]:
    """Prediction less target, 0 where that is not known, and where it is: both of the target's shape, float32 and bool.

    Raises:
      UserError: another number of logits than numbers.
    """
    if logits.shape != target.shape and logits.shape != (*target.shape, 1):
        there, own = ("x".join(map(str, shape[1:])) or "one an example" for shape in (logits.shape, target.shape))
        raise UserError(f"head={head!r} gives {there} and {key!r} is {own}: a regression needs one logit for each number")
    predicted, target = logits.reshape(target.shape).astype(jnp.float32), target.astype(jnp.float32)
    known = jnp.isfinite(target)
    if any(part in ("points", "boxes") for part in key.split("_")):  # -1 throughout is no point, no box
        known &= ~jnp.all(target == NONE, axis=-1, keepdims=True)
    return jnp.where(known, predicted - jnp.where(known, target, 0.0), 0.0), known
