import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.evaluate.texts.captions import bleu, cider_d, rouge_l
from mmjax.evaluate.texts.words import words

CAPTIONS = [
    "A man riding a wave on a surfboard.",
    "",
    "Two dogs play in the snow!",
    "a red bus",
    "a cat is sleeping on the couch on the couch",
]
REFERENCES = [
    ["A man rides a wave.", "A surfer is riding a wave on his surfboard.", "Someone's surfing"],
    ["a plate of food", "A plate with rice and beans"],
    ["Two dogs play in the snow."],
    ["a double-decker bus on the street", "a red bus is parked"],
    ["a cat sleeping on a couch", "The cat is asleep on the couch, isn't it?"],
]
SAID = st.lists(st.sampled_from(["red", "blue", "dog", "runs", "fast"]), min_size=1, max_size=7).map(" ".join)
CORPUS = st.lists(st.tuples(st.one_of(SAID, st.just("")), st.lists(SAID, min_size=1, max_size=3)), min_size=1, max_size=5)


def close(expected):
    return pytest.approx(expected, rel=0, abs=1e-9)


def test_the_scores_are_those_of_pycocoevalcap():
    """Version 1.2, on these words; one caption is empty, one has a single reference and is it."""
    assert bleu(CAPTIONS, REFERENCES) == close(
        (0.6858870636962254, 0.6067711822343059, 0.4927165358548146, 0.39608766694685826)
    )
    assert rouge_l(CAPTIONS, REFERENCES) == close([0.7787234042553192, 0.0, 1.0, 0.7176470588235294, 0.6545064377682404])
    assert cider_d(CAPTIONS, REFERENCES) == close([1.9821376047682948, 0.0, 10.0, 2.9109519117289286, 1.9310122007462756])


def test_the_worked_example_of_aac_metrics():
    captions = ["a man is speaking", "rain falls"]
    references = [
        ["a man speaks.", "someone speaks.", "a man is speaking while a bird is chirping in the background"],
        ["rain is falling hard on a surface"],
    ]
    scores = cider_d(captions, references)
    assert scores == pytest.approx([1.3641, 0.5587], abs=5e-5)
    assert sum(scores) / 2 == pytest.approx(0.9614, abs=5e-5)
    assert bleu(captions, references)[0] == pytest.approx(0.4278, abs=5e-5)


def grams(text, n):
    said = words(text)
    return Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1))


def slow_bleu(corpus, n):
    """Papineni's formula, number by number, with what coco-caption adds to keep 0 / 0 away."""
    logs, c, r = [], 0, 0
    for k in range(1, n + 1):
        right = guessed = 0
        for caption, own in corpus:
            for gram, count in grams(caption, k).items():
                right += min(count, max(grams(other, k)[gram] for other in own))
                guessed += count
        logs.append(math.log((right + 1e-15) / (guessed + 1e-9)))
    for caption, own in corpus:
        c += len(words(caption))
        r += min((len(words(other)) for other in own), key=lambda length: (abs(length - len(words(caption))), length))
    ratio = (c + 1e-15) / (r + 1e-9)
    return (1.0 if ratio >= 1 else math.exp(1 - 1 / ratio)) * math.exp(sum(logs) / n)


def slow_cider(corpus, place):
    """Vedantam's formula, run by run."""
    caption, own = corpus[place]

    def vector(text, n):
        images = {gram: sum(any(grams(other, n)[gram] for other in refs) for _, refs in corpus) for gram in grams(text, n)}
        return {gram: count * math.log(len(corpus) / max(1, images[gram])) for gram, count in grams(text, n).items()}

    total = 0.0
    for n, other in itertools.product(range(1, 5), own):
        a, b = vector(caption, n), vector(other, n)
        dot = sum(min(weight, b.get(gram, 0.0)) * b.get(gram, 0.0) for gram, weight in a.items())
        size = math.hypot(*a.values()) * math.hypot(*b.values())
        off = max(0, len(words(caption)) - 1) - max(0, len(words(other)) - 1)
        total += (dot / size if size else 0.0) * math.exp(-(off**2) / 72)
    return 10 * total / (4 * len(own))


def slow_rouge(caption, own):
    def longest(a, b):
        runs = itertools.chain.from_iterable(itertools.combinations(a, n) for n in range(len(a), 0, -1))
        return next((len(run) for run in runs if subsequence(run, b)), 0)

    def subsequence(run, whole):
        rest = iter(whole)
        return all(word in rest for word in run)

    said = words(caption)
    common = [(longest(said, words(other)), len(words(other))) for other in own]
    precision = max(n / len(said) for n, _ in common) if said else 0.0
    recall = max(n / length for n, length in common)
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0


@settings(max_examples=60, deadline=None)
@given(corpus=CORPUS)
def test_the_scores_are_the_formulas(corpus):
    captions, references = zip(*corpus, strict=True)
    for n, score in enumerate(bleu(captions, references), 1):
        assert score == pytest.approx(slow_bleu(corpus, n), abs=1e-9)
    assert cider_d(captions, references) == pytest.approx([slow_cider(corpus, i) for i in range(len(corpus))], abs=1e-9)
    assert rouge_l(captions, references) == pytest.approx([slow_rouge(*pair) for pair in corpus], abs=1e-9)


def test_edges():
    assert cider_d(["a dog"], [["a dog"]]) == [0.0]  # of a single image every run is in all of them
    assert bleu([""], [["a dog"]]) == pytest.approx((0.0,) * 4, abs=1e-3)
    assert rouge_l([".", "a dog"], [["a dog"], ["..."]]) == [0.0, 0.0]  # no words are left
    assert bleu(["the same four words"], [["The same, four words!"]]) == pytest.approx((1.0,) * 4, abs=1e-8)
