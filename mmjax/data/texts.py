"""The column of a text: token ids."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError, nearest
from mmjax.data.kinds import About, Arrays, Lost
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import BadRecordError, Record, Records
from mmjax.data.words import SEGMENTERS, WORDS, word_numbers

REMEMBERED = 1 << 16  # texts whose tokens are kept; captions repeat, and a lookup is fifty times faster than the tokenizer
Row = tuple[np.ndarray, np.ndarray, np.ndarray, bool, int, np.ndarray]  # ids, mask, segments [T]; truncated; unknown; words


@dataclasses.dataclass(frozen=True)
class Text:
    """Token ids of a text: `KEY` and `KEY_mask` [B, T], and `KEY_segments` where records have a second text `KEY_pair`.

    A tuple of texts is several captions, of which one is drawn each time.

    Attributes:
      tokenizer: the name of one of the experiment's `tokenizers`; "" for its `tokenizer`.
      max_length: T; 0 for that of the data.
      words: adds `KEY_words` [B, T] int32, the number of the word that a token is of, -1 for none (`MaskedLM.whole_words`):
        `tokenizer`, as it parts words (at spaces and punctuation; each Chinese character is one), or `jieba`, Chinese words.
    """

    tokenizer: str = ""
    max_length: int = setting(least=0, default=0)
    words: str = ""

    def build(self, key: str, value: Any, about: About, first: Record) -> TextColumn:
        if self.tokenizer not in about.tokenizers:
            if not self.tokenizer:
                raise UserError(f"the records have {key}, and no tokenizer was given")
            known = ", ".join(name for name in about.tokenizers if name) or "none"
            raise UserError(f"tokenizer={self.tokenizer!r}: the experiment's tokenizers are {known}")
        pairs = f"{key}_pair" in first
        if self.words not in ("", *WORDS):
            raise UserError(f"words={self.words!r}{nearest(self.words, WORDS)}: use one of {', '.join(WORDS)}, or none")
        if self.words and pairs:
            raise UserError(
                f"words={self.words!r}: the words of two texts, {key} and {key}_pair, are not told apart; leave it away"
            )
        return TextColumn(key, about.tokenizers[self.tokenizer], self.max_length or about.max_length, pairs, self.words)


class TextColumn:
    """See `Text`.

    Attributes:
      texts: its key -> its tokenizer and length.
      padding: the keys that hold a value a token -> what they hold where there is none.
    """

    modality = True  # what an encoder reads

    def __init__(self, key: str, tokenizer: Tokenizer, max_length: int, pairs: bool, words: str = "") -> None:
        self.key, self.tokenizer, self.max_length, self.pairs, self.words = key, tokenizer, max_length, pairs, words
        self.texts = {key: (tokenizer, max_length)}
        self.padding = {key: tokenizer.pad_id, f"{key}_mask": 0} | ({f"{key}_segments": 0} if pairs else {})
        self.padding |= {f"{key}_words": -1} if words else {}
        self.taken = (f"{key}_pair",) if pairs else ()
        self._remembered: dict[tuple[str, str | None], Row] = {}

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        pairs = [record.get(f"{self.key}_pair") for record in records]
        rows = self._tokens([(self._text(text), pair) for text, pair in zip(values, pairs, strict=True)])
        arrays = {self.key: np.stack([row[0] for row in rows]), f"{self.key}_mask": np.stack([row[1] for row in rows])}
        if self.pairs:
            arrays[f"{self.key}_segments"] = np.stack([row[2] for row in rows])
        if self.words:
            arrays[f"{self.key}_words"] = np.stack([row[5] for row in rows])
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
            found = self._encoded([text for text, _ in new], pairs)
            unknown = self.tokenizer.unknown(found["ids"], found["mask"])
            flags = (found["truncated"].tolist(), unknown.tolist())
            parts = (found["ids"], found["mask"], found["segments"], *flags, found["words"])
            rows |= dict(zip(new, zip(*parts, strict=True), strict=True))
            if len(self._remembered) + len(new) > REMEMBERED:
                self._remembered.clear()
            self._remembered |= {key: rows[key] for key in new}
        return [rows[key] for key in keys]

    def _encoded(self, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, np.ndarray]:
        if not self.words:
            found = self.tokenizer.encode(texts, self.max_length, pairs)
            return {**found, "words": np.full((len(texts), 1), -1, np.int32)}
        found = self.tokenizer.encode_places(texts, self.max_length)
        if segment := SEGMENTERS.get(self.words):
            numbers = [word_numbers(text, places, segment) for text, places in zip(texts, found["places"], strict=True)]
            found["words"] = np.stack(numbers)
        return {**found, "segments": np.zeros_like(found["ids"])}


def text_group(text: str) -> np.ndarray:
    """[2] int32, equal for equal texts alone: 62 bits of a hash, of which two differ in all but one of 10^18 pairs."""
    return np.frombuffer(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), np.int32) & 0x7FFFFFFF


def column_texts(records: Records, key: str) -> Iterator[str]:
    """The texts of one key of the records; a source that can say them without reading its images has `texts_of(key)`."""
    if hasattr(records, "texts_of"):
        yield from records.texts_of(key)
        return
    for index in range(len(records)):
        with contextlib.suppress(BadRecordError):
            text = records[index].get(key) or ()
            yield from (text,) if isinstance(text, str) else (str(one) for one in text)
