"""Adapting without new parameters: the biases alone, or the norms alone."""

from __future__ import annotations

import dataclasses

from mmjax.adapt.method import Method
from mmjax.core.trees import match_any


@dataclasses.dataclass(frozen=True)
class BitFit(Method):
    """Train the biases that the pattern matches, of linear layers and norms (Ben Zaken 2022)."""

    adds = False

    def trains(self, path: str) -> bool:
        return match_any(("*/bias", "*/tied_bias"), path)


@dataclasses.dataclass(frozen=True)
class Norms(Method):
    """Train the scales and biases of the norms that the pattern matches (Zhao 2023)."""

    adds = False

    def trains(self, path: str) -> bool:
        return match_any(("*norm/scale", "*norm/bias"), path)
