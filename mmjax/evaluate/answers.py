"""Answers that a decoder writes, held against people's."""

from __future__ import annotations

import dataclasses

from mmjax.evaluate.written import Written


@dataclasses.dataclass(frozen=True)
class Answers(Written):
    """VQA accuracy, exact match and F1 of what a decoder writes; see `evaluate.texts.answers`. The other attributes and what is
    raised are those of `Written`.

    The question is the `prompt` of a decoder that goes on with it, or is read by an encoder of the decoder's context.

    Usage:
      fields = {"question": "question", "answers": "answers"}  # of each line: a string, and a list of strings
      columns = {"question": Text(), "answers": Strings(rows=10, length=64)}
      data = Data(Manifest("vqa.jsonl", "validation", fields=fields), ..., columns=columns)
      evaluate = {"answers": Answers(prompt="question")}
    """

    references: str = "answers"
    scores: tuple[str, ...] = ("vqa_accuracy", "exact_match", "f1")
