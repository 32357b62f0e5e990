"""The column of answers that stand in a passage: question and passage as token ids, and where the answer begins and ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError, within
from mmjax.data.kinds import About, Arrays, Lost
from mmjax.data.letters import is_mark
from mmjax.data.onward import indexed
from mmjax.data.passages import Layout, Window, Windows, windows
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Record, Records

PASSAGES = 4096  # whose windows are kept


@dataclasses.dataclass(frozen=True)
class Span:
    """Answers that stand in a passage, from character to character (Rajpurkar 2016; unanswerable ones: 2018).

    A passage that is too long comes in windows which overlap, and each window is a row: of the batch, of an epoch and of
    `Dataset.size`. They are planned when the data is opened. A window that does not hold the whole answer is one without an
    answer, as in BERT. In the batch, B windows of T tokens:

    - `OF`, `OF_mask`, `OF_segments` [B, T]: question and passage, as the tokenizer joins two texts;
    - `KEY` [B, 2] int32: the answer's first token and its last; 0, 0 (`[CLS]`) where the window has none; -1, -1 where the
      answer is whole in no window of the passage: that counts nowhere and is told;
    - `KEY_places` [B, T, 2] int32: the characters of the passage that a token stands for, -1 for others;
    - `KEY_record` [B] int32: the number of the question, for all of its windows the same.

    A record holds `answers`: a list of `{"text": ..., "answer_start": ...}`, or `{"text": [...], "answer_start": [...]}`, of
    which the first is learned; none where the passage has no answer. A letter is learned with the marks on it: an answer that
    begins or ends between them is counted.

    Attributes:
      question: the key of the question.
      context: the key of the passage.
      of: the key of the text that both make.
      stride: tokens of the passage that neighbouring windows share.
      max_question: tokens of a question; the rest of a longer one is cut, and told.
      whole_words: an answer that a model gives is made of whole words, as in `transformers`; False for scripts that the
        tokenizer does not part (kana, Thai), where a word may be a sentence.
      tokenizer: the name of one of the experiment's `tokenizers`; "" for its `tokenizer`.
      max_length: T; 0 for that of the data.
    """

    question: str = "question"
    context: str = "context"
    of: str = "text"
    stride: int = setting(least=0, default=128)
    max_question: int = setting(least=1, default=64)
    whole_words: bool = True
    tokenizer: str = ""
    max_length: int = setting(least=0, default=0)

    def layout(self, max_length: int) -> Layout:
        """For data of such a length."""
        return Layout(self.max_length or max_length, self.stride, self.max_question)

    def build(self, key: str, value: Any, about: About, first: Record) -> SpanColumn:
        return SpanColumn(self, key, about.tokenizers[self.tokenizer], self.layout(about.max_length))


class SpanColumn:
    """See `Span`.

    Attributes:
      texts: the key of the text -> its tokenizer and length.
    """

    def __init__(self, spec: Span, key: str, tokenizer: Tokenizer, layout: Layout) -> None:
        self.spec, self.key, self.tokenizer, self.layout = spec, key, tokenizer, layout
        self.texts = {spec.of: (tokenizer, layout.max_length)}
        self.taken = (spec.question, spec.context, f"{key}_window")
        self._remembered: dict[tuple[str, str], list[Window]] = {}

    def __call__(self, values: Sequence[Any], records: Sequence[Record]) -> tuple[Arrays, Lost]:
        pairs = [(record[self.spec.question], record[self.spec.context]) for record in records]
        made = self._windows(pairs)
        own: list[Window] = []
        target_B2 = np.zeros((len(records), 2), np.int32)
        cut = answers = letters = 0
        for row, (pair, value, record) in enumerate(zip(pairs, values, records, strict=True)):
            _, place, count = record[f"{self.key}_window"]
            if count != len(made[pair]):
                raise UserError(f"{len(made[pair])} windows, and {count} were planned: something has changed the texts")
            own.append(made[pair][place])
            found = [one.tokens(*_characters(*value[0])) for one in made[pair]] if value else [None]
            lost = bool(value) and not any(found)
            target_B2[row] = -1 if lost else (found[place] if value else None) or 0
            cut += own[-1].cut and place == 0
            answers += lost and place == 0
            letters += bool(value) and place == 0 and any(is_mark(pair[1], edge) for edge in _characters(*value[0]))
        arrays = {**self._arrays(own), self.key: target_B2}
        arrays[f"{self.key}_record"] = np.array([record[f"{self.key}_window"][0] for record in records], np.int32)
        ids, mask = arrays[self.spec.of], arrays[f"{self.spec.of}_mask"]
        unknown = int(self.tokenizer.unknown(ids, mask).sum())
        return arrays, Lost(truncated=cut, unknown=unknown, tokens=int(mask.sum()), answers=answers, letters=letters)

    def _arrays(self, own: Sequence[Window]) -> Arrays:
        found = padded(own, self.layout.max_length, self.tokenizer.pad_id)
        places = found["words"] if self.spec.whole_words else found["places"]
        of = self.spec.of
        named = {of: found["ids"], f"{of}_mask": found["mask"], f"{of}_segments": found["segments"]}
        return {**named, f"{self.key}_places": places}

    def _windows(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Window]]:
        rows = {pair: found for pair in pairs if (found := self._remembered.get(pair)) is not None}
        if new := list(dict.fromkeys(pair for pair in pairs if pair not in rows)):
            made = dict(zip(new, windows(self.tokenizer, new, self.layout), strict=True))
            rows |= made
            if len(self._remembered) + len(new) > PASSAGES:
                self._remembered.clear()
            self._remembered |= made
        return rows


def padded(own: Sequence[Window], length: int, pad: int) -> Arrays:
    """`ids`, `segments` [N, T] int32 and `mask` bool, `places` and `words` [N, T, 2] int32, filled up on the right."""
    found = {"ids": np.full((len(own), length), pad, np.int32), "segments": np.zeros((len(own), length), np.int32)}
    found |= {name: np.full((len(own), length, 2), -1, np.int32) for name in ("places", "words")}
    mask = np.zeros((len(own), length), bool)
    for row, one in enumerate(own):
        mask[row, : len(one.ids)] = True
        for name, array in found.items():
            array[row, : len(one.ids)] = getattr(one, name)
    return {**found, "mask": mask}


def windowed(
    records: Records, columns: Mapping[str, Any], tokenizers: Mapping[str, Tokenizer], max_length: int, transformed: bool
) -> Records | Windows:
    """The records, or their windows where a column is of answers in passages.

    Args:
      transformed: whether the data has transforms, which could change what has been planned.

    Raises:
      UserError: two such columns, transforms, no tokenizer; as `Windows`.
    """
    found = {key: spec for key, spec in columns.items() if isinstance(spec, Span)}
    if not found:
        return records
    key, spec = next(iter(found.items()))
    with within(f"columns.{key}"):
        if len(found) > 1:
            raise UserError(f"{', '.join(found)} are each a Span: give one")
        if transformed:
            raise UserError("transforms: windows are planned of the texts as the source gives them; leave transforms out")
        if spec.tokenizer not in tokenizers:
            known = ", ".join(name for name in tokenizers if name) or "none"
            raise UserError(f"tokenizer={spec.tokenizer!r}: the texts want a tokenizer, and the experiment's are {known}")
        fields = (spec.question, spec.context)
        return Windows(indexed(records, "Span"), key, fields, spec.layout(max_length), tokenizers[spec.tokenizer])


def _characters(start: int, answer: str) -> tuple[int, int]:
    """From where to where an answer goes without the spaces around it, which are of no token."""
    return start + len(answer) - len(answer.lstrip()), start + len(answer.rstrip())
