"""Mixtures: how often each source comes, what they share, that batches are the same whoever reads them."""

import csv
import dataclasses
import logging
import pickle

import numpy as np
import pytest

from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.data import Balanced, Data, Digits, Manifest, Mix, Normalise, WordPiece
from mmjax.data.types import BadRecordError
from mmjax.train.config_file import apply_flags


@dataclasses.dataclass(frozen=True)
class Plain:
    """`count` records of numbers from `first` on, each with some keys, in blocks of four."""

    first: int
    count: int
    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ("number",)
    bad: tuple[int, ...] = ()

    def build(self):
        return PlainRecords(self)


@dataclasses.dataclass(frozen=True)
class PlainRecords:
    plain: Plain

    @property
    def classes(self):
        return self.plain.names

    def __len__(self):
        return self.plain.count

    def __getitem__(self, index):
        if index in self.plain.bad:
            raise BadRecordError(f"number {index}", "it is bad")
        number = self.plain.first + index
        whole = {"number": number, "text": f"number {number}", "group": index // 2, "label": index % max(1, len(self.classes))}
        return {key: whole[key] for key in self.plain.keys}

    def blocks(self):
        return np.full(self.plain.count // 4, 4, np.int64)

    def texts(self):
        return (self[i]["text"] for i in range(len(self)))

    def fingerprint(self):
        return repr(self.plain)


def numbers(source, steps=50, batch_size=8, **fields):
    with Data(source, batch_size=batch_size, **fields).build(None, 3, "train").batches() as batches:
        return np.concatenate([next(batches)["number"] for _ in range(steps)])


def test_each_source_comes_as_often_as_its_weight_says_and_in_an_order_of_its_own(caplog):
    a, b, c = Plain(0, 40), Plain(100, 12), Plain(200, 8)
    found = numbers(Mix({"a": a, "b": b}, {"a": 3.0, "b": 1.0}))
    assert (found < 100).sum() == 300 and [(found[i : i + 8] >= 100).sum() for i in range(0, 400, 8)] == [2] * 50
    assert sorted(found[found >= 100][:12]) == list(range(100, 112)) and sorted(found[found < 100][:40]) == list(range(40))
    assert "while b (12 records) is read once, a" not in caplog.text
    assert "while a (40 records) is read once, b (12 records) 1.11 times" in caplog.text
    third = numbers(Mix({"a": a, "b": b, "c": c}, {"a": 3.0, "b": 1.0, "c": 4.0}), steps=100)
    np.testing.assert_array_equal(third[third < 100][:300], found[found < 100])
    np.testing.assert_array_equal(third[(third >= 100) & (third < 200)][:100], found[found >= 100])


def test_without_weights_each_record_comes_as_often_as_any_other():
    found = numbers(Mix({"a": Plain(0, 40), "b": Plain(100, 24)}), steps=8)
    assert sorted(found) == [*range(40), *range(100, 124)]


@pytest.mark.parametrize("order", ["records", "blocks"])
def test_batches_are_the_same_whoever_reads_them_and_wherever_they_begin(order):
    inner = Mix({"x": Plain(100, 12), "y": Plain(200, 8, bad=(3,))}, {"x": 1.0, "y": 2.0})
    data = Data(
        Mix({"a": Plain(0, 40), "in": inner}, {"a": 3.0, "in": 2.0}),
        batch_size=8,
        order=order,
        block_window=2,
        bad_record_limit=1,
    )
    whole = [data.build(None, 0).batch(step)["number"].tolist() for step in range(12)]
    assert len({number for rows in whole for number in rows if number >= 200}) == 7, "one of the same source stands in"
    for workers, rows in ((0, (0, 1, 2)), (0, (3, 4, 5, 6, 7)), (2, None)):
        dataset = dataclasses.replace(data, workers=workers).build(None, 0)
        with dataset.batches(5, rows) as batches:
            for step in range(5, 9):
                assert next(batches)["number"].tolist() == [whole[step][row] for row in rows or range(8)]
    with data.build(None, 0).epoch() as batches:
        found = np.concatenate([batch["number"][batch["valid"]] for batch in (next(batches) for _ in range(8))])
    assert found.tolist() == [*range(40), *range(100, 112), *(n for n in range(200, 208) if n != 203)]


def test_classes_are_matched_by_name_and_groups_are_those_of_one_source():
    keys = ("number", "text", "label", "group")
    a, b = Plain(0, 4, ("cat", "dog"), keys), Plain(10, 6, ("emu", "dog", "ant"), keys)
    records = Mix({"a": a, "b": b}).build()
    assert records.classes == ("cat", "dog", "emu", "ant")
    assert [records[i]["label"] for i in range(10)] == [0, 1, 0, 1, 2, 1, 3, 2, 1, 3]
    groups = [tuple(records[i]["group"].tolist()) for i in range(10)]
    assert groups == [(1, 0, 0)] * 2 + [(1, 1, 0)] * 2 + [(2, 0, 0)] * 2 + [(2, 1, 0)] * 2 + [(2, 2, 0)] * 2
    batch = Data(Mix({"a": a, "b": b}), batch_size=10, max_length=4).build(WordPiece(60).train(records.texts()), 0).batch(0)
    assert batch["group"].shape == (10, 3)
    assert "group" not in Mix({"a": dataclasses.replace(a, keys=("number", "label")), "b": b_without(b, "text")}).build()[0]


def b_without(source, key):
    return dataclasses.replace(source, keys=tuple(own for own in source.keys if own != key))


def test_where_one_source_has_no_groups_equal_texts_are_positives_there():
    a, b = Plain(0, 4, keys=("number", "text", "group")), Plain(0, 4, keys=("number", "text"))
    records = Mix({"a": a, "b": b}).build()
    groups = [tuple(records[i]["group"].tolist()) for i in range(8)]
    assert groups[0] == groups[1] != groups[2] and len(set(groups[4:])) == 4 and not set(groups[:4]) & set(groups[4:])


def test_images_of_two_manifests_are_not_taken_for_each_other(tmp_path):
    for name, caption in (("a", "one"), ("b", "two")):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [("image", "text"), ("x.png", f"{caption} 1"), ("x.png", f"{caption} 2"), ("y.png", caption)]
            )
    parts = {name: Manifest(str(tmp_path / name / "list.csv"), "all") for name in ("a", "b")}
    examples = [parts[name].build() for name in ("a", "b")]
    assert [own["image_id"] for own in examples[0].examples] == [0, 0, 1]
    from PIL import Image

    for name in ("a", "b"):
        for file in ("x.png", "y.png"):
            Image.new("RGB", (2, 2)).save(tmp_path / name / file)
    records = Mix(parts).build()
    assert [records[i]["image_id"] for i in range(6)] == [0, 0, 2, 1, 1, 3]


def test_a_mixture_is_pickled_written_down_and_reached_by_flags(caplog):
    mix = Mix({"a": Digits("train"), "b": Digits("validation")}, {"a": 1.0, "b": 1.0})
    data = Data(mix, (Normalise(),), batch_size=4)
    assert from_json(to_json(data)) == data
    assert apply_flags(data, ["--source.weights.b", "3"]).source.weights["b"] == 3.0
    with caplog.at_level(logging.ERROR):
        records = mix.build()
    again = pickle.loads(pickle.dumps(records))
    assert again.fingerprint() == records.fingerprint() != Mix(mix.sources).build().fingerprint()
    assert len(again) == len(records) and again.classes == records.classes


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        (Mix({}), r"Mix\.sources is empty"),
        (Mix({"a": Plain(0, 4)}, {"b": 1.0}), r"Mix\.weights\.b: no source has that name"),
        (Mix({"a": Plain(0, 4)}, {"a": 0.0}), r"Mix\.weights\.a=0\.0: give a number above 0, or leave the source out"),
        (Mix({"a": Plain(0, 4), "b": Plain(0, 4)}, {"a": 1.0}), r"Mix\.weights has none of 'b': give one to each source"),
        (
            Mix({"a": Plain(0, 4), "b": Plain(0, 4)}, {"a": 1.0, "b": 1e-9}),
            r"Mix\.weights\.b=1e-09 is less than a millionth of all",
        ),
        (Mix({"a": Plain(0, 0)}), r"Mix\.sources\.a: .* has no records"),
        (
            Mix({"a": Plain(0, 1, bad=(0,))}),
            r"Mix\.sources\.a: none of its first records can be read; the first: number 0: it is bad",
        ),
        (
            Mix({"a": Plain(0, 4), "b": Plain(0, 4, keys=("text",))}),
            r"Mix\.sources\.a has 'number' and b has not: leave it out there",
        ),
        (
            Mix({"a": Plain(0, 4, ("x",), ("label",)), "b": Plain(0, 4, keys=("label",))}),
            r"Mix\.sources\.b has no names of its classes and a has: they are matched by name",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(mix, said):
    with pytest.raises(UserError, match=said):
        mix.build()


def test_orders_that_a_source_does_not_have_are_refused():
    for order, source, said in (
        ("shards", Plain(0, 4), r"order='shards': use one of records, blocks, stored"),
        ("blocks", Digits(), r"order='blocks': Digits has no blocks, and reads each record alike; use records"),
        ("blocks", Mix({"a": Digits()}), r"order='blocks': Mix\.sources\.a has no blocks"),
        ("blocks", Balanced(Digits()), r"order='blocks': records that are chosen one by one lie in no blocks"),
        ("stored", Balanced(Digits()), r"order='stored' is that of runs before mixtures"),
    ):
        with pytest.raises(UserError, match=said):
            Data(source, (Normalise(),) * isinstance(source, Digits), order=order).build(None, 0)


def test_classes_in_balance_take_turns():
    keys = ("number", "label")
    source = Plain(0, 40, ("a", "b", "c", "d"), keys)

    @dataclasses.dataclass(frozen=True)
    class Skewed:
        def build(self):
            return SkewedRecords(source)

    class SkewedRecords(PlainRecords):
        def __getitem__(self, index):
            return {"number": index, "label": -1 if index >= 38 else 0 if index < 30 else 1 if index < 36 else 2}

    found = numbers(Balanced(Skewed()), steps=30, batch_size=9)
    assert [int(np.sum(found < 30)), int(np.sum((found >= 30) & (found < 36))), int(np.sum(found >= 36))] == [90, 90, 90]
    assert set(found.tolist()) == set(range(38))
    between = numbers(Balanced(Skewed(), power=0.5), steps=100)
    expected = np.sqrt([30, 6, 2]) / np.sqrt([30, 6, 2]).sum()
    shares = [np.mean(between < 30), np.mean((between >= 30) & (between < 36)), np.mean(between >= 36)]
    np.testing.assert_allclose(shares, expected, atol=0.01)
    assert len(Balanced(Skewed()).build()) == 40
    with pytest.raises(UserError, match=r"Balanced\.source=Plain: its records have no classes to balance"):
        Balanced(Plain(0, 4)).build()
    with pytest.raises(UserError, match=r"Balanced\.power=2.*: use a number from 0 and up to 1"):
        Balanced(source, power=2.0).build()
