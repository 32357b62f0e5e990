"""What is computed of a spec once, however often an equal spec asks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

S = TypeVar("S")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class _Known:
    """A spec, equal to another where `same` is."""

    same: Any
    spec: Any = dataclasses.field(compare=False)


def once_each(compute: Callable[[S], R]) -> Callable[[S], R]:
    """`compute`, of a pure function of one spec: called once for equal ones, of which the last 64 are remembered.

    Who is given the result shares it and must not change it. A spec that holds what cannot be compared is computed each time,
    and an error is raised anew each time.
    """
    known = functools.lru_cache(maxsize=64)(lambda key: compute(key.spec))

    @functools.wraps(compute)
    def found(spec: S) -> R:
        key = _Known(sameness(spec), spec)
        try:
            hash(key)
        except TypeError:
            return compute(spec)
        return known(key)

    return found


def sameness(value: Any) -> Any:
    """What two values have alike that say the same: of a dataclass its class and its fields, of a mapping its items in their
    order, of a sequence its items, and of all else its type beside it: True, 1 and 1.0 are equal and do not say the same."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple((field.name, sameness(getattr(value, field.name))) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return Mapping, tuple((sameness(key), sameness(own)) for key, own in value.items())
    if isinstance(value, tuple | list):
        return type(value), tuple(sameness(own) for own in value)
    return type(value), value
