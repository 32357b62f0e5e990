"""Prefixes: learned keys and values that every layer of a stack attends to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from mmjax.adapt.method import Given, Method
from mmjax.adapt.places import Place
from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.random import fold_name
from mmjax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Prefix(Method):
    """n learned keys and values of every layer, before those of its tokens (Li & Liang 2021, section 4.2, without the network
    that they train through).

    Usage: `adapt={"decoders_lm/*": Prefix(n=16)}`. Of what a pattern matches it takes self-attention's kernels of keys, beside
    which `prefix_keys` and `prefix_values` [L, n, heads of keys, K] lie, for all layers of a stack. No position turns them; the
    positions of a text's own tokens begin after them, as in peft.

    Attributes:
      n: how many.
      deviation: of the normal distribution that they begin from (peft's is 1); 0 for zeros (its `init_weights="zero"`).
    """

    n: int = setting(least=1, default=16)
    deviation: float = setting(least=0, default=0.02)

    slot = "prefix"

    def __post_init__(self) -> None:
        check_ranges(self, "Prefix.")

    def takes(self, place: Place, table: bool) -> bool:
        return place.layers > 0 and place.path.endswith("/attention/k/kernel")

    def check(self, place: Place, whole: bool) -> None:
        if not whole:
            raise UserError(
                f"Prefix of some layers of {place.path}: a stack has one structure, so give it to all of its layers"
            )

    @staticmethod
    def leaves(place: Place, given: Sequence[Given], kernel: Array, key: Array) -> dict[str, Any]:
        spec, shape = given[0].method, (*place.lead, given[0].method.n, *place.outputs)
        names = ("prefix_keys", "prefix_values")
        return {name: spec.deviation * jax.random.normal(fold_name(key, name), shape) for name in names}

    @staticmethod
    def names(place: Place, given: Sequence[Given]) -> tuple[str, ...]:
        return ("prefix_keys", "prefix_values")
