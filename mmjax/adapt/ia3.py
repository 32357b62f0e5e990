"""IA3: a factor for each number that a kernel gives, or takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mmjax.adapt.method import Given, Method
from mmjax.adapt.places import TABLE, Place
from mmjax.core.errors import UserError
from mmjax.core.types import Array

SIDES = ("output", "input")


@dataclasses.dataclass(frozen=True)
class IA3(Method):
    """Learned factors of a kernel's outputs, or of its inputs (Liu 2022, section 3.3), ones at the start.

    Usage: `adapt={"*/attention/[kv]/kernel": IA3(), "*/mlp/down/kernel": IA3(side="input")}`, as in the paper.

    Attributes:
      side: `output`, or `input`.
    """

    side: str = "output"

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise UserError(f"IA3.side={self.side!r}: use one of {', '.join(SIDES)}")

    def check(self, place: Place, whole: bool) -> None:
        if place.kind == TABLE:
            raise UserError(f"IA3 of {place.path}: a table has no input that a factor could change")

    @staticmethod
    def leaves(place: Place, given: Sequence[Given], kernel: Array, key: Array) -> dict[str, Any]:
        if len({each.method.side for each in given}) > 1:
            raise UserError(f"adapt: layers of {place.path} differ in IA3.side: a stack has one structure")
        if given[0].method.side == "input":
            return {"ia3_in": jnp.ones((*place.lead, *place.inputs))}
        return {"ia3_out": jnp.ones((*place.lead, *place.outputs))}

    @staticmethod
    def names(place: Place, given: Sequence[Given]) -> tuple[str, ...]:
        return ("ia3_in",) if given[0].method.side == "input" else ("ia3_out",)
