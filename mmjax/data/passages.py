"""Questions about passages as token ids; a long passage comes in windows that overlap."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.letters import letter_end
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import BadRecordError, Record, Records

BATCH = 1024  # texts whose tokens are counted at once


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a question and a passage become windows.

    Attributes:
      max_length: tokens of a window, with the question and the special tokens.
      stride: tokens of the passage that neighbouring windows share.
      max_question: tokens of a question; the rest of a longer one is cut.
    """

    max_length: int
    stride: int
    max_question: int

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises UserError where a window would be no longer than what it shares with the next, or nothing stands before the
        question, by which a model says that there is no answer."""
        special = tokenizer.huggingface.num_special_tokens_to_add(pair=True)
        if tokenizer.begins or tokenizer.ends:
            raise UserError(
                "tokenizer: it writes no first token of its own ([CLS]), which stands for no answer; use BERT's kind"
            )
        room = self.max_length - special - self.max_question
        if room <= self.stride:
            raise UserError(
                f"max_length={self.max_length}: beside max_question={self.max_question} and {special} special tokens it leaves "
                f"{max(0, room)} for the passage, which must be more than stride={self.stride}"
            )

    def places(self, question: int, passage: int, special: int) -> list[tuple[int, int]]:
        """First token and the one after the last of each window, of a passage and a question of so many tokens. As the library
        `tokenizers` cuts: each begins `room - stride` after the one before, and the last is the first that reaches the end."""
        room = self.max_length - special - min(question, self.max_question)
        last = 0 if passage <= room else -(-(passage - room) // (room - self.stride))
        return [(start, min(start + room, passage)) for start in (n * (room - self.stride) for n in range(last + 1))]


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """What a model reads at once.

    Attributes:
      ids, segments: [n] int32.
      places: [n, 2] int32, a token's first character in the passage and the one after its last, marks of its last letter that
        are of no token among them; -1 for what is not of it.
      words: [n, 2] int32, the same of the word that the token is of.
      cut: whether the question was.
    """

    ids: np.ndarray
    segments: np.ndarray
    places: np.ndarray
    words: np.ndarray
    cut: bool

    def tokens(self, start: int, end: int) -> tuple[int, int] | None:
        """The first and the last token of the characters [start, end), where all of them are in the window: the last token that
        begins no later than they do, and the first that ends no earlier."""
        inside = np.flatnonzero(self.places[:, 0] >= 0)
        if not len(inside) or self.places[inside[0], 0] > start or self.places[inside[-1], 1] < end:
            return None
        first = inside[np.flatnonzero(self.places[inside, 0] <= start)[-1]]
        last = inside[np.flatnonzero(self.places[inside, 1] >= end)[0]]
        return (int(first), int(last)) if first <= last else None


def windows(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], layout: Layout) -> list[list[Window]]:
    """The windows of each (question, passage): `[CLS] question [SEP] part of the passage [SEP]`, or as the tokenizer joins two
    texts. Raises `UserError` for a tokenizer without a fast form."""
    return [_windows(one, layout, pair[1]) for one, pair in zip(tokenizer.encode_pairs(pairs), pairs, strict=True)]


def _windows(one: Any, layout: Layout, context: str) -> list[Window]:
    """`one`: the library's own account of a pair, whose second text is `context`."""
    of = [-1 if number is None else number for number in one.sequence_ids]
    asked, passage = (np.flatnonzero(np.array(of) == number) for number in (0, 1))
    kept = np.setdiff1d(np.arange(len(of)), asked[layout.max_question :])
    first = int(passage[0]) if len(passage) else len(of)  # an empty passage has no place, and no answer
    before, after = kept[kept < first], kept[kept > first + len(passage) - 1]
    ids, segments = (np.array(x, np.int32) for x in (one.ids, one.type_ids))
    places, words = np.full((2, len(of), 2), -1, np.int32)
    begins = [*(one.offsets[token][0] for token in passage.tolist()[1:]), len(context)]
    for token, after_it in zip(passage.tolist(), begins, strict=True):
        start, end = words[token] = one.offsets[token]
        places[token] = (
            start,
            max(end, min(letter_end(context, end), after_it)),
        )  # marks that the tokenizer drops are its letter's
        if (word := one.token_to_word(token)) is not None:
            words[token] = one.word_to_chars(word, 1)
    found = []
    for start, stop in layout.places(len(asked), len(passage), len(of) - len(asked) - len(passage)):
        rows = np.concatenate([before, passage[start:stop], after])
        found.append(Window(ids[rows], segments[rows], places[rows], words[rows], len(asked) > layout.max_question))
    return found


@dataclasses.dataclass(frozen=True)
class Passage:
    """A question about a passage.

    Attributes:
      answers: (first character, text) of each; () where the passage has none.
    """

    question: str
    context: str
    answers: tuple[tuple[int, str], ...]


