"""Entities against a slow count word by word, which was held against seqeval 1.2.2 on 60,000 sequences, and its figures."""

import jax.numpy as jnp
import numpy as np
import pytest
from fake_evaluation import FakeForward, make_evaluation
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data.schemes import tag_names
from mmjax.evaluate import Entities
from mmjax.evaluate.entities import PREFIX, predicted, scores

LENGTH = 16
TYPES = ("LOC", "ORG", "PER")
PREFIXES = {"iob2": "BI", "iobes": "BIES"}
# What seqeval 1.2.2 says: classification_report(true, predicted, zero_division=0), and with mode="strict" and the scheme.
TRUE = {
    "iob2": (
        "B-ORG I-ORG B-LOC I-LOC I-LOC B-ORG B-PER O",
        "O B-PER B-PER I-PER I-PER O O O",
        "B-LOC B-PER O B-ORG I-ORG I-ORG B-PER O",
        "O O O B-LOC B-ORG I-ORG I-ORG O",
    ),
    "iobes": (
        "B-ORG E-ORG B-LOC I-LOC E-LOC S-ORG S-PER O",
        "O S-PER B-PER I-PER E-PER O O O",
        "S-LOC S-PER O B-ORG I-ORG E-ORG S-PER O",
        "O O O S-LOC B-ORG I-ORG E-ORG O",
    ),
}
SAID = {
    "iob2": (
        "B-LOC I-LOC B-LOC I-LOC I-LOC B-ORG B-PER O",
        "O B-PER B-PER I-PER I-PER I-LOC O O",
        "B-LOC B-PER O B-PER O I-ORG B-PER O",
        "I-LOC O O B-LOC B-ORG I-ORG I-LOC O",
    ),
    "iobes": (
        "I-LOC E-PER B-LOC I-LOC E-LOC S-ORG S-PER O",
        "O S-PER B-PER I-PER E-PER S-LOC O O",
        "S-LOC S-PER O E-LOC O E-ORG S-PER O",
        "S-LOC O O I-LOC B-ORG I-ORG S-LOC O",
    ),
}
GOLDEN = {  # precision, recall, F1
    ("iob2", "lenient"): {
        "/LOC": (0.428571, 1.0, 0.6),
        "/ORG": (0.333333, 0.25, 0.285714),
        "/PER": (0.833333, 1.0, 0.909091),
        "": (0.5625, 0.75, 0.642857),
        "macro_": (0.531746, 0.75, 0.598268),
    },
    ("iob2", "strict"): {
        "/LOC": (0.75, 1.0, 0.857143),
        "/ORG": (0.5, 0.25, 0.333333),
        "/PER": (0.833333, 1.0, 0.909091),
        "": (0.75, 0.75, 0.75),
        "macro_": (0.694444, 0.75, 0.699856),
    },
    ("iobes", "lenient"): {
        "/LOC": (0.375, 1.0, 0.545455),
        "/ORG": (0.333333, 0.25, 0.285714),
        "/PER": (0.833333, 1.0, 0.909091),
        "": (0.529412, 0.75, 0.62069),
        "macro_": (0.513889, 0.75, 0.580087),
    },
    ("iobes", "strict"): {
        "/LOC": (0.4, 0.666667, 0.5),
        "/ORG": (1.0, 0.25, 0.4),
        "/PER": (1.0, 1.0, 1.0),
        "": (0.727273, 0.666667, 0.695652),
        "macro_": (0.8, 0.638889, 0.633333),
    },
}


class Said(FakeForward):
    """A head whose answers are in the batch."""

    def head(self, head, tokens=None, key=""):
        return (self.batch["said"][..., None] == jnp.arange(len(self.params["tags"]))[None, None]).astype(jnp.float32)


def params(size):
    return {"tags": np.zeros(size, np.float32)}


