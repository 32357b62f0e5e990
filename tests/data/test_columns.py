"""Records to arrays: keys, dtypes, groups, tokens, and records that do not fit."""

import zlib

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import WordPiece
from mmjax.data import columns as columns_module
from mmjax.data.columns import Columns

TEXTS = ["a cat", "a dog", "a cat and a dog and a cat", "the end"]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(100).train(TEXTS)


def image(level=0.0, size=(2, 3)):
    return np.full((*size, 3), level, np.float32)


def test_every_key_has_its_dtype(tokenizer):
    records = [
        {"image": image(i), "text": text, "label": i, "next": 1, "weight": 0.5, "name": "x"} for i, text in enumerate(TEXTS)
    ]
    batch, truncated = Columns(records[0], tokenizer, 6)(records)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 2, 3, 3), "float32"),
        "label": ((4,), "int32"),
        "next": ((4,), "int32"),
        "weight": ((4,), "float32"),
        "group": ((4,), "int32"),
        "text": ((4, 6), "int32"),
        "text_mask": ((4, 6), "bool"),
    }
    expected = tokenizer.encode(TEXTS, 6)
    np.testing.assert_array_equal(batch["text"], expected["ids"])
    np.testing.assert_array_equal(batch["text_mask"], expected["mask"])
    assert truncated == 1 and batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_groups(tokenizer):
    texts = [{"text": "a cat", "label": 4}, {"text": "a dog", "label": 4}, {"text": "a cat", "label": 5}]
    batch, _ = Columns(texts[0], tokenizer, 6)(texts)
    assert batch["group"].tolist() == [zlib.crc32(r["text"].encode()) & 0x7FFFFFFF for r in texts]
    labels = [{"image": image(), "label": 4}, {"image": image(), "label": 2}]
    assert Columns(labels[0], None, 6)(labels)[0]["group"].tolist() == [4, 2]
    given = [{"text": "a cat", "group": 9}]
    assert Columns(given[0], tokenizer, 6)(given)[0]["group"].tolist() == [9]
    assert "group" not in Columns({"image": image()}, None, 6)([{"image": image()}])[0]


def test_pairs_bring_segments(tokenizer):
    records = [{"text": "a cat", "text_pair": "a dog"}, {"text": "the end", "text_pair": ""}]
    batch, _ = Columns(records[0], tokenizer, 9)(records)
    expected = tokenizer.encode(["a cat", "the end"], 9, pairs=["a dog", ""])
    np.testing.assert_array_equal(batch["text"], expected["ids"])
    np.testing.assert_array_equal(batch["text_segments"], expected["segments"])


def test_texts_met_before_are_remembered_within_bounds(tokenizer, monkeypatch):
    monkeypatch.setattr(columns_module, "REMEMBERED", 3)
    asked = []
    monkeypatch.setattr(
        tokenizer, "encode", lambda texts, *rest: asked.append(list(texts)) or type(tokenizer).encode(tokenizer, texts, *rest)
    )
    columns = Columns({"text": "a cat"}, tokenizer, 6)
    for texts in (["a cat", "a cat", "a dog"], ["a dog", "the end"], ["a cat"], ["x", "a cat"]):
        batch, _ = columns([{"text": text} for text in texts])
        np.testing.assert_array_equal(batch["text"], type(tokenizer).encode(tokenizer, texts, 6)["ids"])
    assert asked == [["a cat", "a dog"], ["the end"], ["x"]]
    assert len(columns._remembered) <= 3


def test_records_that_do_not_fit(tokenizer):
    columns = Columns({"image": image(), "text": "a cat"}, tokenizer, 6)
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
            Columns(record, None, 6)
        assert message in str(raised.value)