def passage_of(record: Record, key: str, question: str, context: str, where: str) -> Passage:
    """What a record asks.

    Args:
      key: of the answers: a list of `{"text": ..., "answer_start": ...}`, `{"text": [...], "answer_start": [...]}`, or nothing.

    Raises:
      UserError: it lacks one of the keys.
      BadRecordError: no such answers; one that does not stand where it is said to.
    """
    for name in (key, question, context):
        if name not in record:
            raise UserError(f"{name!r}: a record lacks it; its keys are {', '.join(record)}")
    asked, passage = record[question], record[context]
    for name, text in ((question, asked), (context, passage)):
        if not isinstance(text, str) or not text.strip():
            raise BadRecordError(where, f"{name}={text!r}"[:80] + ": give a text")
    answers = tuple(_answer(one, key, where) for one in _listed(record[key], key, where))
    for start, text in answers:
        if passage[start : start + len(text)] != text:
            there = passage[start : start + len(text)]
            raise BadRecordError(
                where, f"the answer {text[:40]!r} is said to begin at {start}, where the passage has {there[:40]!r}"
            )
    return Passage(asked, passage, answers)


def _listed(value: Any, key: str, where: str) -> Sequence[Any]:
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        lists = [one for one in (texts, starts) if isinstance(one, list | tuple | np.ndarray)]
        if len(lists) < 2 or len(lists[0]) != len(lists[1]):
            raise BadRecordError(where, f"{key}: as many of 'text' as of 'answer_start' are needed")
        return [{"text": text, "answer_start": start} for text, start in zip(*lists, strict=True)]
    if value is None or isinstance(value, list | tuple):
        return value or ()
    raise BadRecordError(where, f"{key}={value!r}"[:80] + ": give a list of answers")


def _answer(one: Any, key: str, where: str) -> tuple[int, str]:
    if isinstance(one, tuple) and len(one) == 2:
        start, text = one
    else:
        start, text = (one.get(name) for name in ("answer_start", "text")) if isinstance(one, Mapping) else (None, None)
    whole = isinstance(start, int | np.integer) and not isinstance(start, bool)
    if not isinstance(text, str) or not text or not whole or start < 0:
        raise BadRecordError(where, f"{key}: {one!r}"[:80] + ": an answer has a 'text' and an 'answer_start' from 0 up")
    return int(start), text


class Windows:
    """Questions about passages, one record a window: random access to the windows of all of them.

    How many windows a record has is counted once, when the data is opened: all texts are tokenized for that, each passage once.
    A record has its answers as `Passage` holds them, and `KEY_window`: its number, the window's number in it, and how many it
    has. One that cannot be read has one window, which cannot be read either.

    Attributes:
      records: what it is made of.
      layout: of the windows.
    """

    def __init__(self, records: Records, key: str, fields: tuple[str, str], layout: Layout, tokenizer: Tokenizer) -> None:
        """`fields`: the keys of question and passage. Raises `UserError` where the layout does not fit the tokenizer, or for
        a mixture, whose shares are of records."""
        layout.check(tokenizer)
        if hasattr(records, "shares"):
            raise UserError("source: a mixture is of records, and passages come in windows; give each source data of its own")
        self.records, self._key, self._fields, self.layout = records, key, fields, layout
        self._ends = np.cumsum(self._counted(tokenizer))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.records.classes

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Record:
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        record = self.records[number]
        answers = self._passage(record, number).answers
        window = (number, index - first, int(self._ends[number]) - first)
        return {**record, self._key: answers, f"{self._key}_window": window}

    def passage(self, number: int) -> Passage:
        """What a record asks. Raises `BadRecordError` where it cannot be read."""
        return self._passage(self.records[number], number)

    def texts(self) -> Iterator[str]:
        return self.records.texts()

    def fingerprint(self) -> str:
        own = self.layout
        return f"{self.records.fingerprint()}-{own.max_length}-{own.stride}-{own.max_question}"

    def _passage(self, record: Record, number: int) -> Passage:
        where = f"record {record['id']}" if isinstance(record.get("id"), str) else f"record {number}"
        return passage_of(record, self._key, *self._fields, where)

    def _counted(self, tokenizer: Tokenizer) -> np.ndarray:
        """How many windows each record has."""
        known: dict[str, int] = {}  # text -> its tokens
        pairs: list[tuple[str, str] | None] = []
        for number in range(len(self.records)):
            try:
                one = self.passage(number)
                pairs.append((one.question, one.context))
            except BadRecordError:
                pairs.append(None)
        texts = list(dict.fromkeys(text for pair in pairs if pair for text in pair))
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            known |= zip(some, tokenizer.counts(some), strict=True)
        special = tokenizer.huggingface.num_special_tokens_to_add(pair=True)
        own = [1 if pair is None else len(self.layout.places(known[pair[0]], known[pair[1]], special)) for pair in pairs]
        return np.array(own, np.int64)
