"""The column of a text: token ids."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.kinds import About, Arrays, Lost
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Record

REMEMBERED = 1 << 16  # texts whose tokens are kept; captions repeat, and a lookup is fifty times faster than the tokenizer
Row = tuple[np.ndarray, np.ndarray, np.ndarray, bool, int]  # ids [T], mask [T], segments [T], truncated, unknown


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
        return TextColumn(key, about.tokenizers[self.tokenizer], self.max_length or about.max_length, f"{key}_pair" in first)


class TextColumn:
    """See `Text`.

    Attributes:
      texts: its key -> its tokenizer and length.
      padding: the keys that hold a value a token -> what they hold where there is none.
    """

    def __init__(self, key: str, tokenizer: Tokenizer, max_length: int, pairs: bool) -> None:
        self.key, self.tokenizer, self.max_length, self.pairs = key, tokenizer, max_length, pairs
        self.texts = {key: (tokenizer, max_length)}
        self.padding = {key: tokenizer.pad_id, f"{key}_mask": 0} | ({f"{key}_segments": 0} if pairs else {})
        self.taken = (f"{key}_pair",) if pairs else ()
        self._remembered: dict[tuple[str, str | None], Row] = {}

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        pairs = [record.get(f"{self.key}_pair") for record in records]
        rows = self._tokens([(self._text(text), pair) for text, pair in zip(values, pairs, strict=True)])
        arrays = {self.key: np.stack([row[0] for row in rows]), f"{self.key}_mask": np.stack([row[1] for row in rows])}
        if self.pairs:
            arrays[f"{self.key}_segments"] = np.stack([row[2] for row in rows])
        tokens = int(arrays[f"{self.key}_mask"].sum())
        return arrays, Lost(sum(row[3] for row in rows), sum(row[4] for row in rows), tokens)

    def _text(self, value: Any) -> str:
        """A text; a number is written out, which a table may hold in a column of titles."""
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
            raise UserError(f"{self.key}={value!r}: a text is a string")
        return str(value)

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


def text_group(text: str) -> np.ndarray:
    """[2] int32, equal for equal texts alone: 62 bits of a hash, of which two differ in all but one of 10^18 pairs."""
    return np.frombuffer(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), np.int32) & 0x7FFFFFFF
