"""The large arrays of a batch, filled while those of each record are still in the processor's cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.data.types import Record

LARGE = 1 << 16  # bytes of an array that is laid where the batch has it as soon as it is made


class Laid:
    """The large arrays of a batch, filled row by row: while a record's are still in the processor's cache.

    Attributes:
      whole: key -> [B, ...], of the keys whose arrays were laid for all records so far.
    """

    def __init__(self, rows: int, last: Any = None) -> None:
        """`last`: a transform that records have not been through, which writes what it makes where that is to be."""
        self._rows, self._last, self.whole = rows, last, dict[str, np.ndarray]()

    def __call__(self, record: Record, row: int) -> Record:
        """The record with its large arrays as views of the batch's own. The first one gives their shapes and dtypes."""
        key = getattr(self._last, "field", "")
        value, whole = record.get(key), self.whole.get(key)
        if (
            whole is not None
            and value is not None
            and _is_pixels(value)
            and value.shape == whole.shape[1:]
            and whole.dtype == np.float32
        ):
            self._last.into(value, whole[row])
            rest = self._laid({name: own for name, own in record.items() if name != key}, row, skip=key)
            return {**rest, key: whole[row]}
        return self._laid(record if self._last is None else self._last(record, None, None), row)

    def _laid(self, record: Record, row: int, skip: str = "") -> Record:
        found = dict(record)
        for key, value in record.items():
            if row == 0 and isinstance(value, np.ndarray) and value.nbytes >= LARGE and value.dtype.isnative:
                self.whole[key] = np.empty((self._rows, *value.shape), value.dtype)
        for key in [one for one in self.whole if one != skip]:
            value, whole = record.get(key), self.whole[key]
            if isinstance(value, np.ndarray) and (value.shape, value.dtype) == (whole.shape[1:], whole.dtype):
                whole[row] = value
                found[key] = whole[row]
            else:  # unlike the first one's, which the columns say
                del self.whole[key]
        return found


def says(transform: Any, name: str) -> bool:
    """Whether a transform has an attribute by which its `__call__` may be done otherwise: of the very class whose that is. What
    a class of the user's makes of it is its own."""
    owners = [next((one for one in type(transform).__mro__ if each in vars(one)), None) for each in (name, "__call__")]
    return owners[0] is not None and owners[0] is owners[1] and bool(getattr(transform, name))


def _is_pixels(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (3, 4)
