import dataclasses

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import Data, Strings, WordPiece, strings
from mmjax.data.columns import Columns

CAPTIONS = ("A cat.", "un café", "")


@dataclasses.dataclass(frozen=True)
class Source:
    """Records with several captions."""

    texts: tuple = (CAPTIONS, ("one",))

    def build(self):
        return self

    classes = ()

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return {"text": self.texts[index]}

    def fingerprint(self):
        return "x"


class Shout:
    """Writes the text anew."""

    def __call__(self, record, rng, records):
        return {**record, "text": record["text"].upper()}


def build(*transforms, **columns):
    tokenizer = WordPiece(60).train(["a cat one un cafe"])
    return Data(Source(), transforms, columns, batch_size=2, threads=0, max_length=8).build(tokenizer, 0)


def test_all_captions_are_kept_letter_for_letter_beside_the_one_that_is_drawn():
    (batch,) = build(references=Strings(rows=4, length=16, of="text")).epoch()
    assert batch["references"].shape == (2, 4, 16) and batch["references"].dtype == np.uint8
    assert strings(batch["references"]) == [CAPTIONS, ("one",)]
    assert batch["text"].shape == (2, 8)


def test_what_a_transform_writes_anew_is_the_text():
    (batch,) = build(Shout(), references=Strings(of="text")).epoch()
    assert [len(own) for own in strings(batch["references"])] == [1, 1]
    assert strings(batch["references"])[1] == ("ONE",)


def test_texts_come_back_whatever_is_in_them():
    record = {"a": ["", "\x00", "日本", "x" * 9, "\ud800"], "n": 1}
    columns = Columns(record, {}, 8, {"a": Strings(rows=5, length=10)})
    batch, _ = columns([record, {"a": None, "n": 1}, {"a": [], "n": 1}, {"a": "one", "n": 1}, {"a": 7, "n": 1}])
    assert strings(batch["a"]) == [tuple(record["a"]), (), (), ("one",), ("7",)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a", "b", "c"], "columns.a: rows=2: a record has 3 of a"),
        ("abcdef", "columns.a: length=6: a='abcdef'... takes 7 bytes"),
        ([1.5], "columns.a: a=1.5: a text is a string"),
    ],
)
def test_what_does_not_fit_is_refused(value, message):
    with pytest.raises(UserError) as raised:
        Columns({"a": "x"}, {}, 8, {"a": Strings(rows=2, length=6)})([{"a": value}])
    assert message in str(raised.value)


def test_a_key_that_is_not_there():
    with pytest.raises(UserError, match=r"columns\.references: no record has 'references'"):
        build(references=Strings(of="title"))
