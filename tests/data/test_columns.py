"""Records to arrays: keys, dtypes, groups, tokens, and records that do not fit."""

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import Array, Class, Classes, Number, Text, WordPiece
from mmjax.data import columns as columns_module
from mmjax.data import texts as texts_module
from mmjax.data.columns import Lost

TEXTS = ["a cat", "a dog", "a cat and a dog and a cat", "the end"]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(100).train(TEXTS)


def made(first, tokenizer, max_length, *rest):
    return columns_module.Columns(first, {} if tokenizer is None else {"": tokenizer}, max_length, *rest)


def image(level=0.0, size=(2, 3)):
    return np.full((*size, 3), level, np.float32)


def test_every_key_has_its_dtype(tokenizer):
    records = [
        {"image": image(i), "text": text, "label": i, "next": 1, "weight": 0.5, "name": "x"} for i, text in enumerate(TEXTS)
    ]
    batch, lost = made(records[0], tokenizer, 6)(records)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 2, 3, 3), "float32"),
        "label": ((4,), "int32"),
        "next": ((4,), "int32"),
        "weight": ((4,), "float32"),
        "group": ((4, 2), "int32"),
        "text": ((4, 6), "int32"),
        "text_mask": ((4, 6), "bool"),
    }
    expected = tokenizer.encode(TEXTS, 6)
    np.testing.assert_array_equal(batch["text"], expected["ids"])
    np.testing.assert_array_equal(batch["text_mask"], expected["mask"])
    assert lost == Lost(1, 0, int(expected["mask"].sum())) and batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_groups(tokenizer):
    texts = [{"text": "a cat", "label": 4}, {"text": "a dog", "label": 4}, {"text": "a cat", "label": 5}]
    batch, _ = made(texts[0], tokenizer, 6)(texts)
    same = (batch["group"][:, None] == batch["group"][None]).all(axis=-1)
    assert same.tolist() == [[a["text"] == b["text"] for b in texts] for a in texts]
    assert (batch["group"] >= 0).all()
    labels = [{"image": image(), "label": 4}, {"image": image(), "label": 2}]
    assert made(labels[0], None, 6)(labels)[0]["group"].tolist() == [4, 2]
    given = [{"text": "a cat", "group": 9}]
    assert made(given[0], tokenizer, 6)(given)[0]["group"].tolist() == [9]
    assert "group" not in made({"image": image()}, None, 6)([{"image": image()}])[0]


def test_pairs_bring_segments(tokenizer):
    records = [{"text": "a cat", "text_pair": "a dog"}, {"text": "the end", "text_pair": ""}]
    batch, _ = made(records[0], tokenizer, 9)(records)
    expected = tokenizer.encode(["a cat", "the end"], 9, pairs=["a dog", ""])
    np.testing.assert_array_equal(batch["text"], expected["ids"])
    np.testing.assert_array_equal(batch["text_segments"], expected["segments"])


def test_texts_met_before_are_remembered_within_bounds(tokenizer, monkeypatch):
    monkeypatch.setattr(texts_module, "REMEMBERED", 3)
    asked = []
    monkeypatch.setattr(
        tokenizer, "encode", lambda texts, *rest: asked.append(list(texts)) or type(tokenizer).encode(tokenizer, texts, *rest)
    )
    columns = made({"text": "a cat"}, tokenizer, 6)
    for texts in (["a cat", "a cat", "a dog"], ["a dog", "the end"], ["a cat"], ["x", "a cat"]):
        batch, _ = columns([{"text": text} for text in texts])
        np.testing.assert_array_equal(batch["text"], type(tokenizer).encode(tokenizer, texts, 6)["ids"])
    assert asked == [["a cat", "a dog"], ["the end"], ["x"]]
    assert len(columns.of("text")._remembered) <= 3


def test_records_that_do_not_fit(tokenizer):
    columns = made({"image": image(), "text": "a cat"}, tokenizer, 6)
    cases = [
        (
            {"image": image(size=(4, 5)), "text": ""},
            "image: a record's is 4x5x3 float32, the first record's 2x3x3 float32; add Resize",
        ),
        ({"image": image(), "text": 3}, "text: a record's is one int32, the first record's one text"),
        ({"image": image()}, "a record lacks 'text', unlike the first record"),
        ({"image": image(), "text": "", "label": 1}, "a record has 'label', unlike the first record"),
    ]
    for record, message in cases:
        with pytest.raises(UserError) as raised:
            columns([{"image": image(), "text": "a dog"}, record])
        assert message in str(raised.value)


def test_a_first_record_that_cannot_be_batched(tokenizer):
    for record, message in (
        ({"image": np.zeros((2, 2, 3), np.uint8)}, "the image is still uint8 at the end; add Normalise()"),
        ({"text": "a"}, "the records have text, and no tokenizer was given"),
        ({"name": "a"}, "a record has nothing for a batch to hold; its keys are name"),
    ):
        with pytest.raises(UserError) as raised:
            made(record, None, 6)
        assert message in str(raised.value)


