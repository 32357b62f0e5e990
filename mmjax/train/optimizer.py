"""Optimizers as specs: AdamW, SGD, Lion, Adafactor, with decay, clipping, freezing and per-layer rates by path."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest
from mmjax.core.trees import leaves_by_path, map_with_path, match, match_any
from mmjax.core.types import Array, Params
from mmjax.train.schedules import SCHEDULES, schedule
from mmjax.train.trained import Trained, trained_of

NO_DECAY = (
    *("*/bias", "*/tied_bias", "*/thresholds"),
    *("*/scale", "*/*_layer_scale"),  # the scale of a norm, and of a residual branch
    "*/magnitude",  # of a kernel that is measured (weight normalisation)
    *("*/scale_logit", "*/bias_logit", "*/mix"),  # learned scalars and weights of a mean
    *("*/cls", "*/extra", "*/mask_token", "*/probe", "*/*_type", "*/cache_keys", "*/codebook"),  # learned tokens and examples
    *("*/fixed_position/*",),
)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What every optimizer has. Paths are those of the parameters, for instance `encoders_image/stack/layers/mlp/up/kernel`.

    Attributes:
      learning_rate: its peak.
      schedule: after the warm-up: `cosine`, `linear`, `constant`, `wsd` (constant, then down at the end) or `inverse_sqrt`
        (times sqrt(warmup_steps / step), whatever the length of the run).
      warmup_steps: steps of linear warm-up from 0.
      end_factor: the last rate over the peak.
      decay_fraction: share of the run's steps in which `wsd` goes down.
      weight_decay: decoupled, times the learning rate (Loshchilov & Hutter 2019, alg. 2).
      no_decay: patterns of parameters that are not decayed.
      clip_norm: largest global gradient norm; 0 for no clipping.
      accumulate: micro-batches a step.
      ema: decay of the moving average of parameters that is evaluated and kept; 0 for none. It is a mean of what the steps
        have made: the parameters before the first step are no part of it (the correction of Kingma & Ba 2015, section 3).
      layer_decay: rate of layer l of L in an encoder is times layer_decay ** (L - l), embeddings ** (L + 1) (Bao 2021).
      rates: pattern -> factor on the learning rate, for instance a slower backbone.
      train: patterns of the parameters that are trained. () is all of them; where the experiment adapts its model, what its
        methods train and no more, and what is named here comes in addition (a new head).
      freeze: patterns of parameters that stay as they are all the same; "encoders_image/*[:6]", here and in `train`, is of the
        first six layers of a stack. What is frozen has no gradient, no optimizer state and no moving average.
      on_bad_step: what a non-finite or spiking step does: `stop` the run, or `skip` that step.
      spike_factor: a loss above this many times its running mean is a spike; 0 for never.

    Raises:
      UserError: a number out of its range, or a word that is none of the choices.
    """

    learning_rate: float = setting(everyday=True, least=0, below=math.inf, default=1e-3)
    schedule: str = "cosine"
    warmup_steps: int = setting(everyday=True, least=0, default=0)
    end_factor: float = setting(least=0, most=1, default=0.0)
    decay_fraction: float = setting(least=0, most=1, default=0.2)
    weight_decay: float = setting(everyday=True, least=0, default=0.0)
    no_decay: tuple[str, ...] = NO_DECAY
    clip_norm: float = setting(least=0, default=1.0)
    accumulate: int = setting(everyday=True, least=1, default=1)
    ema: float = setting(least=0, below=1, default=0.0)
    layer_decay: float = setting(above=0, default=1.0)
    rates: Mapping[str, float] = setting(least=0, default_factory=dict)
    train: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    on_bad_step: str = "stop"
    spike_factor: float = setting(least=0, default=0.0)

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            close = nearest(self.schedule, SCHEDULES)
            raise UserError(f"optimizer.schedule={self.schedule!r}: use one of {', '.join(SCHEDULES)}{close}")
        if self.schedule == "inverse_sqrt" and not self.warmup_steps:
            raise UserError(
                "optimizer.warmup_steps=0: schedule=inverse_sqrt falls by how often they have passed; use 1 or more"
            )
        if self.on_bad_step not in ("stop", "skip"):
            raise UserError(f"optimizer.on_bad_step={self.on_bad_step!r}: use stop or skip")
        check_ranges(self, "optimizer.")
        if 0 < self.spike_factor <= 1:
            raise UserError(f"optimizer.spike_factor={self.spike_factor}: use 0 for never, or a factor above 1")

    def core(self) -> optax.GradientTransformation:
        """The direction, before decay and the learning rate."""
        raise TypeError(f"{type(self).__name__} is no optimizer: use one of its kinds, such as AdamW")

    def rate(self, steps: int) -> optax.Schedule:
        """Update count -> learning rate."""
        return schedule(self.schedule, self.learning_rate, steps, self.warmup_steps, self.end_factor, self.decay_fraction)

    def around(self, chain: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        """What is put around the whole chain for the trained parameters: nothing, in most."""
        return chain

    def build(self, params: Params, steps: int) -> optax.GradientTransformation:
        """The whole chain for the trained ones of these parameters (arrays or their shapes).

        Raises:
          UserError: a pattern of `train`, `freeze` or `rates` that matches no parameter.
        """
        self._check_patterns(params)
        trained = self.trained(params)
        factors = trained.of(rate_factors(self, params))
        decayed = map_with_path(lambda path, _: not match_any(self.no_decay, path), trained.of(params))
        chain = optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            self.core(),
            optax.add_decayed_weights(self.weight_decay, decayed) if self.weight_decay else optax.identity(),
            _scale_by_tree(factors),
            optax.scale_by_learning_rate(self.rate(steps)),
        )
        return self.around(chain, steps)

    def trained(self, params: Params) -> Trained:
        """Which of these parameters, or of their shapes, are trained."""
        return trained_of(self.train, self.freeze, params)

    def _check_patterns(self, params: Params) -> None:
        paths = list(leaves_by_path(params))
        for pattern in self.rates:
            if not any(match(pattern, path) for path in paths):
                raise UserError(f"optimizer.rates: {pattern!r} matches no parameter; one is {paths[0]!r}")


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Kingma & Ba 2015 with decoupled decay.

    Attributes:
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of the latter.
    """

    b1: float = setting(least=0, below=1, default=0.9)
    b2: float = setting(least=0, below=1, default=0.999)
    eps: float = setting(least=0, default=1e-8)

    def core(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with (Nesterov) momentum.

    Attributes:
      momentum: decay of the sum of gradients; 0 for none.
      nesterov: look ahead, as Nesterov's does.
    """

    momentum: float = setting(least=0, below=1, default=0.9)
    nesterov: bool = False

    def core(self) -> optax.GradientTransformation:
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Chen 2023, alg. 2; wants a learning rate 3-10 times below AdamW's.

    Attributes:
      b1: share of the momentum in the direction that is taken.
      b2: decay of the momentum.
    """

    b1: float = setting(least=0, below=1, default=0.9)
    b2: float = setting(least=0, below=1, default=0.99)

    def core(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Shazeer & Stern 2018: second moments factored over the two largest dims, updates clipped by block.

    Attributes:
      decay: exponent of the second moments' decay, 1 - step ** -decay.
      min_dim: smallest of the two dims that is factored.
      clip_block: largest root mean square of a block's update.
    """

    decay: float = setting(above=0, default=0.8)
    min_dim: int = setting(least=1, default=128)
    clip_block: float = setting(above=0, default=1.0)

    def core(self) -> optax.GradientTransformation:
        factored = optax.scale_by_factored_rms(decay_rate=self.decay, min_dim_size_to_factor=self.min_dim)
        return optax.chain(factored, optax.clip_by_block_rms(self.clip_block))