def runs(tags, strict=""):
    """Entities (type, first, last) of one sentence, word by word."""
    found, opened = [], None
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if opened is not None and prefix in ("I", "E") and kind == opened[0] and tags[place - 1][0] in "BI":
            continue
        if opened is not None:
            first, last = tags[opened[1]][0], tags[place - 1][0]
            if not strict or (first in "BS" and (strict == "iob2" or last in "ES")):
                found.append((*opened, place - 1))
            opened = None
        if prefix != "O":
            opened = (kind, place)
    return found


def columns(true, said, names, scheme, there=None):
    """What a `Tags` column gives of sentences; `there`: sentence -> place of the token of each word that has one."""
    rows = len(true)
    made = {name: np.full((rows, LENGTH), -1, np.int32) for name in ("tags", "tags_words", "tags_ends", "said")}
    lost = np.zeros((rows, len(TYPES)), np.int32)
    made["said"][:] = 1  # whatever is said of other tokens
    for n, (own, answer) in enumerate(zip(true, said, strict=True)):
        places = {word: word + 1 for word in range(len(own))} if there is None else there[n]
        for word, place in places.items():
            made["tags"][n, place], made["tags_words"][n, place] = names.index(own[word]), word
            made["said"][n, place] = names.index(answer[word])
        for kind, first, last in runs(own, scheme):
            if all(word in places for word in range(first, last + 1)):
                made["tags_ends"][n, places[first]] = last
            else:
                lost[n, TYPES.index(kind)] += 1
    return {**made, "tags_lost": lost}


def evaluation(made, names, batch_size=3, unreadable=()):
    built = make_evaluation(made, batch_size, bind=Said)
    dataset = built._datasets["validation"]
    dataset.names, dataset.unreadable = {"tags": names}, unreadable
    return built


def all_names(scheme):
    return tag_names([f"B-{kind}" for kind in TYPES], scheme)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("scheme", "mode"), GOLDEN)
def test_the_figures_are_those_of_seqeval(scheme, mode, batch_size):
    names = all_names(scheme)
    true, said = ([one.split() for one in own[scheme]] for own in (TRUE, SAID))
    made = evaluation(columns(true, said, names, scheme), names, batch_size)
    metrics = Entities(scheme=scheme, mode=mode)(made, params(len(names)))
    expected = {"lost": 0.0}
    for part, values in GOLDEN[scheme, mode].items():
        for name, value in zip(("precision", "recall", "f1"), values, strict=True):
            expected[f"{part}{name}" if part == "macro_" else f"{name}{part}"] = value
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(("scheme", "strict"), [("iob2", False), ("iob2", True), ("iobes", False), ("iobes", True)])
def test_entities_of_random_tags(scheme, strict):
    rng, names = np.random.default_rng(0), all_names(scheme)
    tag_BT = rng.integers(len(names), size=(500, LENGTH))
    word_BT = np.where(rng.random(tag_BT.shape) < 0.7, np.cumsum(rng.integers(1, 3, tag_BT.shape), axis=1), -1)
    parts = [name.partition("-") for name in names]
    prefix, kind = (np.array(x) for x in ([PREFIX[p[0]] for p in parts], [["", *TYPES].index(p[2]) - 1 for p in parts]))
    starts, ends = (np.asarray(x) for x in predicted(prefix[tag_BT], kind[tag_BT], word_BT, scheme if strict else ""))
    for n in range(len(tag_BT)):
        places = np.flatnonzero(word_BT[n] >= 0)
        whole = ["O"] * (int(word_BT[n].max()) + 1)
        for place in places:
            whole[word_BT[n, place]] = names[tag_BT[n, place]]
        found = {(TYPES[kind[tag_BT[n, p]]], int(word_BT[n, p]), int(ends[n, p])) for p in np.flatnonzero(starts[n])}
        assert found == set(runs(whole, scheme if strict else ""))


