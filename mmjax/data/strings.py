"""The column of texts as they are written: what evaluators compare with, and no model reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.kinds import About, Arrays, Lost
from mmjax.data.types import Record

END, NONE = 0xFE, 0xFF  # bytes that UTF-8 never has: a text's end, and what is no text


@dataclasses.dataclass(frozen=True)
class Strings:
    """The texts of an example, letter for letter: [B, rows, length] uint8, which `strings` reads.

    A record holds a text, or several in a list; None and [] are none. Tokens would lose case, unknown words and what is cut:
    scores of written texts are of these.

    Attributes:
      rows: at most so many texts an example.
      length: at most so many bytes of UTF-8 a text, its end among them. More is refused, not cut.
      of: another key of the records, whose texts these are: `columns={"references": Strings(of="text")}` keeps all captions of
        an image, of which `text` draws one. Where a transform has written the text anew, it is that. "" for the column's own.
    """

    rows: int = setting(least=1, default=5)
    length: int = setting(least=1, default=512)
    of: str = ""

    def build(self, key: str, value: Any, about: About, first: Record) -> StringsColumn:
        return StringsColumn(key, self.rows, self.length)


class StringsColumn:
    """See `Strings`."""

    def __init__(self, key: str, rows: int, length: int) -> None:
        self.key, self.rows, self.length = key, rows, length

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        bytes_BRL = np.full((len(values), self.rows, self.length), NONE, np.uint8)
        for row, value in zip(bytes_BRL, values, strict=True):
            texts = () if value is None else value if isinstance(value, list | tuple) else (value,)
            if len(texts) > self.rows:
                raise UserError(f"rows={self.rows}: a record has {len(texts)} of {self.key}")
            for place, text in zip(row, texts, strict=False):
                if isinstance(text, bool) or not isinstance(text, str | int | np.integer):
                    raise UserError(f"{self.key}={text!r}: a text is a string")
                data = str(text).encode(errors="surrogatepass")
                if len(data) >= self.length:
                    raise UserError(f"length={self.length}: {self.key}={str(text)[:40]!r}... takes {len(data) + 1} bytes")
                place[: len(data)] = np.frombuffer(data, np.uint8)
                place[len(data)] = END
        return {self.key: bytes_BRL}, Lost()


def strings(bytes_BRL: np.ndarray) -> list[tuple[str, ...]]:
    """The texts of each example of a `Strings` column."""
    return [tuple(_text(one) for one in row if one[0] != NONE) for row in bytes_BRL]


def _text(one_L: np.ndarray) -> str:
    return one_L.tobytes().partition(bytes((END,)))[0].decode(errors="surrogatepass")
