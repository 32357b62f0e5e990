"""What a `Predictor` says of parts of texts: named entities, and answers that stand in passages."""

from __future__ import annotations

from typing import Any

from mmjax.core.errors import UserError
from mmjax.predict import entities, spans
from mmjax.predict.heads import chosen, extracting, tagging
from mmjax.predict.inputs import as_texts
from mmjax.predict.running import Running


class TokenAnswers(Running):
    """The part of `Predictor` that asks heads which say something of each token of a text."""

    def tags(self) -> bool:
        """Whether a head says a tag for each token of a text."""
        return len(tagging(self.work)) == 1

    def entities(self, texts: Any, head: str = "") -> list[list[dict[str, Any]]]:
        """The named entities of each text, in their order: `type`, `text`, `start` and `end` (characters) and `score`, the mean
        of its tokens. Tokens side by side of one type are one entity, as `entities.grouped` says it.

        Args:
          head: the head; "" for the only one that says a tag for each token.

        Raises:
          UserError: no such head; a tokenizer that does not say where its tokens stand.
        """
        name = chosen(self.work, tagging(self.work), head, "tag", self._can())
        return entities.find(self.work, name, as_texts(texts) or [], self._rows)

    def extracts(self) -> bool:
        """Whether a head finds answers in passages."""
        return len(extracting(self.work)) == 1

    def extract(
        self,
        questions: Any,
        passages: Any,
        top_k: int = 1,
        impossible: bool | None = None,
        max_answer_length: int = 15,
        head: str = "",
    ) -> list[list[dict[str, Any]]]:
        """The likeliest answers to each question in its passage: `answer`, `score`, `start` and `end` (characters); "" where
        there is none. See `evaluate.span_answers.best_spans`.

        Args:
          questions, passages: texts, as many of both.
          top_k: so many; 0 for all.
          impossible: whether there may be no answer; None: where the run's own `SpanAnswers` says so.
          max_answer_length: tokens of an answer.
          head: the head; "" for the only one that finds answers.

        Raises:
          UserError: no such head, an empty text, a number out of range.
        """
        name = chosen(self.work, extracting(self.work), head, "find answers in passages", self._can())
        asked, texts = as_texts(questions) or [], as_texts(passages) or []
        if len(asked) != len(texts):
            raise UserError(f"{len(asked)} questions and {len(texts)} passages: give as many of both")
        for field, value, least in (("top_k", top_k, 0), ("max_answer_length", max_answer_length, 1)):
            if not isinstance(value, int) or value < least:
                raise UserError(f"{field}={value!r}: use a whole number from {least} up")
        pairs = list(zip(asked, texts, strict=True))
        return spans.find(self.work, name, pairs, self._rows, top_k, impossible, max_answer_length)
