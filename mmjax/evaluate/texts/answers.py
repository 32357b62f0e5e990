"""Whether an answer is right: visual question answering's accuracy, exact match and F1, each with its normalisation."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from mmjax.evaluate.texts.captions import check

ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{name: str(number) for number, name in enumerate(_NUMBERS)}}
# Left out where they touch a space, else a space: of the VQA evaluation. Points and commas have rules of their own.
MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS, _POINT = re.compile(r"\d,\d"), re.compile(r"\.(?!\d)")
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


# Written without one of their apostrophes -> as they should be.
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in CONTRACTED.split() for i, letter in enumerate(word) if letter == "'"}


def vqa_normalised(answer: str) -> str:
    """An answer as VQA's accuracy compares it: lower case, digits for the numbers up to ten, contractions with their
    apostrophes, without articles and punctuation (Antol 2015, section 3, "answers"; visualqa.org/evaluation)."""
    answer = " ".join(answer.split())
    cleaned, thousands = answer, _THOUSANDS.search(answer)
    for mark in MARKS:
        apart = thousands or f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if apart else " ")
    found = [NUMBERS.get(word, word) for word in _POINT.sub("", cleaned).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in found if word not in ARTICLES)


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Of each answer min(1, n / 3), n how many people gave it, averaged over all but one of them (Antol 2015, section 5).

    With a single reference, which leaves nobody when it is left out, an answer is right (1.0) or wrong. All answers are
    normalised; the official program leaves the references as they are where all people gave the same.
    """
    check(answers, references)
    scores = []
    for answer, own in zip(answers, references, strict=True):
        given, people = vqa_normalised(answer), [vqa_normalised(one) for one in own]
        n = people.count(given)
        if len(people) == 1:
            scores.append(float(n))
            continue
        left_out = n * min(1.0, (n - 1) / 3) + (len(people) - n) * min(1.0, n / 3)
        scores.append(left_out / len(people))
    return scores


def squad_normalised(answer: str) -> str:
    """Lower case, without ASCII punctuation and articles, single spaces (Rajpurkar 2016, section 6.1)."""
    bare = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Of each answer 1.0 where it is one of its references, normalised, else 0.0 (Rajpurkar 2016, section 6.1)."""
    check(answers, references)
    return [
        float(squad_normalised(answer) in map(squad_normalised, own)) for answer, own in zip(answers, references, strict=True)
    ]


def f1(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Of each answer the F1 of its words and those of the best of its references (Rajpurkar 2016, section 6.1).

    Of two without any word, as after only articles, it is 1; of one and another with words 0 (Rajpurkar 2018).
    """
    check(answers, references)
    return [max(_f1(answer, one) for one in own) for answer, own in zip(answers, references, strict=True)]


def _f1(answer: str, reference: str) -> float:
    given, wanted = squad_normalised(answer).split(), squad_normalised(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted))
