"""What every kind of column shares: how one key of a record becomes arrays of a batch. A new kind is a spec and its column in a
file of its own, a line in `columns.COLUMNS`, a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Record

INT32, FLOAT32, STRING, OTHER = "int32", "float32", "text", "other"
Kind = tuple[tuple[int, ...], str] | str
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Lost:
    """What texts, sounds and videos lost on their way to a batch.

    Attributes:
      truncated: texts that were cut.
      unknown: tokens that stand for words or characters which the tokenizer does not know.
      tokens: all tokens.
      words: words with a tag that have no token: cut, or nothing to the tokenizer.
      answers: answers that no window of their passage holds whole.
      letters: answers that begin or end between a letter and its marks.
      cut_sounds, cut_seconds: sounds that were cut, and how much of them is left out.
      silent, clipped: sounds in which nothing is to be heard, and of which the loud parts are cut off (`sound.Heard`).
      short_videos, cut_videos: videos that had too few frames, and of which only a part was read.
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
    short_videos: int = 0
    cut_videos: int = 0

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
