"""How near captions are to those that people wrote: BLEU, ROUGE-L and CIDEr-D, as `coco-caption` computes them (Chen 2015).

Each takes the captions and, for each, its references, one or more; all as they are written, cut into `words` here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmjax.evaluate.texts.words import words

N = 4  # the longest run of words that is compared
SIGMA = 6.0  # of CIDEr-D's penalty on another length
BETA = 1.2  # ROUGE-L: recall counts so much more than precision
TINY, SMALL = 1e-15, 1e-9  # keep BLEU's ratios from 0 / 0
Runs = Counter[tuple[str, ...]]


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of the whole corpus (Papineni 2002, section 2.3), from 0 to 1.

    The length that captions are held against is that of the nearest reference, the shorter one of two. As there, `TINY` and
    `SMALL` are added to each ratio: where no run of n words is right, or none is long enough, BLEU-n is small and not 0.
    """
    check(captions, references)
    right, guessed, length, wanted = [0] * N, [0] * N, 0, 0
    for caption, own in zip(captions, references, strict=True):
        said = words(caption)
        found, most = _runs(said), Counter[tuple[str, ...]]()
        others = [words(reference) for reference in own]
        for other in others:
            most |= _runs(other)
        length += len(said)
        wanted += min((abs(len(other) - len(said)), len(other)) for other in others)[1]
        for n in range(N):
            guessed[n] += max(0, len(said) - n)
        for run, count in found.items():
            right[len(run) - 1] += min(count, most[run])
    ratio = (length + TINY) / (wanted + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(N):
        product *= (right[n] + TINY) / (guessed[n] + SMALL)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return tuple(scores)


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Of each caption, from 0 to 1: an F-measure of the longest common subsequence (Lin 2004, section 3), of the best precision
    and the best recall among its references."""
    check(captions, references)
    scores = []
    for caption, own in zip(captions, references, strict=True):
        said, precision, recall = words(caption), 0.0, 0.0
        for other in map(words, own):
            common = _common(said, other)
            precision = max(precision, common / len(said) if said else 0.0)
            recall = max(recall, common / len(other) if other else 0.0)
        both = precision and recall
        scores.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if both else 0.0)
    return scores


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption (Vedantam 2015, sections 3 and 5), from 0 to 10; of a corpus it is the mean.

    A run of words weighs the less the more images have it in their references: it is a measure of a corpus, and of a single
    image it is 0.
    """
    check(captions, references)
    others = [[_runs(words(reference)) for reference in own] for own in references]
    images = Counter(run for own in others for run in {run for one in own for run in one})
    whole = math.log(len(captions))

    def weighed(runs: Runs) -> Weighed:
        return Weighed(runs, {run: count * (whole - math.log(max(1, images[run]))) for run, count in runs.items()})

    scores = []
    for caption, own in zip(captions, others, strict=True):
        said = weighed(_runs(words(caption)))
        scores.append(10 * sum(_alike(said, weighed(other)) for other in own) / len(own))
    return scores


class Weighed:
    """The runs of a text, each with its weight.

    Attributes:
      weights: run -> weight.
      norms: the length of the vector of the runs of 1 to N words.
      pairs: how many runs of two words there are: what stands for the length.
    """

    def __init__(self, runs: Runs, weights: dict[tuple[str, ...], float]) -> None:
        squares = [0.0] * N
        for run, weight in weights.items():
            squares[len(run) - 1] += weight**2
        self.weights, self.norms = weights, [math.sqrt(square) for square in squares]
        self.pairs = sum(count for run, count in runs.items() if len(run) == 2)


def _alike(said: Weighed, other: Weighed) -> float:
    """From 0 to 1: the mean over the lengths of runs of their clipped cosines."""
    cosines = [0.0] * N
    for run, weight in said.weights.items():
        if own := other.weights.get(run, 0.0):
            cosines[len(run) - 1] += min(weight, own) * own
    cosines = [c / (a * b) if a and b else 0.0 for c, a, b in zip(cosines, said.norms, other.norms, strict=True)]
    return sum(cosines) / N * math.exp(-((said.pairs - other.pairs) ** 2) / (2 * SIGMA**2))


def check(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """That there are texts, and references of each: what the caller sees to."""
    assert texts and len(texts) == len(references), f"{len(texts)} texts and references of {len(references)}"
    assert all(references), "a text without a reference"


def _runs(said: Sequence[str]) -> Runs:
    """How often each run of 1 to N words is there."""
    return Counter(tuple(said[i : i + n]) for n in range(1, N + 1) for i in range(len(said) - n + 1))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words their longest common subsequence has."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]
