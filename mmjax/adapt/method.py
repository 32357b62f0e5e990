"""What every way to adapt a model is, and how patterns give it places."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.adapt.places import TABLE, Place
from mmjax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Given:
    """A method and the layers of a place that it was given: `rows` [L] bool, [1] where there is no stack."""

    method: Any
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Method:
    """One that adds leaves beside kernels. One that trains what is there overrides `trains`."""

    adds = True
    slot = "kernel"  # what it changes of a place, which takes one method for each

    def takes(self, place: Place, table: bool) -> bool:
        """Whether it is given a place that its pattern matches; `table`: the pattern ends in "table"."""
        return place.kind != TABLE or table

    def check(self, place: Place, whole: bool) -> None:
        """Raises UserError where the place cannot take it; `whole`: it was given all layers."""

    def check_all(self, pattern: str, places: Sequence[Place]) -> None:
        """Raises UserError where what a pattern gives it is not enough, or too much."""

    @staticmethod
    def leaves(place: Place, given: Sequence[Given], kernel: Array, key: Array) -> dict[str, Any]:
        """Name -> leaf, to be put beside the kernel; `given` are methods of one kind, each with layers of its own."""
        raise AssertionError("a method that adds leaves says")

    @staticmethod
    def names(place: Place, given: Sequence[Given]) -> tuple[str, ...]:
        """Names of the leaves among them that are trained."""
        raise AssertionError("a method that adds leaves says")

    def trains(self, path: str) -> bool:
        """Whether it trains this leaf of the model itself."""
        return False
