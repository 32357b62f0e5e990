"""Checks of a spec's fields, each raising the one line a user reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmjax.core.errors import UserError, nearest


def one_of(field: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError unless `value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{field}={value!r}: use one of {', '.join(choices)}{nearest(str(value), choices)}")


def at_least(field: str, value: float, low: float) -> None:
    """Raises UserError unless `value >= low`, and finite."""
    if not low <= value < math.inf:
        raise UserError(f"{field}={value!r}: use a {'finite ' * (value == math.inf)}number of at least {low}")


def positive(field: str, value: float) -> None:
    """Raises UserError unless `value > 0`, and finite."""
    if not 0 < value < math.inf:
        raise UserError(f"{field}={value!r}: use a {'finite ' * (value == math.inf)}number above 0")


def smoothing(field: str, value: float) -> None:
    """Raises UserError unless `value` is in [0, 1), the range of a label smoothing."""
    if not 0 <= value < 1:
        raise UserError(f"{field}={value!r}: use a number from 0 up to, but not including, 1")


def weights(field: str, value: Sequence[float]) -> None:
    """Raises UserError unless the numbers are finite, none is below 0 and one is above."""
    if not all(0 <= weight < math.inf for weight in value) or not any(value):
        raise UserError(f"{field}={value!r}: use finite numbers from 0 up, one of them above")


def two_modalities(field: str, value: Sequence[str]) -> None:
    """Raises UserError unless `value` names two different modalities."""
    if isinstance(value, str) or len(value) != 2 or value[0] == value[1]:
        raise UserError(f"{field}={value!r}: name two different modalities, for instance ('image', 'text')")
