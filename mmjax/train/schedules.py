"""The learning rate over the updates of a run: a linear warm-up, then one of the named courses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import optax

from mmjax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Course:
    """What a schedule is made of.

    Attributes:
      peak: the rate at the end of the warm-up; it may be traced.
      end_factor: the last rate over the peak; that below which `inverse_sqrt` does not fall.
      warmup: updates of warm-up.
      rest: updates after it.
      decay: updates of `wsd` at the end of the run, on which it goes down.
    """

    peak: float
    end_factor: float
    warmup: int
    rest: int
    decay: int

    def cosine(self) -> optax.Schedule:
        """Half a cosine from the peak to the end (Loshchilov & Hutter 2017, without restarts)."""
        return optax.cosine_decay_schedule(self.peak, self.rest, self.end_factor)

    def linear(self) -> optax.Schedule:
        """A line from the peak to the end."""
        return optax.linear_schedule(self.peak, self.peak * self.end_factor, self.rest)

    def constant(self) -> optax.Schedule:
        """The peak."""
        return optax.constant_schedule(self.peak)

    def wsd(self) -> optax.Schedule:
        """Warmup, stable, decay (Hu 2024, MiniCPM, sec. 4): the peak, and a line down to the end over the last updates."""
        if not self.decay:
            return self.constant()
        down = optax.linear_schedule(self.peak, self.peak * self.end_factor, self.decay)
        return optax.join_schedules([self.constant(), down], [self.rest - self.decay])

    def inverse_sqrt(self) -> optax.Schedule:
        """peak * sqrt(warmup / n) at update n of the run (Vaswani 2017, eq. 3): it does not depend on the run's length."""

        def rate(count: Array) -> Array:
            return self.peak * jnp.maximum(jnp.sqrt(self.warmup / (self.warmup + count)), self.end_factor)

        return rate


SCHEDULES: Mapping[str, Callable[[Course], optax.Schedule]] = {
    "constant": Course.constant,
    "cosine": Course.cosine,
    "inverse_sqrt": Course.inverse_sqrt,
    "linear": Course.linear,
    "wsd": Course.wsd,
}


def schedule(
    name: str, peak: float, steps: int, warmup: int = 0, end_factor: float = 0.0, decay_fraction: float = 0.2
) -> optax.Schedule:
    """Update count -> learning rate: linear from 0 to the peak over `warmup` updates, then as named until update `steps`.

    Args:
      end_factor: the last rate over the peak.
      decay_fraction: of all the steps, those on which `wsd` goes down; never more than come after the warm-up.
    """
    rest = max(steps - warmup, 1)
    decay = min(round(decay_fraction * steps), rest)
    after = SCHEDULES[name](Course(peak, end_factor, warmup, rest, decay))
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
