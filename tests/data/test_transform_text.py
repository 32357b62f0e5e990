"""Captions from templates, and pairs for next-sentence prediction."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import Caption, NextSentence
from mmjax.data.transforms.text import _cut


@dataclasses.dataclass(frozen=True)
class Listed:
    """Records from a list."""

    records: list
    classes: tuple = ()

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def test_caption_draws_its_template():
    caption = Caption(("a {}", "the {name}, a {name}", "{{x}} {}"))
    record = {"name": "cat", "label": 0}
    found = [caption(record, np.random.default_rng(seed), ())["text"] for seed in range(60)]
    assert set(found) == {"a cat", "the cat, a cat", "{x} cat"} and "text" not in record
    assert min(found.count(text) for text in set(found)) >= 10
    assert list(Caption(("a {}", "b {}")).texts(Listed([], ("x", "y")))) == ["a x", "a y", "b x", "b y"]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (("a {nmae}",), "'a {nmae}' has {nmae}; only {}, {name} and {text} can be filled"),
        (("a {0}",), "has {0}"),
        (("a photo",), "'a photo' has no placeholder"),
        (("a {",), "'a {' is not a template"),
        ((), "give a tuple of one template or more"),
        ("a {}", "give a tuple of one template or more"),
    ],
)
def test_mistaken_templates(templates, message):
    with pytest.raises(UserError) as raised:
        Caption(templates)
    assert message in str(raised.value)


def test_caption_needs_a_name_and_no_text():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="needs records with a class name"):
        Caption()({"label": 1}, rng, ())
    with pytest.raises(UserError, match="would replace the captions"):
        Caption()({"name": "cat", "text": "mine"}, rng, ())


def test_cut_is_at_the_sentence_end_nearest_the_middle():
    assert _cut("One. Two is here! Three? Four.") == ("One. Two is here!", "Three? Four.")
    assert _cut("A short one. Then a very long sentence without an end") == (
        "A short one.",
        "Then a very long sentence without an end",
    )
    assert _cut("no end of it") == ("no end", "of it")
    assert _cut("word") == ("word", "") and _cut("") == ("", "")


@settings(deadline=None)
@given(st.text(alphabet="ab. !", max_size=30))
def test_cut_loses_no_character_but_spaces(text):
    assert "".join(_cut(text)).replace(" ", "") == text.replace(" ", "")


def test_pairs_that_follow_and_pairs_that_do_not():
    records = Listed([{"text": f"a{i}.", "text_pair": f"b{i}."} for i in range(5)])
    found = [NextSentence()(records[2], np.random.default_rng(seed), records) for seed in range(300)]
    following = [record for record in found if record["next"]]
    others = [record for record in found if not record["next"]]
    assert all((record["text"], record["text_pair"]) == ("a2.", "b2.") for record in following)
    assert {record["text_pair"] for record in others} == {"b0.", "b1.", "b3.", "b4."}
    assert {record["text"] for record in others} == {"a2."} and 120 <= len(following) <= 180


def test_pairs_from_one_text():
    records = Listed([{"text": "A b. C d."}, {"text": ("E f. G h.", "other")}])
    rng = np.random.default_rng(0)
    assert NextSentence(0.0)(records[0], rng, records) == {"text": "A b.", "text_pair": "C d.", "next": 1}
    assert NextSentence(1.0)(records[0], rng, records) == {"text": "A b.", "text_pair": "G h.", "next": 0}


def test_a_lone_record_keeps_its_pair():
    records = Listed([{"text": "A b. C d."}])
    assert NextSentence(1.0)(records[0], np.random.default_rng(0), records)["next"] == 1


def test_next_sentence_mistakes():
    with pytest.raises(UserError, match=r"NextSentence.probability=2"):
        NextSentence(2)
    with pytest.raises(UserError, match="NextSentence needs text"):
        NextSentence()({"label": 1}, np.random.default_rng(0), Listed([{}]))


def test_a_caption_in_the_place_of_the_sources_own_beside_it_and_by_the_beginnings_of_its_name():
    record = {"name": "food/fruit", "label": 0, "text": "A pear."}
    caption = Caption(("a {}", "{}: {text}"), replaces=0.5, separator="/")
    found = [caption(record, np.random.default_rng(seed), ())["text"] for seed in range(200)]
    texts = {"a food", "a food/fruit", "food: A pear.", "food/fruit: A pear."}
    assert set(found) == texts | {"A pear."} and 70 < found.count("A pear.") < 130
    assert min(found.count(text) for text in texts) > 10
    assert list(caption.texts(Listed([], ("food/fruit", "food/nuts")))) == ["a food", "a food/fruit", "a food/nuts"]
    assert Caption(("{{text}} {}",))({"name": "x"}, np.random.default_rng(0), ())["text"] == "{text} x"
    with pytest.raises(UserError, match=r"has {text}, and the source has no captions"):
        Caption(("{}: {text}",), replaces=1.0)({"name": "x"}, np.random.default_rng(0), ())
    with pytest.raises(UserError, match=r"'{text}' has no placeholder for the class's name"):
        Caption(("{text}",))
    with pytest.raises(UserError, match=r"Caption.replaces=1.5: use a number from 0 and up to 1"):
        Caption(replaces=1.5)
