"""Columns of numbers: one an example, arrays, pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.kinds import About, Arrays, Lost, whole
from mmjax.data.types import Record

SHOWN = 80  # letters of a value in a complaint


@dataclasses.dataclass(frozen=True)
class Number:
    """A number an example, [B] float32: (value - mean) / deviation. None, "" and NaN are NaN, which never counts.

    Attributes:
      mean: taken off.
      deviation: divided by.
    """

    mean: float = 0.0
    deviation: float = setting(above=0, default=1.0)

    def build(self, key: str, value: Any, about: About, first: Record) -> NumberColumn:
        return NumberColumn(key, self.mean, self.deviation)


class NumberColumn:
    """See `Number`."""

    def __init__(self, key: str, mean: float, deviation: float) -> None:
        self.key, self.mean, self.deviation = key, mean, deviation

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        numbers = np.array([self._number(value) for value in values])
        return {self.key: ((numbers - self.mean) / self.deviation).astype(np.float32)}, Lost()

    def _number(self, value: Any) -> float:
        if value is None or value == "":
            return math.nan
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(f"{self.key}={value!r} is not a number") from None
        if math.isinf(number) or (isinstance(value, str) and "_" in value):
            raise UserError(f"{self.key}={value!r} is not a number that can be predicted")
        return number


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of one shape an example, or a number: [B, ...].

    Attributes:
      dtype: `float32`, `int32` or `bool`; "" for the record's own.
      rows: the first dim, for arrays of different lengths (boxes, points): shorter ones are filled up with -1 (of bool with
        False), longer ones refused. 0 for arrays that all have one.
    """

    dtype: str = ""
    rows: int = setting(least=0, default=0)

    def build(self, key: str, value: Any, about: About, first: Record) -> ArrayColumn:
        if self.dtype not in ("", "float32", "int32", "bool"):
            raise UserError(f"dtype={self.dtype!r}: use float32, int32 or bool")
        return ArrayColumn(key, self.dtype, self.rows)


class ArrayColumn:
    """See `Array`."""

    def __init__(self, key: str, dtype: str, rows: int) -> None:
        self.key, self.dtype, self.rows = key, dtype, rows
        self.limit: int | None = None  # numbers from here up are refused: they are labels of a head
        self.shares = False  # numbers above 1 are refused: they say which classes an example has

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        if isinstance(values, np.ndarray) and not self.rows:  # of the batch already
            return {self.key: self._array(values)}, Lost()
        arrays = [self._array(value) for value in values]
        if self.rows:
            arrays = [self._filled(array) for array in arrays]
        if any(array.shape != arrays[0].shape for array in arrays):
            odd = next(array.shape for array in arrays if array.shape != arrays[0].shape)
            raise UserError(f"{self.key}: shapes {arrays[0].shape} and {odd} in one batch; rows=N fills the first dim up")
        return {self.key: np.stack(arrays)}, Lost()

    def _array(self, value: Any) -> np.ndarray:
        try:
            array = np.asarray(value)
        except ValueError as error:  # rows of different lengths
            raise UserError(f"{self.key}: {_shown(value)} is no array ({error})") from None
        if array.dtype.kind not in "biuf":
            raise UserError(f"{self.key}={_shown(value)}: an array is of numbers")
        wanted = np.dtype(self.dtype) if self.dtype else array.dtype
        if wanted.kind in "iu" and array.size:
            if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
                raise UserError(f"{self.key}: {array.flat[0]} and others of its numbers are not whole")
            for number in (array.min(), array.max()):
                whole(self.key, number)
            wanted = np.dtype(np.int32) if wanted.itemsize > 4 or self.dtype else wanted
        if self.limit is not None and array.size and array.max() >= self.limit:
            raise UserError(f"{self.key}={array.max()}: there are {self.limit} classes, 0 to {self.limit - 1}")
        if self.shares and np.any(array > 1):
            raise UserError(f"{self.key}={array.max()}: give 1 for a class that is there, 0 for one that is not, -1 if unknown")
        return array.astype(wanted, copy=False)  # stacking copies it

    def _filled(self, array: np.ndarray) -> np.ndarray:
        if array.ndim < 1 or len(array) > self.rows:
            raise UserError(f"rows={self.rows}: a record has {len(array) if array.ndim else 'one number'} of {self.key}")
        if array.dtype.kind == "u":
            array = array.astype(np.int32)
        filled = np.full((self.rows, *array.shape[1:]), False if array.dtype == bool else -1, array.dtype)
        filled[: len(array)] = array
        return filled


@dataclasses.dataclass(frozen=True)
class Pixels:
    """An image, [B, H, W, channels] float32, as `Normalise` leaves it."""

    def build(self, key: str, value: Any, about: About, first: Record) -> ArrayColumn:
        if getattr(value, "dtype", None) == np.uint8:
            field = "" if key == "image" else f"field={key!r}"
            raise UserError(
                f"transforms: the {key} is still uint8 at the end; add Normalise({field}) as the last of the image's"
            )
        return ArrayColumn(key, "float32", 0)


def _shown(value: Any) -> str:
    """The beginning of a value, in one line."""
    said = " ".join(repr(value).split())
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
