import itertools

import pytest

from mmjax.evaluate.texts.answers import exact_match, f1, squad_normalised, vqa_accuracy, vqa_normalised


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The two Dogs!", "2 dogs"),
        ("dont know", "don't know"),
        ("couldn'tve", "couldn't've"),
        ("none", "0"),
        ("1,000 people", "1000 people"),
        ("3.5.", "3.5"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("black-and-white", "black and white"),
        ("yes,\n no\t", "yes no"),
        ("an  a the", ""),
        ("its", "its"),  # as it is: it is a word of its own
        ("", ""),
    ],
)
def test_answers_are_normalised_as_by_the_vqa_evaluation(answer, expected):
    assert vqa_normalised(answer) == expected


def test_vqa_accuracy_leaves_each_person_out_in_turn():
    """By hand: of ten people n gave it; for each of those n - 1 are left, for each of the others n."""
    for n in range(11):
        people = ["Two"] * n + ["3"] * (10 - n)
        expected = sum(min(1, sum(p == "Two" for p in people[:i] + people[i + 1 :]) / 3) for i in range(10)) / 10
        assert vqa_accuracy(["the 2"], [people]) == pytest.approx([expected], abs=1e-12)
    assert vqa_accuracy(["2"], [["2"] * 3 + ["x"] * 7]) == pytest.approx([0.9])
    assert vqa_accuracy(["2"], [["2"] + ["x"] * 9]) == pytest.approx([0.3])


def test_edges_of_vqa_accuracy():
    assert vqa_accuracy(["yes", "no", ""], [["Yes."]] * 3) == [1.0, 0.0, 0.0]  # a single reference
    assert vqa_accuracy([""], [["", "a"] + ["x"] * 8]) == pytest.approx([0.6])  # two that say nothing
    assert vqa_accuracy(["x"], [["x", "y"]]) == pytest.approx([1 / 6])


@pytest.mark.parametrize(
    ("answer", "references", "exact", "score"),
    [
        ("The Denver Broncos.", ["Denver Broncos", "Broncos"], 1.0, 1.0),
        ("Denver", ["Denver Broncos", "the team"], 0.0, 2 / 3),
        ("red red blue", ["red blue blue"], 0.0, 2 / 3),
        ("", ["Denver"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("the", ["Denver"], 0.0, 0.0),
        ("black-white", ["black white"], 0.0, 0.0),  # punctuation is left out, not made a space
    ],
)
def test_exact_match_and_f1_are_those_of_squad(answer, references, exact, score):
    assert exact_match([answer], [references]) == [exact]
    assert f1([answer], [references]) == pytest.approx([score], abs=1e-12)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    for a, b in itertools.product(["x", "x y", "x y z w", "x x"], repeat=2):
        given, wanted = a.split(), b.split()
        same = sum(min(given.count(word), wanted.count(word)) for word in set(given))
        precision, recall = same / len(given), same / len(wanted)
        assert f1([a], [[b]]) == pytest.approx([2 * precision * recall / (precision + recall)])
    assert squad_normalised(" An  apple's a day,\nthe THEATRE") == "apples day theatre"
