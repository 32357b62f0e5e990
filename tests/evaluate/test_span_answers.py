"""Answers in passages: SQuAD's and CMRC's scores written out again, and `transformers`' own search for spans."""

import re
import string
from collections import Counter

import numpy as np
import pytest
from fake_evaluation import FakeForward, make_evaluation
from transformers.pipelines.document_question_answering import select_starts_ends

from mmjax.core.errors import UserError
from mmjax.data.passages import Passage
from mmjax.evaluate import SpanAnswers
from mmjax.evaluate.span_answers import best_spans, scores, units


def squad(said, wanted):
    """The official evaluate-v2.0.py, of one question: exact, f1."""

    def normalised(text):
        text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", text).split())

    def one(gold):
        gold, own = normalised(gold).split(), normalised(said).split()
        same = sum((Counter(gold) & Counter(own)).values())
        if not gold or not own:
            return int(gold == own)
        if same == 0:
            return 0
        precision, recall = same / len(own), same / len(gold)
        return 2 * precision * recall / (precision + recall)

    wanted = [text for text in wanted if normalised(text)] or [""]
    return max(int(normalised(said) == normalised(text)) for text in wanted), max(map(one, wanted))


CASES = [
    ("the Eiffel Tower", ["Eiffel Tower!", "tower"]),
    ("Paris, in France", ["Paris"]),
    ("", [""]),
    ("Paris", [""]),
    ("", ["Paris"]),
    ("The", ["the", "x"]),
    ("2,500 men", ["2500  men of war"]),
]


def test_words_are_scored_as_squad_scores_them():
    found = scores([said for said, _ in CASES], [own for _, own in CASES], "words")
    for n, (said, own) in enumerate(CASES):
        exact, f1 = squad(said, own)
        assert found["exact_match"][n] == exact and found["f1"][n] == pytest.approx(f1), said
    assert found["exact_match"][:3] == [1, 0, 1] and found["f1"][1] == pytest.approx(0.5)


def test_characters_are_scored_as_cmrc_scores_them():
    assert units("《红楼梦》, BERT 模型") == ["红", "楼", "梦", "bert", "模", "型"]
    assert units("ひらカナ、漢字") == ["ひ", "ら", "カ", "ナ", "漢", "字"]
    found = scores(
        ["北京市", "上海", "大学北京", "", "", "北、京"],
        [["北京"], ["北京"], ["北京大学"], [""], ["x"], ["北京"]],
        "characters",
    )
    # 2 of 3 and of 2; none; the longest run is two of four; nothing of nothing.
    assert found["f1"] == pytest.approx([0.8, 0.0, 0.5, 1.0, 0.0, 1.0])
    assert found["exact_match"] == [0, 0, 0, 1, 0, 1]
    both = scores(["北京市"], [["北", "京市"]], "characters")
    assert both["f1"] == pytest.approx([0.8])


@pytest.mark.parametrize("seed", range(4))
def test_spans_are_those_that_transformers_finds(seed):
    """The search that its question-answering pipeline had is in that of documents still."""
    rng = np.random.default_rng(seed)
    windows, length, longest = 3, 12, 4
    logits = rng.normal(size=(windows, length, 2)).astype(np.float32) * 3
    places = np.full((windows, length, 2), -1, np.int32)
    for window, size in enumerate((5, 6, 3)):
        first = 3 + window
        places[window, first : first + size, 0] = 100 * window + 2 * np.arange(size)
        places[window, first : first + size, 1] = 100 * window + 2 * np.arange(size) + 1
    theirs, none = [], 1e6
    for window in range(windows):
        hidden = (places[window, :, 0] < 0).astype(int)
        hidden[0] = 0  # [CLS] takes part in the softmax
        start, end = logits[window, None, :, 0], logits[window, None, :, 1]
        starts, ends, likely, none = select_starts_ends(start, end, hidden, np.ones(length, int), none, 100, True, longest)
        spans = zip(starts, ends, likely, strict=True)
        theirs += [(places[window, s, 0], places[window, e, 1], score) for s, e, score in spans if score > 0]
    for impossible in (False, True):
        wanted = sorted([*theirs, *[(0, 0, none)] * impossible], key=lambda one: -one[2])
        found = best_spans(logits, places, longest, 0, impossible)
        assert [one[:2] for one in found] == [one[:2] for one in wanted]
        np.testing.assert_allclose([one[2] for one in found], [one[2] for one in wanted], rtol=1e-4)
        for few in (1, 3):
            assert best_spans(logits, places, longest, few, impossible) == found[:few]


