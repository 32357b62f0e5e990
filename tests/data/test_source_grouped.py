"""Grouped: the items of a query are in one batch, at any size, in any epoch, for whoever reads."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import Data, Grouped, Manifest, Packed, WordPiece
from mmjax.data.order import Bits
from mmjax.data.prepare import prepare
from mmjax.data.sources.grouped import GroupedRecords
from mmjax.data.turns import Lists
from mmjax.data.types import BadRecordError

WORDS = WordPiece(60)


def lines(tmp_path, sizes=(3, 4, 6, 1, 4), named=True):
    """Items of queries that lie mixed; one has no query."""
    found = [
        {"text": f"item {item} of {query}", "query": f"shoe {query}" if named else 5 * query, "relevance": item % 3}
        for item in range(max(sizes))
        for query, size in enumerate(sizes)
        if item < size
    ]
    found.append({"text": "lost", "query": "" if named else -1, "relevance": 1})
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
    return Manifest(str(path), "all", fields={"query": "query", "relevance": "relevance"})


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    rows=st.integers(2, 5),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 10**6),
)
def test_an_epoch_has_each_list_once_its_items_side_by_side(sizes, rows, seed, epoch):
    size, ends = sum(sizes), np.cumsum(sizes)
    members = np.split(np.random.default_rng(seed).permutation(size), ends[:-1])
    lists = Lists(members, rows, size).shuffled(Bits(seed, "order"))
    places = np.arange(epoch * lists.size, (epoch + 1) * lists.size)
    found = lists.at(places).reshape(-1, rows)
    owner = {int(item): number for number, own in enumerate(members) for item in own}
    assert sorted(owner[int(row[0])] for row in found) == list(range(len(sizes)))
    for row in found:
        own = set(members[owner[int(row[0])]].tolist())
        real, empty = row[row < size].tolist(), row[row >= size]
        assert len(set(real)) == len(real) == min(rows, len(own)) and set(real) <= own and set((empty - size).tolist()) <= own
    np.testing.assert_array_equal(lists.at(places[3:]), found.reshape(-1)[3:])


def test_a_batch_holds_whole_queries_and_rows_that_count_nowhere(tmp_path, caplog):
    tokens = WORDS.train(["item of shoe lost 0 1 2 3 4 5"])
    with caplog.at_level(logging.INFO):
        data = Data(Grouped(lines(tmp_path), rows=4), batch_size=8).build(tokens, 3, "train")
    assert (
        "Grouped: 4 queries by 'query' of 4 rows each; 1 have fewer (6% of the rows are empty), "
        "1 have more (an epoch leaves 2 items out), 2 records without another of their query are left out"
    ) in caplog.text
    assert data.together == "query" and data.size == 19
    seen = Counter()
    for step in range(8):  # four epochs
        batch = data.batch(step)
        texts = tokens_of(tokens, batch)
        for row in range(0, 8, 4):
            own = [n for n in range(row, row + 4) if batch["query"][n] >= 0]
            names = {texts[n].split()[-1] for n in own}
            assert len(names) == 1 and len({texts[n] for n in own}) == len(own) == min(4, (3, 4, 6, 1, 4)[int(*names)])
            assert len({batch["query"][n] for n in own}) == 1
            seen.update(texts[n] for n in own)
        halves = data.batch(step, rows=[4, 5, 6, 7])
        np.testing.assert_array_equal(halves["query"], batch["query"][4:])
    assert {count for text, count in seen.items() if not text.endswith("2")} == {4}
    assert {text[-1] for text in seen} == set("0124") and len({t for t in seen if t.endswith("2")}) == 6
    with data.epoch() as epoch:
        once = [row for batch in epoch for row, valid in zip(batch["query"].tolist(), batch["valid"], strict=True) if valid]
    assert len(once) == 19 and once.count(-1) == 1


def tokens_of(tokens, batch):
    return [tokens.decode(row[mask]) for row, mask in zip(batch["text"], batch["text_mask"], strict=True)]


def test_whole_numbers_stay_what_they_are_and_nothing_is_shuffled_that_is_not_to_be(tmp_path):
    data = Data(Grouped(lines(tmp_path, (2, 3), named=False), rows=2, key="list"), batch_size=4, shuffle=False)
    dataset = data.build(WORDS.train(["item of"]), 0)
    assert dataset.batch(0)["list"].tolist() == [0, 0, 5, 5] and dataset.batch(1)["relevance"].tolist() == [0, 1, 0, 1]


class Torn:
    """Eight items of two queries, of which one cannot be read."""

    classes = ()

    def build(self):
        return self

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            raise BadRecordError("3.png", "torn")
        return {"query": index // 4, "relevance": float(index)}

    def texts(self):
        return iter(())

    def fingerprint(self):
        return "torn"


def test_what_stands_in_for_an_unreadable_item_is_of_no_query():
    records = Grouped(Torn(), rows=4).build()
    assert isinstance(records, GroupedRecords) and records.query.tolist() == [0, 0, 0, -1, 1, 1, 1, 1]
    whole = GroupedRecords(Torn(), "query", 4, np.repeat([0, 1], 4), (np.arange(4), np.arange(4, 8)))

    class Whole:
        def build(self):
            return whole

    dataset = Data(Whole(), batch_size=8, bad_record_limit=0.2).build(None, 0)
    for step in range(3):
        assert sorted(dataset.batch(step)["query"].tolist()) == [-1, 0, 0, 0, 1, 1, 1, 1]
    assert dataset.bad == {"3.png": "torn"}


def test_what_cannot_be_is_refused_by_name(tmp_path):
    source = lines(tmp_path)
    for field, match in (
        ({"rows": 4, "by": "quary"}, r"Grouped\.by: 'quary' is in no record \(did you mean 'query'\?\)"),
        ({"by": "text"}, r"Grouped\.by='text': none of the 19 records shares it with another"),
        ({"by": "relevance", "rows": 1}, r"Grouped\.rows=1"),
    ):
        with pytest.raises(UserError, match=match):
            Grouped(source, **field).build()
    with pytest.raises(UserError, match=r"Grouped\.by='query': 1\.5 of record 1 is no whole number below 2\^31, and no text"):
        Grouped(Other([0, 1.5])).build()
    with pytest.raises(UserError, match=r"some records have a text, some a number"):
        Grouped(Other([0, "a"])).build()
    with pytest.raises(UserError, match=r"Grouped\.by='kind': record 0 has no 'kind'; it has query, relevance"):
        Grouped(Torn(), by="kind").build()
    grouped, tokens = Grouped(source, rows=4), WORDS.train(["item"])
    for spec, match in (
        ({"batch_size": 10}, r"data\.train: batch_size=10 is no multiple of source\.rows=4, a query's: use 8"),
        ({"batch_size": 8, "order": "blocks"}, r"order='blocks': records that are kept together"),
        ({"batch_size": 8, "packing": Packed(length=64)}, r"packing: each of the source's queries has 4 rows"),
    ):
        with pytest.raises(UserError, match=match):
            Data(grouped, **spec).build(tokens, 0, "train")
    with pytest.raises(UserError, match=r"source: Grouped says which records are drawn together"):
        prepare(Data(grouped, batch_size=8), "train", tmp_path / "out")


class Other(Torn):
    def __init__(self, values):
        self.values = values

    def values_of(self, key):
        return self.values
