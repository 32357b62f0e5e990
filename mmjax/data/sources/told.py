"""What records of files can tell without reading their images."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator

from mmjax.data.fields import Reading, strings_of
from mmjax.data.sources.prepared import Kept
from mmjax.data.types import BadRecordError, Record

TELLING = ("label", "text", "text_pair")


class ToldRecords(abc.ABC):
    """The part of records that needs no image; it asks for some keys of a record, and for what identifies it.

    Attributes:
      reading: what makes records of examples.
    """

    reading: Reading | Kept

    @property
    def classes(self) -> tuple[str, ...]:
        return self.reading.names

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def some(self, index: int, keys: set[str]) -> Record:
        """Those of the keys that a record has. Raises `BadRecordError` where they cannot be read."""

    @abc.abstractmethod
    def identity(self, index: int, readable: bool) -> str:
        """A text that no other record has, and that it has on every machine."""

    def described(self, index: int) -> tuple[str, int, tuple[str, ...]]:
        """See `types.Records`."""
        try:
            record = self.some(index, set(TELLING))
        except BadRecordError:
            return self.identity(index, False), -1, ()
        texts = (*strings_of(record.get("text")), *strings_of(record.get("text_pair")))
        return self.identity(index, True), record.get("label", -1), texts

    def texts(self) -> Iterator[str]:
        """Record by record, each read once; those that cannot be read are passed over."""
        keys = {key for key in ("text", "text_pair") if self.reading.has(key)}
        for index in range(len(self) if keys else 0):
            with contextlib.suppress(BadRecordError):
                record = self.some(index, keys)
                yield from (*strings_of(record.get("text")), *strings_of(record.get("text_pair")))

    def texts_of(self, key: str) -> Iterator[str]:
        """The texts of one key; those that cannot be read are passed over."""
        if not self.reading.has(key):
            return
        for index in range(len(self)):
            with contextlib.suppress(BadRecordError):
                yield from strings_of(self.some(index, {key}).get(key))
