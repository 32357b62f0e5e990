"""Two entities of a text between markers, for the relation that the first has to the second."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.types import BadRecordError, Record, Records

Marked = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Markers:
    """Write `text` with its two entities between markers: `[E1] Anna [/E1] lives in [E2] Rome [/E2] .` (Baldini Soares 2019,
    section 3.2, "entity markers"). A head that reads the first token says the relation, which goes to HuggingFace as a class
    that classifies texts.

    A record holds under `head` and `tail` the first character of each and the one after its last. The markers have to be
    tokens: `WordPiece(special=MARKERS)`, or `Pretrained(path, special=("[unused0]", ...))` with `tokens` to match.

    Attributes:
      head, tail: the keys of the two places.
      tokens: before the head and after it, before the tail and after it.
    """

    head: str = "head"
    tail: str = "tail"
    tokens: tuple[str, str, str, str] = ("[E1]", "[/E1]", "[E2]", "[/E2]")

    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.tokens) != 4 or len(set(self.tokens)) < 4 or not all(self.tokens):
            raise UserError(f"Markers.tokens={self.tokens!r}: give four different ones, around the head and around the tail")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        for key in ("text", self.head, self.tail):
            if key not in record:
                raise UserError(f"transforms: Markers needs {key!r}; a record's keys are {', '.join(record)}")
        text = record["text"]
        if not isinstance(text, str):
            raise BadRecordError(_where(record), f"text={text!r}"[:80] + ": one text is marked, not several")
        head, tail = (self._place(record, key, text) for key in (self.head, self.tail))
        if head[0] < tail[1] and tail[0] < head[1]:
            raise BadRecordError(_where(record), f"{self.head}={list(head)} and {self.tail}={list(tail)} overlap")
        rest = {key: value for key, value in record.items() if key not in (self.head, self.tail)}
        return {**rest, "text": mark(text, head, tail, self.tokens)}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises UserError where a marker would be cut to pieces."""
        for token in self.tokens:
            if tokenizer.huggingface.tokenize(token) != [token]:
                raise UserError(
                    f"Markers.tokens: {token!r} is no token of the tokenizer: give it {type(self).__name__}' tokens as special="
                    f"({', '.join(map(repr, self.tokens))})"
                )

    def texts(self, records: Records) -> Iterator[str]:
        """None of its own: the source's have all words, and the markers are tokens already."""
        return iter(())

    def _place(self, record: Record, key: str, text: str) -> Marked:
        place = record[key]
        whole = isinstance(place, list | tuple | np.ndarray) and len(place) == 2 and all(map(_whole, place))
        if not whole:
            raise BadRecordError(
                _where(record), f"{key}={place!r}"[:80] + ": give its first character and the one after its last"
            )
        start, end = (int(one) for one in place)
        if not 0 <= start < end <= len(text):
            why = "is swapped or empty" if end <= start else f"lies outside of the text's {len(text)} characters"
            raise BadRecordError(_where(record), f"{key}={[start, end]} {why}")
        return start, end


def mark(text: str, head: Marked, tail: Marked, tokens: tuple[str, str, str, str]) -> str:
    """A text with markers and a space on each side of them, which a tokenizer of words takes away."""
    ends = [(head, *tokens[:2]), (tail, *tokens[2:])]
    for (start, end), before, after in sorted(ends, reverse=True):
        text = f"{text[:start]}{before} {text[start:end]} {after}{text[end:]}"
    return text


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _where(record: Record) -> str:
    """By what a record is found."""
    return str(record.get("id") or repr(str(record["text"])[:40]))