def test_equal_characters_are_one_answer():
    places = np.array([[[-1, -1], [0, 4], [0, 4]]] * 2, np.int32)
    logits = np.log(np.array([[[1, 1], [4, 2], [1, 1]], [[1, 1], [6, 6], [1, 1]]]))
    ((start, end, score),) = best_spans(logits, places, 9, 0, False)
    assert (start, end) == (0, 4) and score == pytest.approx((6 / 8) ** 2)
    assert best_spans(logits, np.full_like(places, -1), 9, 1, False) == []


class Said(FakeForward):
    """A head whose answers are in the batch."""

    def head(self, head, tokens=None, key=""):
        return self.batch["said"]


PASSAGES = [
    Passage("Who?", "Anna met Otto", ((0, "Anna"),)),
    Passage("Whom?", "Anna met Otto", ((9, "Otto"), (5, "met Otto"))),
    Passage("Why?", "Anna met Otto", ()),
]
PLACES = [[-1, -1], [-1, -1], [0, 4], [5, 8], [9, 13], [-1, -1]]


class Held:
    def passage(self, number):
        return PASSAGES[number]


def evaluation(spans, classes=2):
    """Of four windows, the last two of the third question; `spans`: the tokens that each window says."""
    said = np.zeros((4, 6, classes), np.float32)
    for row, (first, last) in enumerate(spans):
        said[row, first, 0], said[row, last, 1] = 9.0, 9.0
    columns = {"said": said, "answers": np.zeros((4, 2), np.int32), "answers_places": np.array([PLACES] * 4, np.int32)}
    made = make_evaluation({**columns, "answers_record": np.array([0, 1, 2, 2], np.int32)}, bind=Said)
    made._datasets["validation"].windows = Held()
    made.kept = []
    return made


def test_metrics_are_of_questions_not_of_windows():
    made = evaluation([(2, 2), (3, 4), (0, 0), (0, 0)])
    found = SpanAnswers(impossible=True)(made, {})
    assert found == {
        "exact_match": 1.0,
        "f1": 1.0,
        "answered/exact_match": 1.0,
        "answered/f1": 1.0,
        "unanswered/exact_match": 1.0,
        "unanswered/f1": 1.0,
        "questions": 3.0,
    }
    assert [one["predicted"] for one in made.kept] == ["Anna", "met Otto", ""]
    assert made.kept[0]["answers"] == ["Anna"] and made.kept[0]["score"] > 0.9
    found = SpanAnswers(impossible=True)(evaluation([(2, 2), (4, 4), (0, 0), (3, 3)]), {})
    assert found["unanswered/exact_match"] == 0.0 and found["exact_match"] == pytest.approx(2 / 3)
    found = SpanAnswers(max_answer_length=1)(evaluation([(2, 3), (4, 4), (0, 0), (3, 3)]), {})
    assert found["answered/f1"] == pytest.approx(1.0) and found["unanswered/f1"] == 0.0
    found = SpanAnswers(unit="characters", impossible=True)(evaluation([(2, 3), (4, 4), (0, 0), (0, 0)]), {})
    assert found["answered/f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"span_answers.unit='letters': use one of words, characters"):
        SpanAnswers(unit="letters")
    with pytest.raises(UserError, match="has no passages in windows: give it the column"):
        SpanAnswers()(make_evaluation({"said": np.zeros((4, 6, 2), np.float32)}), {})
    with pytest.raises(UserError, match=r"model.heads.spans gives 6x3"):
        SpanAnswers()(evaluation([(2, 2)] * 4, 3), {})
