"""The kinds of columns: how one key of a record becomes arrays of a batch. A new one is a spec and its column here, a line in
the table, a test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError, nearest
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Record

SHOWN = 80  # letters of a value in a complaint
INT32, FLOAT32, STRING, OTHER = "int32", "float32", "text", "other"
Kind = tuple[tuple[int, ...], str] | str
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Lost:
    """What texts and sounds lost on their way to a batch.

    Attributes:
      truncated: texts that were cut.
      unknown: tokens that stand for words or characters which the tokenizer does not know.
      tokens: all tokens.
      words: words with a tag that have no token: cut, or nothing to the tokenizer.
      answers: answers that no window of their passage holds whole.
      letters: answers that begin or end between a letter and its marks.
      cut_sounds, cut_seconds: sounds that were cut, and how much of them is left out.
      silent, clipped: sounds in which nothing is to be heard, and of which the loud parts are cut off (`sound.Heard`).
    """

    truncated: int = 0
    unknown: int = 0
    tokens: int = 0
    words: int = 0
    answers: int = 0
    letters: int = 0
    cut_sounds: int = 0
    cut_seconds: float = 0.0
    silent: int = 0
    clipped: int = 0

    def __add__(self, other: Lost) -> Lost:
        return Lost(*(getattr(self, one.name) + getattr(other, one.name) for one in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class About:
    """What columns need of the data: tokenizers by name, the length of texts that name none, the names of `label`."""

    tokenizers: Mapping[str, Tokenizer]
    max_length: int
    classes: tuple[str, ...] = ()


class Column(Protocol):
    """The values of a key, one a record -> arrays [B, ...] by batch key, and what was lost. Raises `UserError`.

    Arrays of records may come as one array [B, ...] that is the batch's own.
    """

    def __call__(self, values: Sequence[Any] | np.ndarray, records: Sequence[Record]) -> tuple[Arrays, Lost]: ...


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


def kind(value: Any) -> Kind:
    """Shape and dtype of a record's value, for comparing records."""
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype)
    if isinstance(value, int | np.integer):
        return (), INT32
    if isinstance(value, float | np.floating):
        return (), FLOAT32
    return ((), STRING) if isinstance(value, str) else OTHER


def _shown(value: Any) -> str:
    """The beginning of a value, in one line."""
    said = " ".join(repr(value).split())
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}..."


def _different(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes. Raises `UserError` for one text, or a name that stands twice."""
    if isinstance(names, str) or len(set(names)) < len(names):
        raise UserError(f"names={names!r}: give a tuple of names, each once")
    return tuple(names)


def is_left_out(value: Any) -> bool:
    """Whether a batch holds nothing of such a value unless a spec says how."""
    return kind(value) in (((), STRING), OTHER)


def written(found: Kind) -> str:
    """A kind in words."""
    if isinstance(found, str):
        return found
    shape, dtype = found
    return f"{'x'.join(map(str, shape))} {dtype}" if shape else f"one {dtype}"


def whole(key: str, value: Any) -> int:
    """A whole number that an int32 holds. Raises `UserError` for any other."""
    if not -(2**31) <= int(value) < 2**31:
        raise UserError(f"{key}={int(value)} does not fit into 32 bits: numbers go from -2^31 to 2^31 - 1; number them anew")
    return int(value)
