"""The contracts of the data room: records, where they come from, and what may be done to them.

A record is one example on its way to a batch, a plain dict. Every key is optional, as long as there is something:

| key         | value                                                                                              |
|-------------|----------------------------------------------------------------------------------------------------|
| `image`     | uint8 [H, W, 3], always RGB, as a source gives it; float32 [H, W, 3] once `Normalise` has run      |
| `audio`     | a `sound.Recording` as a source gives it; float32 [n] once the column `Audio` has read it, before transforms |
| `video`     | a `clip.Clip` or uint8 [n, H, W, 3] as a source gives it; [T, H, W, 3] once the column `Video` has read it |
| `text`      | str; from a source also a tuple of str, several captions of which the pipeline draws one           |
| `text_pair` | str, the second of two texts                                                                       |
| `label`     | int, the class; -1 where it has none                                                               |
| `group`     | int in [0, 2^31), equal for examples that are each other's positives; for classified data the label |
| `name`      | str, the name of the class                                                                         |

A label map is int32 [H, W] under a key of the user's own. Any other array, int or float that a source or a transform adds
becomes a batch key of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

Record = dict[str, Any]


class BadRecordError(Exception):
    """A record that cannot be read: the pipeline counts it and takes another one in its place.

    Attributes:
      path: the file, or another name by which the user finds the record.
      reason: one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """Some of the records, which come as often as their weight says.

    Attributes:
      name: its own among the shares: the order of its records depends on it.
      weight: above 0; how often, against the other shares.
      places: the indices of its records, consecutive ones as a range.
      records: those whose own order these are in; None for one of the places alone.
    """

    name: str
    weight: float
    places: range | np.ndarray
    records: Records | None = None


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Windows of records that are numbered without an end: each turn of `size` of them is cut into as few windows of at most so
    many as there can be, of lengths that differ by one at most. None goes on into the next turn.

    Attributes:
      size: records of a turn.
      window: records of a window, at most.
    """

    size: int
    window: int

    @property
    def count(self) -> int:
        """Windows of a turn."""
        return -(-self.size // self.window)

    def of(self, number: Any) -> Any:
        """The window of a record, or of several."""
        return number // self.size * self.count + number % self.size * self.count // self.size

    def start(self, window: int) -> int:
        """The number of its first record."""
        turn, own = divmod(window, self.count)
        return turn * self.size - (-own * self.size // self.count)


class Records(Protocol):
    """Random access to the examples of one split; safe to share between threads and to pickle.

    `__getitem__` raises `BadRecordError` for an example that cannot be read. One that can tell of an example without reading
    its image has a method `described(index) -> (identity, label, texts)`: a text that no other example has and that it has on
    every machine (a path below the root), its class, its captions. `Subset` chooses by it. One whose `image` is a file has a
    method `encoded(index) -> bytes | None`, what the file holds (raises OSError). One that storage holds in blocks has a method
    `blocks()`, the size of each, int64, in the order of the records; a mixture has `shares()`, a sequence of `Share` (see
    `data.turns`); one whose records are kept together `lists()`, a `turns.Lists`, and gives their number under its `key`. One
    that can tell the values of a key without reading its images has `values_of(key)`.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in label order, () if there are none."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...

    def texts(self) -> Iterator[str]:
        """Its own captions, to train a tokenizer on; may be empty."""
        ...

    def fingerprint(self) -> str:
        """A hash of exactly which examples the split holds."""
        ...


class Source(Protocol):
    """A frozen dataclass that says where examples come from."""

    def build(self) -> Records:
        """Open it. Raises `UserError` for a missing path, an empty split, an unknown split or a malformed file."""
        ...


class Transform(Protocol):
    """A frozen dataclass that turns one record into another, drawing only from `rng`.

    `records` is the whole split, for transforms that need another example. A transform that writes texts of its own may have a
    method `texts(records) -> Iterator[str]` that yields all it can write, for the tokenizer to be trained on. One that never
    draws may say so, `random: ClassVar[bool] = False`: what it made of a record can then be kept. One that writes tokens has a
    method `check_tokenizer(tokenizer)`, which raises `UserError` where these are none of its.
    """

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record: ...
