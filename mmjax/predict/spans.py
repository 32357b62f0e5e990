"""Answers that stand in passages, from a head that says where one begins and ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.letters import letter_end
from mmjax.data.passages import windows
from mmjax.data.spans import padded
from mmjax.evaluate.span_answers import best_spans
from mmjax.predict.work import Work

logger = logging.getLogger("mmjax")


def find(
    work: Work,
    head: str,
    pairs: Sequence[tuple[str, str]],
    rows: Callable[..., Any],
    top_k: int,
    impossible: bool | None,
    longest: int,
) -> list[list[dict[str, Any]]]:
    """The answers to each (question, passage): see `Predictor.extract`.

    Args:
      rows: `Predictor._rows`.

    Raises:
      UserError: no tokenizer, or one that does not join two texts after a first token.
    """
    if work.tokenizer is None:
        raise UserError(f"{work.path}: there is no tokenizer in it, so it reads no text")
    for question, context in pairs:
        if not question.strip() or not context.strip():
            raise UserError(f"question {question[:40]!r} about {context[:40]!r}: give a question and a passage")
    layout, whole_words = work.windows()
    layout.check(work.tokenizer)
    made = windows(work.tokenizer, pairs, layout)
    if cut := sum(own[0].cut for own in made):
        logger.warning("mmjax: %d of %d questions were cut to %d tokens", cut, len(made), layout.max_question)
    found = padded([one for own in made for one in own], layout.max_length, work.tokenizer.pad_id)
    batch = {"text": found["ids"], "text_mask": found["mask"], "text_segments": found["segments"]}
    logits_NT2 = rows(("spans", head), lambda forward: forward.head(head), batch)
    places_NT2 = found["words"] if whole_words else found["places"]
    ends = np.cumsum([len(own) for own in made])
    allowed = work.impossible if impossible is None else impossible
    answers = []
    for (_, context), own, end in zip(pairs, made, ends.tolist(), strict=True):
        some = slice(end - len(own), end)
        spans = best_spans(logits_NT2[some], places_NT2[some], longest, top_k, allowed)
        whole = [(start, letter_end(context, end), score) for start, end, score in spans]
        answers.append(
            [{"answer": context[start:end], "score": score, "start": start, "end": end} for start, end, score in whole]
        )
    return answers
