"""Bottleneck adapters: a small network after each branch of a layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.adapt.method import Given, Method
from mmjax.adapt.places import Place
from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.random import fold_name
from mmjax.core.types import Array
from mmjax.nn.adapters import BOTTLENECK
from mmjax.nn.bottleneck import ACTS, LAST, kind

ENDS = re.compile(rf"/layers/((first|second)/)?({'|'.join('/'.join(last) for last in LAST.values())})/kernel$")


@dataclasses.dataclass(frozen=True)
class Bottleneck(Method):
    """Two thin layers with an activation between them after a branch, added to what it gave before the residual is.

    Usage:
      {"encoders_text/*": Bottleneck(r=48, activation="silu")}  # Houlsby 2019, figure 2: after attention and feed-forward
      {"encoders_text/*/mlp/*": Bottleneck(r=48, normed=True)}  # Pfeiffer 2021, figure 5: after the feed-forward alone

    Of what a pattern matches it takes the last kernel of each branch of a stack's layers (`attention/out`,
    `cross_attention/out`, `mlp/down`), beside which its leaves lie. W_up begins with zeros, so that the first answers are the
    model's own.

    Attributes:
      r: the width between; the `adapters` library's reduction factor is D / r.
      activation: `relu`, `silu` (that library's `swish`), `gelu`, `gelu_tanh`, `quick_gelu` or `tanh`.
      normed: it reads what the layer would give without it, the residual added and (of a layer that norms last) the norm
        taken, and not what the branch gave.
      deviation: of the normal distribution that W_down begins from.
    """

    r: int = setting(least=1, default=48)
    activation: str = "relu"
    normed: bool = False
    deviation: float = setting(above=0, default=0.02)

    slot = "bottleneck"

    def __post_init__(self) -> None:
        check_ranges(self, "Bottleneck.")
        if self.activation not in ACTS:
            raise UserError(f"Bottleneck.activation={self.activation!r}: use one of {', '.join(ACTS)}")

    def takes(self, place: Place, table: bool) -> bool:
        return place.layers > 0 and ENDS.search(place.path) is not None

    @staticmethod
    def leaves(place: Place, given: Sequence[Given], kernel: Array, key: Array) -> dict[str, Any]:
        specs = [each.method for each in given]
        if len({(spec.activation, spec.normed) for spec in specs}) > 1:
            raise UserError(
                f"adapt: layers of {place.path} differ in Bottleneck.activation or .normed: a stack has one structure"
            )
        (width,), most = place.outputs, max(spec.r for spec in specs)
        down = jnp.zeros((place.layers, width, most))
        for each in given:
            own = each.rows[:, None] & (np.arange(most) < each.method.r)
            begun = each.method.deviation * jax.random.normal(fold_name(key, "down"), down.shape)
            down = jnp.where(own[:, None, :], begun, down)
        return {
            "bottleneck_down": down,
            "bottleneck_down_bias": jnp.zeros((place.layers, most)),
            "bottleneck_up": jnp.zeros((place.layers, most, width)),
            "bottleneck_up_bias": jnp.zeros((place.layers, width)),
            "bottleneck_kind": jnp.stack([kind(specs[0].activation, specs[0].normed)] * place.layers),
        }

    @staticmethod
    def names(place: Place, given: Sequence[Given]) -> tuple[str, ...]:
        return BOTTLENECK