def test_texts_of_two_tokenizers_a_number_and_classes():
    """What a spec says of each key; the second tokenizer knows other words and has another length."""
    titles = WordPiece(100).train(["red green blue"])
    tokenizers = {"": WordPiece(100).train(TEXTS), "titles": titles}
    records = [
        {"text": "a cat", "title": "red", "price": "12.5", "kind": "hat", "tags": ["new", "old"], "spots": np.ones((1, 2))},
        {"text": "a dog", "title": "blue red", "price": None, "kind": None, "tags": [], "spots": np.zeros((0, 2))},
        {"text": "the end", "title": "green", "price": 7, "kind": "cap", "tags": None, "spots": np.ones((2, 2))},
    ]
    specs = {
        "title": Text("titles", 5),
        "price": Number(mean=2.5, deviation=10.0),
        "kind": Class(("cap", "hat")),
        "tags": Classes(("old", "new", "rare")),
        "spots": Array("float32", rows=3),
    }
    columns = columns_module.Columns(records[0], tokenizers, 6, specs)
    batch, lost = columns(records)
    np.testing.assert_array_equal(batch["title"], titles.encode(["red", "blue red", "green"], 5)["ids"])
    assert batch["title_mask"].sum(axis=1).tolist() == [3, 4, 3]
    np.testing.assert_array_equal(batch["price"], np.array([1.0, np.nan, 0.45], np.float32))
    assert batch["kind"].tolist() == [1, -1, 0]
    assert batch["tags"].tolist() == [[1, 1, 0], [0, 0, 0], [-1, -1, -1]]
    assert batch["spots"][:, :, 0].tolist() == [[1, -1, -1], [-1, -1, -1], [1, 1, -1]]
    assert columns.names == {"kind": ("cap", "hat"), "tags": ("old", "new", "rare")} and [*columns.texts] == ["text", "title"]
    assert lost.tokens == 10 + 4 * 3


def test_flags_say_of_each_class_whether_it_is_there_is_not_or_is_not_known():
    values = [[1, 0, -1], [0, None, 1.0], None, np.array([np.nan, 1, 0])]
    columns = columns_module.Columns({"found": values[0]}, {}, 6, {"found": Classes(("a", "b", "c"), flags=True)})
    batch, _ = columns([{"found": value} for value in values])
    assert batch["found"].tolist() == [[1, 0, -1], [0, -1, 1], [-1, -1, -1], [-1, 1, 0]]
    columns.of("found").match(("c", "d", "a", "b"))
    batch, _ = columns([{"found": value} for value in values[:2]])
    assert batch["found"].tolist() == [[-1, -1, 1, 0], [1, -1, 0, -1]] and batch["found"].dtype == np.float32


@pytest.mark.parametrize(
    ("specs", "record", "message"),
    [
        ({"value": Classes(("a", "b"), flags=True)}, {"value": [1]}, "value=[1]: give 2 numbers, one for each of a, b"),
        (
            {"value": Classes(("a", "b"), flags=True)},
            {"value": [1, 2]},
            "[1, 2] has 2: a class is there (1), not there (0) or not",
        ),
        ({"value": Classes(("a",), flags=True)}, {"value": ["a"]}, "['a'] has 'a': a class is there (1)"),
        ({"size": Number()}, {}, "columns.size: no record has 'size'; its keys are text, value"),
        ({"value": Text("titles")}, {"value": "x"}, "columns.value: tokenizer='titles': the experiment's tokenizers are none"),
        ({"value": Text()}, {"value": 3.5}, "columns.value: value=3.5: a text is a string"),
        ({"value": Classes(("a", "b", "c"))}, {"value": [0, 0, 1]}, "name each class once; a vector of zeros and ones"),
        ({"value": Class(("a", "b", "a"))}, {"value": "a"}, "names=('a', 'b', 'a'): give a tuple of names, each once"),
        ({"value": Class("ab")}, {"value": "a"}, "give a tuple of names"),
        ({"value": Array("bool")}, {"value": "False"}, "value='False': an array is of numbers"),
        ({"value": Array("int32")}, {"value": 2.7}, "2.7 and others of its numbers are not whole"),
        ({"value": Number()}, {"value": "1_000"}, "is not a number that can be predicted"),
        ({}, {"value": np.array([3_000_000_000])}, "value=3000000000 does not fit into 32 bits"),
        ({}, {"index": 3}, "a record has 'index', which is the pipeline's own"),
        ({"value": Class(("a", "b"))}, {"value": "c"}, "columns.value: value='c' is no class; they are a, b"),
        ({"value": Class(("a", "b"))}, {"value": 2}, "columns.value: value=2: there are 2 classes, 0 to 1"),
        ({"value": Class()}, {"value": "c"}, "they are none: give Class(names)"),
        ({"value": Class()}, {"value": 1.5}, "value=1.5: a class is a whole number or a name"),
        ({"value": Classes(())}, {"value": []}, "columns.value: names=(): give the classes"),
        ({"value": Classes(("a",))}, {"value": "a"}, "value='a': give a list of classes, for instance ['a']"),
        ({"value": Number()}, {"value": "much"}, "columns.value: value='much' is not a number"),
        ({"value": Array("int64")}, {"value": 1}, "columns.value: dtype='int64': use float32, int32 or bool"),
        ({"value": Array(rows=1)}, {"value": np.ones((2, 2))}, "columns.value: rows=1: a record has 2 of value"),
        ({}, {"value": 10**10}, "value=10000000000 does not fit into 32 bits"),
        ({}, {"label": -(10**10)}, "label=-10000000000 does not fit into 32 bits"),
    ],
)
def test_what_a_column_cannot_hold_is_named(tokenizer, specs, record, message):
    record = {"text": "a cat", "value": 1} | record
    with pytest.raises(UserError) as raised:
        made(record, tokenizer, 6, specs)([record])
    assert message in str(raised.value)


