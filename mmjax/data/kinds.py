"""The kinds of columns: how one key of a record becomes arrays of a batch. A new one is a spec and its column here, a line in
the table, a test."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError, nearest
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Record

REMEMBERED = 1 << 16  # texts whose tokens are kept; captions repeat, and a lookup is fifty times faster than the tokenizer
INT32, FLOAT32, STRING, OTHER = "int32", "float32", "text", "other"
Kind = tuple[tuple[int, ...], str] | str
Arrays = dict[str, np.ndarray]
Row = tuple[np.ndarray, np.ndarray, np.ndarray, bool, int]  # ids [T], mask [T], segments [T], truncated, unknown


@dataclasses.dataclass(frozen=True)
class Lost:
    """What texts lost on their way to a batch.

    Attributes:
      truncated: texts that were cut.
      unknown: tokens that stand for words or characters which the tokenizer does not know.
      tokens: all tokens.
    """

    truncated: int = 0
    unknown: int = 0
    tokens: int = 0

    def __add__(self, other: Lost) -> Lost:
        return Lost(self.truncated + other.truncated, self.unknown + other.unknown, self.tokens + other.tokens)


@dataclasses.dataclass(frozen=True)
class About:
    """What columns need of the data: tokenizers by name, the length of texts that name none, the names of `label`."""

    tokenizers: Mapping[str, Tokenizer]
    max_length: int
    classes: tuple[str, ...] = ()


class Column(Protocol):
    """The values of a key, one a record -> arrays [B, ...] by batch key, and what was lost. Raises `UserError`."""

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]: ...


@dataclasses.dataclass(frozen=True)
class Text:
    """Token ids of a text: `KEY` and `KEY_mask` [B, T], and `KEY_segments` where records have a second text `KEY_pair`.

    A tuple of texts is several captions, of which one is drawn each time.

    Attributes:
      tokenizer: the name of one of the experiment's `tokenizers`; "" for its `tokenizer`.
      max_length: T; 0 for that of the data.
    """

    tokenizer: str = ""
    max_length: int = setting(least=0, default=0)

    def build(self, key: str, value: Any, about: About, first: Record) -> TextColumn:
        if self.tokenizer not in about.tokenizers:
            if not self.tokenizer:
                raise UserError(f"the records have {key}, and no tokenizer was given")
            known = ", ".join(name for name in about.tokenizers if name) or "none"
            raise UserError(f"tokenizer={self.tokenizer!r}: the experiment's tokenizers are {known}")
        if not isinstance(value, str | tuple):
            raise UserError(f"a text is a string, found {value!r}")
        return TextColumn(key, about.tokenizers[self.tokenizer], self.max_length or about.max_length, f"{key}_pair" in first)


class TextColumn:
    """See `Text`."""

    def __init__(self, key: str, tokenizer: Tokenizer, max_length: int, pairs: bool) -> None:
        self.key, self.tokenizer, self.max_length, self.pairs = key, tokenizer, max_length, pairs
        self.taken = (f"{key}_pair",) if pairs else ()
        self._remembered: dict[tuple[str, str | None], Row] = {}

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        rows = self._tokens([(text, record.get(f"{self.key}_pair")) for text, record in zip(values, records, strict=True)])
        arrays = {self.key: np.stack([row[0] for row in rows]), f"{self.key}_mask": np.stack([row[1] for row in rows])}
        if self.pairs:
            arrays[f"{self.key}_segments"] = np.stack([row[2] for row in rows])
        tokens = int(arrays[f"{self.key}_mask"].sum())
        return arrays, Lost(sum(row[3] for row in rows), sum(row[4] for row in rows), tokens)

    def _tokens(self, keys: Sequence[tuple[str, str | None]]) -> list[Row]:
        """One row for each (text, pair); texts met before are not tokenized again."""
        rows = {key: row for key in keys if (row := self._remembered.get(key)) is not None}
        new = list(dict.fromkeys(key for key in keys if key not in rows))
        if new:
            pairs = [pair or "" for _, pair in new] if self.pairs else None
            found = self.tokenizer.encode([text for text, _ in new], self.max_length, pairs)
            unknown = self.tokenizer.unknown(found["ids"], found["mask"])
            parts = (found["ids"], found["mask"], found["segments"], found["truncated"].tolist(), unknown.tolist())
            rows |= dict(zip(new, zip(*parts, strict=True), strict=True))
            if len(self._remembered) + len(new) > REMEMBERED:
                self._remembered.clear()
            self._remembered |= {key: rows[key] for key in new}
        return [rows[key] for key in keys]


@dataclasses.dataclass(frozen=True)
class Class:
    """The class of an example, [B] int32: a whole number, or a name where there are names. Negative, None and "" are none: -1.

    Also an array of classes an example, a label map [H, W] for instance: [B, H, W] int32.

    Attributes:
      names: of the classes, in the order of their labels; () for those of the source, where it says them of `label`.
    """

    names: tuple[str, ...] = ()

    def build(self, key: str, value: Any, about: About, first: Record) -> ClassColumn:
        return ClassColumn(key, self.names or (about.classes if key == "label" else ()))


class ClassColumn:
    """See `Class`.

    Attributes:
      names: as the model knows them: `match` may put them into another order than the source's.
      limit: labels from here up are refused; None for no limit.
    """

    def __init__(self, key: str, names: tuple[str, ...]) -> None:
        self.key, self.names = key, names
        self.limit: int | None = len(names) or None
        self._rank = {name: label for label, name in enumerate(names)}
        self._own = names
        self._moved: np.ndarray | None = None

    def match(self, names: tuple[str, ...]) -> None:
        """Give labels as places among `names`, which hold all of the column's own."""
        assert set(self._own) <= set(names)
        self._moved = np.array([names.index(name) for name in self._own], np.int32)
        self.names = names

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
        for value in values:
            self.label(value.max(initial=-1))
        return np.maximum(np.stack(values).astype(np.int32), -1)

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
        if self.limit is not None and label >= self.limit:
            raise UserError(f"{self.key}={label}: there are {self.limit} classes, 0 to {self.limit - 1}")
        return max(label, -1)


