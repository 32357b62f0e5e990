"""Records to the arrays of a batch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Record

REMEMBERED = 1 << 16  # texts whose tokens are kept; captions repeat, and a lookup is fifty times faster than the tokenizer
TEXTS = ("text", "text_pair")
INT32, FLOAT32, STRING = np.dtype(np.int32), np.dtype(np.float32), np.dtype(str)
Kind = tuple[tuple[int, ...], np.dtype]
Row = tuple[np.ndarray, np.ndarray, np.ndarray, bool]  # ids [T], mask [T], segments [T], truncated


class Columns:
    """Stacks records that look like the first one: the same keys, arrays of the same shape and dtype.

    Arrays are stacked, ints become int32, floats float32, `text` and `text_pair` become `text`, `text_mask` and, if there are
    pairs, `text_segments`; other strings are left out. A record without `group` gets one from its text (a 31-bit CRC-32), or
    without text from its label.
    """

    def __init__(self, first: Record, tokenizer: Tokenizer | None, max_length: int) -> None:
        """Take `first`, a record as the transforms leave it, as the model of all.

        Raises:
          UserError: text without a tokenizer, an image that is still uint8, or nothing that a batch could hold.
        """
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.kinds = _kinds(first)
        self._remembered: dict[tuple[str, str | None], Row] = {}
        image = self.kinds.get("image")
        if image is not None and image[1] == np.uint8:
            raise UserError("transforms: the image is still uint8 at the end; add Normalise() as the last of the image's")
        if "text" in self.kinds and tokenizer is None:
            raise UserError("the records have text, and no tokenizer was given")
        if not self.kinds:
            raise UserError(f"source: a record has nothing for a batch to hold; its keys are {', '.join(first) or 'none'}")

    def __call__(self, records: Sequence[Record]) -> tuple[dict[str, np.ndarray], int]:
        """The batch, and how many texts in it were truncated. Raises `UserError` for a record unlike the first."""
        for record in records:
            if _kinds(record) != self.kinds:
                raise UserError(self._difference(record))
        batch: dict[str, np.ndarray] = {}
        for key, (shape, dtype) in self.kinds.items():
            if key not in TEXTS:
                values = [record[key] for record in records]
                batch[key] = np.stack(values) if shape else np.array(values, dtype)
        if "group" not in batch and ("text" in self.kinds or "label" in self.kinds):
            batch["group"] = np.array([_group(record) for record in records], np.int32)
        truncated = 0
        if "text" in self.kinds:
            rows = self._tokens([(record["text"], record.get("text_pair")) for record in records])
            batch["text"] = np.stack([row[0] for row in rows])
            batch["text_mask"] = np.stack([row[1] for row in rows])
            if "text_pair" in self.kinds:
                batch["text_segments"] = np.stack([row[2] for row in rows])
            truncated = sum(row[3] for row in rows)
        return batch, truncated

    def _tokens(self, keys: Sequence[tuple[str, str | None]]) -> list[Row]:
        """One row for each (text, pair); texts met before are not tokenized again."""
        assert self.tokenizer is not None
        rows = {key: row for key in keys if (row := self._remembered.get(key)) is not None}
        new = list(dict.fromkeys(key for key in keys if key not in rows))
        if new:
            pairs = [pair or "" for _, pair in new] if "text_pair" in self.kinds else None
            found = self.tokenizer.encode([text for text, _ in new], self.max_length, pairs)
            made = zip(found["ids"], found["mask"], found["segments"], found["truncated"].tolist(), strict=True)
            rows |= dict(zip(new, made, strict=True))
            if len(self._remembered) + len(new) > REMEMBERED:
                self._remembered.clear()
            self._remembered |= {key: rows[key] for key in new}
        return [rows[key] for key in keys]

    def _difference(self, record: Record) -> str:
        """One line on how a record is unlike the first."""
        kinds = _kinds(record)
        for key in sorted(kinds.keys() | self.kinds.keys()):
            here, first = kinds.get(key), self.kinds.get(key)
            if here == first:
                continue
            if here is None or first is None:
                return f"source: a record {'lacks' if here is None else 'has'} {key!r}, unlike the first record"
            tip = "; add Resize(size) or RandomCrop(size) to transforms" if key == "image" else ""
            return f"{key}: a record's is {_written(here)}, the first record's {_written(first)}{tip}"
        raise AssertionError("called for a record that is like the first")


def _kinds(record: Record) -> dict[str, Kind]:
    """Shape and dtype of what the batch takes from a record."""
    kinds: dict[str, Kind] = {}
    for key, value in record.items():
        if isinstance(value, np.ndarray):
            kinds[key] = (value.shape, value.dtype)
        elif isinstance(value, int | np.integer):
            kinds[key] = ((), INT32)
        elif isinstance(value, float | np.floating):
            kinds[key] = ((), FLOAT32)
        elif key in TEXTS:
            kinds[key] = ((), STRING)
    return kinds


def _written(kind: Kind) -> str:
    shape, dtype = kind
    name = "text" if dtype == STRING else str(dtype)
    return f"{'x'.join(map(str, shape))} {name}" if shape else f"one {name}"


def _group(record: Record) -> int:
    return zlib.crc32(record["text"].encode()) & 0x7FFFFFFF if "text" in record else record["label"]