def test_labels_are_matched_by_name_and_held_to_the_head():
    records = [{"label": label} for label in (0, 1, 2, -1, None, -7)]
    columns = made(records[0], None, 6, {"label": Class()}, ("cat", "dog", "eel"))
    assert columns(records)[0]["label"].tolist() == [0, 1, 2, -1, -1, -1]
    columns.of("label").match(("eel", "ant", "cat", "dog"))
    assert columns(records)[0]["label"].tolist() == [2, 3, 0, -1, -1, -1]
    assert columns.names == {"label": ("eel", "ant", "cat", "dog")}
    free = made({"label": 0}, None, 6)
    assert free([{"label": 9}])[0]["label"].tolist() == [9]
    free.of("label").limit = 9
    with pytest.raises(UserError, match="label=9: there are 9 classes, 0 to 8"):
        free([{"label": 9}])


def test_unknown_tokens_are_counted(tokenizer):
    records = [{"text": "a cat"}, {"text": "a 日本"}]
    _, lost = made(records[0], tokenizer, 9)(records)
    assert lost.unknown == 2 and lost.tokens == 4 + 5


def test_names_given_to_labels_that_a_source_has_numbered():
    """The source's class 0 is cat, the head's is dog: labels follow the names, never the places."""
    records = [{"label": label} for label in (0, 1, -1)]
    columns = columns_module.Columns(records[0], {}, 6, {"label": Class(("dog", "eel", "cat"))}, ("cat", "dog"))
    assert columns(records)[0]["label"].tolist() == [2, 0, -1]
    assert columns.names == {"label": ("dog", "eel", "cat")}
    with pytest.raises(UserError, match="the source has the class 'cat', which is not one of them"):
        columns_module.Columns(records[0], {}, 6, {"label": Class(("dog", "eel"))}, ("cat", "dog"))


def test_names_that_are_numbers_are_names():
    records = [{"stars": value} for value in (20, 10, "20", -1)]
    columns = columns_module.Columns(records[0], {}, 6, {"stars": Class(("10", "20"))})
    assert columns(records)[0]["stars"].tolist() == [1, 0, 1, -1]
    with pytest.raises(UserError, match="stars='1' is no class"):
        columns([{"stars": 1}])


def test_what_has_no_class_is_a_group_of_its_own():
    records = [{"image": image(level), "label": label} for level, label in enumerate((0, -1, -1, 0))]
    group = made(records[0], None, 6)(records)[0]["group"]
    assert group[0] == group[3] == 0 and len(set(group.tolist())) == 3
    # By where it stands in its source, so that none meets another by chance, and in any batch it is the same one.
    group = made(records[0], None, 6)(records, [7, 2**20, 5, 1])[0]["group"]
    assert group.tolist() == [0, 2**31 - 1 - 2**20, 2**31 - 6, 0] and group.dtype == np.int32


def test_rows_of_bool_are_filled_up_with_false():
    records = [{"m": np.ones(2, bool)}, {"m": np.ones(3, bool)}]
    batch, _ = columns_module.Columns(records[0], {}, 6, {"m": Array("bool", rows=4)})(records)
    assert batch["m"].tolist() == [[True, True, False, False], [True, True, True, False]]


def test_a_label_map_of_bytes():
    """Under any name of an image; numbers from the head's classes up are refused, and those that are to be ignored are none."""
    there = {"left_eye": image(size=(2, 2)), "left_eye_map": np.array([[0, 1], [2, 255]], np.uint8)}
    columns = made(there, None, 6)
    assert columns([there])[0]["left_eye_map"].tolist() == [[[0, 1], [2, 255]]]
    columns.of("left_eye_map").limit = 3
    with pytest.raises(UserError, match="left_eye_map=255: there are 3 classes, 0 to 2"):
        columns([there])
    ignoring = columns_module.Columns(there, {}, 6, {"left_eye_map": Class(("a", "b", "c"), ignore=(255,))})
    assert ignoring([there])[0]["left_eye_map"].tolist() == [[[0, 1], [2, -1]]]