@dataclasses.dataclass(frozen=True)
class Classes:
    """Any number of classes an example, multi-hot: [B, C] float32, 1 where an example has the class.

    A record holds a list of names or of whole numbers; None where nothing is known of an example, whose row is then -1.

    Attributes:
      names: of the classes, in the order of their columns.
    """

    names: tuple[str, ...]

    def build(self, key: str, value: Any, about: About, first: Record) -> ClassesColumn:
        if not self.names or isinstance(self.names, str):
            raise UserError(f"names={self.names!r}: give the classes that {key} may hold")
        return ClassesColumn(key, tuple(self.names))


class ClassesColumn:
    """See `Classes`."""

    def __init__(self, key: str, names: tuple[str, ...]) -> None:
        self.key, self.names = key, names
        self._one = ClassColumn(key, names)

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        rows = np.zeros((len(values), len(self.names)), np.float32)
        for row, value in zip(rows, values, strict=True):
            if value is None:
                row[:] = -1.0
                continue
            if isinstance(value, str) or not isinstance(value, list | tuple | np.ndarray):
                raise UserError(f"{self.key}={value!r}: give a list of classes, for instance [{self.names[0]!r}]")
            for one in value:
                if (label := self._one.label(one)) >= 0:
                    row[label] = 1.0
        return {self.key: rows}, Lost()


@dataclasses.dataclass(frozen=True)
class Number:
    """A number an example, [B] float32: (value - mean) / deviation. None, "" and what is no number are NaN, which never counts.

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
            return float(value)
        except (TypeError, ValueError):
            raise UserError(f"{self.key}={value!r} is not a number") from None


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of one shape an example, or a number: [B, ...].

    Attributes:
      dtype: `float32`, `int32` or `bool`; "" for the record's own.
      rows: the first dim, for arrays of different lengths (boxes, points): shorter ones are filled up with -1, longer ones
        refused. 0 for arrays that all have one.
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

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        if self.dtype == "int32":
            for value in values:
                for number in (value,) if np.ndim(value) == 0 else (np.min(value, initial=0), np.max(value, initial=0)):
                    whole(self.key, number)
        arrays = [np.asarray(value, self.dtype or None) for value in values]
        if self.rows:
            arrays = [self._filled(array) for array in arrays]
        if any(array.shape != arrays[0].shape for array in arrays):
            odd = next(array.shape for array in arrays if array.shape != arrays[0].shape)
            raise UserError(f"{self.key}: shapes {arrays[0].shape} and {odd} in one batch; rows=N fills the first dim up")
        return {self.key: np.stack(arrays)}, Lost()

    def _filled(self, array: np.ndarray) -> np.ndarray:
        if array.ndim < 1 or len(array) > self.rows:
            raise UserError(f"rows={self.rows}: a record has {len(array) if array.ndim else 'one number'} of {self.key}")
        filled = np.full((self.rows, *array.shape[1:]), -1, array.dtype)
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


COLUMNS = {"text": Text, "pixels": Pixels, "class": Class, "classes": Classes, "number": Number, "array": Array}


def kind(value: Any) -> Kind:
    """Shape and dtype of a record's value, for comparing records."""
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype)
    if isinstance(value, int | np.integer):
        return (), INT32
    if isinstance(value, float | np.floating):
        return (), FLOAT32
    return ((), STRING) if isinstance(value, str) else OTHER


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


def text_group(text: str) -> np.ndarray:
    """[2] int32, equal for equal texts alone: 62 bits of a hash, of which two differ in all but one of 10^18 pairs."""
    return np.frombuffer(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), np.int32) & 0x7FFFFFFF
