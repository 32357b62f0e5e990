"""Columns of classes: one an example, or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError, nearest
from mmjax.data.kinds import About, Arrays, Lost, kind, whole, written
from mmjax.data.types import Record


@dataclasses.dataclass(frozen=True)
class Class:
    """The class of an example, [B] int32: a whole number, or a name where there are names. Negative, None and "" are none: -1.

    Also an array of classes an example, a label map [H, W] for instance: [B, H, W] int32.

    Attributes:
      names: of the classes, in the order of their labels; () for those of the source, where it says them of `label`. Where they
        are numbers themselves ("1", "2", "5"), a number in a record is a name.
      ignore: numbers that are no class either: 255 in many label maps.
    """

    names: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()

    def build(self, key: str, value: Any, about: About, first: Record) -> ClassColumn:
        names = _different(self.names)
        ranked = about.classes if key == "label" else ()
        if not names or not ranked:
            return ClassColumn(key, names or ranked, by_name=bool(names), ignore=self.ignore)
        if stranger := next((name for name in ranked if name not in names), None):
            raise UserError(f"names={names}: the source has the class {stranger!r}, which is not one of them")
        column = ClassColumn(key, ranked, ignore=self.ignore)  # numbered by the source in an order of its own
        column.match(names)
        return column


class ClassColumn:
    """See `Class`.

    Attributes:
      names: as the model knows them: `match` may put them into another order than the source's.
      limit: labels from here up are refused; None for no limit.
    """

    def __init__(self, key: str, names: tuple[str, ...], by_name: bool = False, ignore: tuple[int, ...] = ()) -> None:
        """`by_name`: where the names are numbers ("1", "2", "5"), a number in a record is a name and no place."""
        self.key, self.names = key, names
        self.limit: int | None = len(names) or None
        self._ignore = ignore
        self._by_name = by_name and any(name.isdecimal() for name in names)
        self._rank = {name: label for label, name in enumerate(names)}
        self._own = names
        self._moved: np.ndarray | None = None

    def match(self, names: tuple[str, ...]) -> None:
        """Give labels as places among `names`, which hold all of the column's own."""
        assert set(self._own) <= set(names)
        self._moved = np.array([names.index(name) for name in self._own], np.int32)
        self.names = names

    def place(self, value: Any) -> int:
        """The place of one value among `names`; -1 for none."""
        label = self.label(value)
        return label if self._moved is None or label < 0 else int(self._moved[label])

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        many = isinstance(values[0], np.ndarray) and values[0].ndim > 0
        labels = self._stacked(values) if many else np.array([self.label(value) for value in values], np.int32)
        if self._moved is not None:
            labels = np.where(labels < 0, labels, self._moved[np.maximum(labels, 0)])
        return {self.key: labels}, Lost()

    def _stacked(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """[B, ...] int32 from arrays of one shape."""
        odd = next((value for value in values if value.shape != values[0].shape or value.dtype.kind not in "iu"), None)
        if odd is not None:
            here, first = written(kind(odd)), written(kind(values[0]))
            raise UserError(f"{self.key}: classes are whole numbers in arrays of one shape, found {here} and {first}")
        if self._by_name:
            raise UserError(f"{self.key}: names that are numbers stand for single labels, and these are arrays of places")
        labels = np.stack(values).astype(np.int64)
        if self._ignore:
            labels[np.isin(labels, self._ignore)] = -1
        self.label(int(labels.max()) if labels.size else -1)
        return np.maximum(labels, -1).astype(np.int32)

    def label(self, value: Any) -> int:
        """The source's label of one value."""
        if value is None or value == "":
            return -1
        if isinstance(value, str):
            if value not in self._rank:
                known = ", ".join(self._own[:20]) or "none: give Class(names)"
                raise UserError(f"{self.key}={value!r} is no class{nearest(value, self._own)}; they are {known}")
            return self._rank[value]
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise UserError(f"{self.key}={value!r}: a class is a whole number or a name")
        label = whole(self.key, value)
        if label in self._ignore:
            return -1
        if self._by_name and label >= 0:
            return self.label(str(label))
        if self.limit is not None and label >= self.limit:
            raise UserError(f"{self.key}={label}: there are {self.limit} classes, 0 to {self.limit - 1}")
        return max(label, -1)


@dataclasses.dataclass(frozen=True)
class Classes:
    """Any number of classes an example, multi-hot: [B, C] float32, 1 where an example has the class.

    A record holds a list of names or of whole numbers; None where nothing is known of an example, whose row is then -1.

    Attributes:
      names: of the classes, in the order of their columns.
      flags: a record holds a number for each class instead, in the order of `names`: 1 where it has the class, 0 where not, and
        -1, None or NaN where nobody knows.
    """

    names: tuple[str, ...]
    flags: bool = False

    def build(self, key: str, value: Any, about: About, first: Record) -> ClassesColumn:
        if not self.names:
            raise UserError(f"names={self.names!r}: give the classes that {key} may hold")
        return ClassesColumn(key, _different(self.names), self.flags)


class ClassesColumn:
    """See `Classes`."""

    def __init__(self, key: str, names: tuple[str, ...], flags: bool = False) -> None:
        self.key, self.names, self._flags = key, names, flags
        self._one = ClassColumn(key, names, by_name=True)
        self._own, self._known = names, np.ones(len(names), bool)

    def match(self, names: tuple[str, ...]) -> None:
        """Give a column for each of `names`, which hold all of its own: of others nothing is known, -1."""
        self._known = np.isin(names, self._own)
        self._one.match(names)
        self.names = names

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        rows = np.tile(np.where(self._known, 0.0, -1.0).astype(np.float32), (len(values), 1))
        for row, value in zip(rows, values, strict=True):
            if value is None:
                row[:] = -1.0
                continue
            if self._flags:
                row[[self._one.place(name) for name in self._own]] = self._flagged(value)
                continue
            if isinstance(value, str) or not isinstance(value, list | tuple | np.ndarray):
                raise UserError(f"{self.key}={value!r}: give a list of classes, for instance [{self.names[0]!r}]")
            if len({str(one) for one in value}) < len(value):
                raise UserError(
                    f"{self.key}={list(value)!r}: name each class once; a vector of zeros and ones wants "
                    "Classes(names, flags=True)"
                )
            for one in value:
                if (label := self._one.place(one)) >= 0:
                    row[label] = 1.0
        return {self.key: rows}, Lost()

    def _flagged(self, value: Any) -> list[float]:
        """1, 0 or -1 for each of the column's own names."""
        if not isinstance(value, list | tuple | np.ndarray) or len(value) != len(self._own):
            raise UserError(f"{self.key}={value!r}: give {len(self._own)} numbers, one for each of {', '.join(self._own)}")
        flags = [-1.0 if one is None or one != one else one for one in value]  # NaN is unlike itself
        if odd := [one for one in flags if isinstance(one, str) or one not in (0, 1, -1)]:
            raise UserError(f"{self.key}={list(value)!r} has {odd[0]!r}: a class is there (1), not there (0) or not known (-1)")
        return [float(one) for one in flags]


def _different(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes. Raises `UserError` for one text, or a name that stands twice."""
    if isinstance(names, str) or len(set(names)) < len(names):
        raise UserError(f"names={names!r}: give a tuple of names, each once")
    return tuple(names)
