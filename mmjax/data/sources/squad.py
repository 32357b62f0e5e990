"""Questions about passages in the format of SQuAD, which DuReader, CMRC, DRCD, JSQuAD and KorQuAD have too."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data import splits
from mmjax.data.splits import SPLITS
from mmjax.data.types import Record


@dataclasses.dataclass(frozen=True)
class Squad:
    """The questions of a file of SQuAD, version 1 or 2 (Rajpurkar 2016, 2018); the column `Span` makes a batch of them.

    The file is `{"data": [{"paragraphs": [{"context": ..., "qas": [{"question": ..., "answers": [{"text": ...,
    "answer_start": ...}], "is_impossible": false}]}]}]}`. A question with `is_impossible`, or without answers, has none.

    Attributes:
      path: the file, JSON.
      split: "all", or "train", "validation" or "test" by a hash of each passage, so that the questions about it stay together.
      fractions: shares of train, validation and test.
    """

    path: str = setting(everyday=True, path=True)
    split: str = "all"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)

    def build(self) -> SquadRecords:
        """Records of `id`, `question`, `context` and `answers`, a tuple of (first character, text).

        Raises:
          UserError: no such file, one that is not of this format (named by the place in it), no question at all or none in the
            split, an unknown split, fractions that do not sum to 1.
        """
        splits.check_split("Squad", self.split, (*SPLITS, "all"))
        splits.check_fractions("Squad", self.fractions)
        if not Path(self.path).is_file():
            raise UserError(f"Squad.path={self.path!r}: no such file")
        try:
            data = json.loads(Path(self.path).read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise UserError(f"Squad.path={self.path!r}: not JSON in UTF-8 ({error})") from None
        whole = tuple(self._questions(data))
        if not whole:
            raise UserError(f"Squad.path={self.path!r}: it has no question")
        kept = whole
        if self.split != "all":
            kept = tuple(one for one in whole if splits.hash_split(one["context"], self.fractions) == self.split)
        if not kept:
            raise UserError(f"Squad.split={self.split!r}: none of the {len(whole)} questions of {self.path} are in it")
        return SquadRecords(kept)

    def _questions(self, data: Any) -> Iterator[Record]:
        for a, article in enumerate(self._list(data, "data", "")):
            for p, paragraph in enumerate(self._list(article, "paragraphs", f"data[{a}]")):
                where = f"data[{a}].paragraphs[{p}]"
                context = self._text(paragraph, "context", where)
                for q, asked in enumerate(self._list(paragraph, "qas", where)):
                    own = f"{where}.qas[{q}]"
                    question = self._text(asked, "question", own)
                    answers = () if asked.get("is_impossible") else tuple(self._answers(asked, own))
                    name = str(asked.get("id", own))
                    yield {"id": name, "question": question, "context": context, "answers": answers}

    def _answers(self, asked: Mapping[str, Any], where: str) -> Iterator[tuple[int, str]]:
        for n, one in enumerate(self._list(asked, "answers", where) if asked.get("answers") else ()):
            start = one.get("answer_start") if isinstance(one, dict) else None
            if not isinstance(start, int) or isinstance(start, bool):
                raise UserError(f"{self.path}: {where}.answers[{n}].answer_start is {start!r}, no whole number")
            yield start, self._text(one, "text", f"{where}.answers[{n}]")

    def _list(self, value: Any, name: str, where: str) -> list[Any]:
        found = value.get(name) if isinstance(value, dict) else None
        if not isinstance(found, list):
            raise UserError(f"{self.path}: {f'{where}.{name}'.strip('.')} is no list; the file is to be of SQuAD's format")
        return found

    def _text(self, value: Any, name: str, where: str) -> str:
        found = value.get(name) if isinstance(value, dict) else None
        if not isinstance(found, str):
            raise UserError(f"{self.path}: {where}.{name} is {found!r}, no text")
        return found


@dataclasses.dataclass(frozen=True)
class SquadRecords:
    """The questions of a split.

    Attributes:
      questions: the records.
    """

    questions: tuple[Record, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int, /) -> Record:
        return dict(self.questions[index])

    def texts(self) -> Iterator[str]:
        return iter(())

    def texts_of(self, key: str) -> Iterator[str]:
        """The different ones of a key: all questions, or each passage once."""
        yield from dict.fromkeys(text for one in self.questions if isinstance(text := one.get(key), str))

    def fingerprint(self) -> str:
        return splits.fingerprint(json.dumps(one, sort_keys=True, ensure_ascii=False) for one in self.questions)