def rate_factors(optimizer: Optimizer, params: Params) -> Any:
    """For each parameter, the factor on its rate: a number, or one a layer shaped [L, 1, ...] for a stacked one."""
    depths = {path.split("/")[0]: x.shape[0] for path, x in leaves_by_path(params).items() if "/layers/" in path}

    def factor(path: str, x: Any) -> Any:
        stacked = "/layers/" in path
        factor = np.ones((x.shape[0],) + (1,) * (x.ndim - 1) if stacked else (), np.float32)
        part = path.split("/")[0]
        if optimizer.layer_decay != 1.0 and part.startswith("encoders_") and part in depths and "/final_norm/" not in path:
            depth = depths[part]
            below = depth - np.arange(depth).reshape(factor.shape) if stacked else depth + 1
            factor = factor * np.float32(optimizer.layer_decay) ** below
        for pattern, rate in optimizer.rates.items():
            if match(pattern, path):
                factor = factor * np.float32(rate)
        return np.asarray(factor, np.float32)

    return map_with_path(factor, params)


def _scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Multiply each update by its constant; those that are 1 cost nothing."""

    def scale(update: Array, factor: np.ndarray) -> Array:
        if (factor == 1.0).all():
            return update
        return update * jnp.asarray(factor).reshape(factor.shape or (1,) * update.ndim)

    by_path = leaves_by_path(factors)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return map_with_path(lambda path, u: scale(u, by_path[path]), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