@given(st.data())
def test_words_without_a_token_are_predicted_as_o(data):
    """Of whole sentences, whose lost words are given the answer O, the counts are the same."""
    names = all_names("iob2")
    tags = st.sampled_from(names)
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=4, max_size=4))
    true = [data.draw(st.lists(tags, min_size=size, max_size=size)) for size in sizes]
    true = [_valid(one) for one in true]
    said = [data.draw(st.lists(tags, min_size=size, max_size=size)) for size in sizes]
    kept = [data.draw(st.lists(st.booleans(), min_size=size, max_size=size)) for size in sizes]
    there = [{word: word + 2 for word, keep in enumerate(own) if keep} for own in kept]
    made = EVALUATIONS.setdefault("made", evaluation(columns(true, said, names, "iob2", there), names, 4))
    made._datasets["validation"].columns = columns(true, said, names, "iob2", there)
    counts, lost, words = Entities().counts(made, params(len(names)), names)
    whole = [[a if keep else "O" for a, keep in zip(*own, strict=True)] for own in zip(said, kept, strict=True)]
    expected = np.zeros((3, 3))
    for own, answer in zip(true, whole, strict=True):
        there_, found = set(runs(own)), set(runs(answer))
        for row, group in enumerate((there_ & found, found, there_)):
            for kind, _, _ in group:
                expected[row, TYPES.index(kind)] += 1
    np.testing.assert_array_equal(counts, expected)
    assert words == sum(map(sum, kept)) and lost <= counts[2].sum()


EVALUATIONS: dict = {}  # one for all examples: it is compiled once


def _valid(tags):
    """IOB2, of any tags."""
    found = []
    for tag in tags:
        broken = tag.startswith("I-") and (not found or found[-1][2:] != tag[2:])
        found.append(f"B-{tag[2:]}" if broken else tag)
    return found


def test_what_is_lost_is_said_and_missed(caplog):
    names = all_names("iob2")
    true = [["B-PER", "I-PER", "O", "B-LOC"]]
    made = columns(true, true, names, "iob2", [{0: 1, 2: 2, 3: 3}])  # the second word has no token
    metrics = Entities()(evaluation(made, names), params(len(names)))
    assert (metrics["lost"], metrics["recall"], metrics["precision"]) == (1.0, 0.5, 0.5) and metrics["recall/PER"] == 0.0
    assert "1 of 2 entities have a word without a token" in caplog.text


def test_an_unreadable_record_does_not_count():
    names = all_names("iob2")
    true, said = ([one.split() for one in own["iob2"]] for own in (TRUE, SAID))
    one = Entities()(evaluation(columns(true, said, names, "iob2"), names, unreadable=(1, 3)), params(len(names)))
    keep = Entities()(evaluation(columns(true[::2], said[::2], names, "iob2"), names), params(len(names)))
    assert one == keep


def test_scores_without_anything():
    assert scores(np.zeros((3, 1)), ("A",)) == dict.fromkeys(
        ("precision", "recall", "f1", "macro_precision", "macro_recall", "macro_f1"), 0.0
    )


def test_mistakes_are_named():
    names = all_names("iob2")
    true = [["O", "B-PER"]]
    made = columns(true, true, names, "iob2")
    with pytest.raises(UserError, match=r"model.heads.token_classes.classes=3: data.validation has 7 classes, so it needs 7"):
        Entities()(evaluation(made, names), params(3))
    with pytest.raises(UserError, match=r"does not say the tags of 'tags': give it the column Tags\(\)"):
        Entities()(evaluation(made, ()), params(7))
    with pytest.raises(UserError, match="'S-PER' is no tag of the scheme iob2"):
        Entities()(evaluation(made, ("O", "S-PER")), params(2))
    with pytest.raises(UserError, match="has no 'tags_words', which this evaluation needs"):
        Entities()(evaluation({"tags": made["tags"], "said": made["said"]}, names), params(7))
    with pytest.raises(UserError, match="has no tagged word"):
        Entities()(evaluation({**made, "tags_words": np.full_like(made["tags"], -1)}, names), params(7))
    with pytest.raises(UserError, match=r"entities\.mode='hard': use one of lenient, strict"):
        Entities(mode="hard")
    with pytest.raises(UserError, match="scheme='x' is no scheme"):
        Entities(scheme="x")
