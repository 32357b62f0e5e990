"""How well a head finds answers in passages: exact match and F1, as SQuAD's and CMRC's own programs count them."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.data.letters import letter_end
from mmjax.data.passages import Passage
from mmjax.evaluate.evaluation import Evaluation
from mmjax.evaluate.texts.answers import exact_match, f1, squad_normalised
from mmjax.objectives.checks import one_of
from mmjax.objectives.extract_span import check_two

UNITS = ("words", "characters")
HIDDEN = -10000.0  # the logit that `transformers` gives to what cannot be in an answer


@dataclasses.dataclass(frozen=True)
class SpanAnswers:
    """Exact match and F1 of the answers to questions about passages, each held against the nearest of its references.

    Of all windows of a passage the answer is the likeliest span (see `best_spans`), which `mmjax predict` gives as well. With
    `unit="words"` both are those of SQuAD (Rajpurkar 2016, section 6.1): lower case, without punctuation and articles; where
    there is no answer, "" is right (Rajpurkar 2018). With `characters` they are those of CMRC 2018, for texts without spaces: a
    character of Chinese, Japanese or Korean is a word, punctuation is left out, and what two answers share is their longest
    common run. Metrics: `exact_match`, `f1` and `questions`, how many there are; where the data has both kinds also
    `answered/...` and `unanswered/...`, of questions with an answer and of those without.

    Attributes:
      head: a head of two logits a token, [B, T, 2].
      answers: the key of a `Span` column.
      unit: what F1 counts, `words` or `characters`.
      impossible: say "" where no answer is likelier than any: for data of which some questions have none.
      max_answer_length: tokens of an answer.
      data: the dataset.

    Raises:
      UserError: an unknown unit; data without a `Span` column; other logits.
    """

    head: str = "spans"
    answers: str = "answers"
    unit: str = "words"
    impossible: bool = False
    max_answer_length: int = setting(least=1, default=30)
    data: str = "validation"

    def __post_init__(self) -> None:
        one_of("span_answers.unit", self.unit, UNITS)

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        windows: Any = getattr(evaluation.dataset(self.data), "windows", None)
        if windows is None:
            raise UserError(f"data={self.data!r} has no passages in windows: give it the column Span()")
        head, answers = self.head, self.answers
        places, record = f"{answers}_places", f"{answers}_record"

        def predict(forward: Forward, batch: Batch) -> dict[str, Array]:
            logits = forward.head(head)
            check_two(head, logits)
            return {"logits": logits, "places": batch[places], "record": batch[record]}

        rows = evaluation.rows("span_answers", self.data, params, predict, needs=(answers, places, record))
        numbers = list(dict.fromkeys(rows["record"].tolist()))
        passages = [windows.passage(number) for number in numbers]
        own = {number: np.flatnonzero(rows["record"] == number) for number in numbers}
        found = []
        for number in numbers:
            some = own[number]
            spans = best_spans(rows["logits"][some], rows["places"][some], self.max_answer_length, 1, self.impossible)
            found.append(spans[0] if spans else (0, 0, 0.0))
        said = [
            passage.context[start : letter_end(passage.context, end)]
            for passage, (start, end, _) in zip(passages, found, strict=True)
        ]
        wanted = [[text for _, text in passage.answers] or [""] for passage in passages]
        both = scores(said, wanted, self.unit)
        evaluation.keep(_examples(numbers, passages, said, [score for *_, score in found], both))
        there = np.array([bool(passage.answers) for passage in passages])
        metrics = {name: float(np.mean(values)) for name, values in both.items()}
        if there.any() and not there.all():
            for part, rows_N in (("answered", there), ("unanswered", ~there)):
                metrics |= {f"{part}/{name}": float(np.mean(np.array(values)[rows_N])) for name, values in both.items()}
        return metrics | {"questions": float(len(numbers))}


def best_spans(
    logits_WT2: np.ndarray, places_WT2: np.ndarray, longest: int, top_k: int, impossible: bool
) -> list[tuple[int, int, float]]:
    """The likeliest answers in a passage: (first character, the one after the last, score), the best first.

    As the question-answering pipeline of `transformers` (up to 4) has it: in each window a softmax over the first token and
    those of the passage, of what begins and of what ends an answer; a span's score is the product of both, and the windows' are
    compared as they are. That there is no answer is (0, 0), with the least product that the first token has in any window. The
    same characters are one answer, with the best of their scores.

    Args:
      logits_WT2: of the windows, [W, T, 2].
      places_WT2: int, the characters that each token stands for; -1 for what is not of the passage.
      longest: tokens of an answer.
      top_k: so many; 0 for all.
      impossible: whether there may be no answer.
    """
    found: dict[tuple[int, int], float] = {}
    none = np.inf
    for logits_T2, places_T2 in zip(logits_WT2.astype(np.float64), places_WT2, strict=True):
        inside_T = places_T2[:, 0] >= 0
        seen_T = inside_T.copy()
        seen_T[0] = True
        logits_T2 = np.where(seen_T[:, None], logits_T2, HIDDEN)
        shares_T2 = np.exp(logits_T2 - logits_T2.max(0))
        shares_T2 /= shares_T2.sum(0)
        none = min(none, float(shares_T2[0, 0] * shares_T2[0, 1]))
        tokens = np.flatnonzero(inside_T)
        if not len(tokens):
            continue
        begin_C, end_C = shares_T2[tokens].T
        padded = np.concatenate([end_C, np.full(longest - 1, -1.0)])
        ends_CL = np.lib.stride_tricks.sliding_window_view(padded, longest)
        score_CL = np.where(ends_CL < 0, -1.0, begin_C[:, None] * ends_CL)
        order = np.array([score_CL.argmax()]) if top_k == 1 else np.argsort(-score_CL, axis=None, kind="stable")
        own: set[tuple[int, int]] = set()
        for flat in order.tolist():
            first, further = divmod(flat, longest)
            score = float(score_CL[first, further])
            if score < 0 or (top_k and len(own) == top_k):
                break
            span = (int(places_T2[tokens[first], 0]), int(places_T2[tokens[first + further], 1]))
            own.add(span)
            found[span] = max(score, found.get(span, 0.0))
    spans = [(start, end, score) for (start, end), score in found.items()] + [(0, 0, none)] * impossible
    return sorted(spans, key=lambda one: -one[2])[: top_k or None]


def scores(said: Sequence[str], wanted: Sequence[Sequence[str]], unit: str) -> dict[str, list[float]]:
    """`exact_match` and `f1` of each answer, from 0 to 1; [""] is wanted where there is none."""
    if unit == "words":
        wanted = [[one for one in own if squad_normalised(one)] or [""] for own in wanted]
        return {"exact_match": exact_match(said, wanted), "f1": f1(said, wanted)}
    cut = [(units(text), [units(one) for one in own]) for text, own in zip(said, wanted, strict=True)]
    exact = [float(any("".join(given) == "".join(one) for one in own)) for given, own in cut]
    return {"exact_match": exact, "f1": [max(_shared(given, one) for one in own) for given, own in cut]}


def units(text: str) -> list[str]:
    """Characters of Chinese, Japanese and Korean, and the words of other scripts; lower case, without punctuation (CMRC 2018,
    `mixed_segmentation`, whose words of other scripts are NLTK's, and whose characters are Chinese alone)."""
    spaced = ""
    for letter in text.lower().strip():
        name = unicodedata.name(letter, "")
        if unicodedata.category(letter).startswith("P") or letter in "^`~+=":
            continue
        spaced += f" {letter} " if name.startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) else letter
    return spaced.split()


def _shared(given: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two lists, by the longest run that both have."""
    if not given or not wanted:
        return float(list(given) == list(wanted))
    longest, before = 0, [0] * (len(wanted) + 1)
    for one in given:
        row = [0] + [before[place] + 1 if one == other else 0 for place, other in enumerate(wanted)]
        longest, before = max(longest, *row), row
    return 2 * longest / (len(given) + len(wanted))


def _examples(
    numbers: Sequence[int],
    passages: Sequence[Passage],
    said: Sequence[str],
    likely: Sequence[float],
    both: dict[str, list[float]],
) -> Iterator[dict[str, Any]]:
    """One a line of `predictions.jsonl`."""
    for n, (number, passage) in enumerate(zip(numbers, passages, strict=True)):
        own = {"index": number, "question": passage.question, "answers": [text for _, text in passage.answers]}
        yield {**own, "predicted": said[n], "score": likely[n], **{name: values[n] for name, values in both.items()}}
