"""Batches of texts of like lengths: which records are in which, and that each is as it would be without."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import Buckets, Conll, Data, Digits, Fill, Grouped, Manifest, Normalise, Span, Tags, Text, WordPiece
from mmjax.data.files.recent import Recent
from mmjax.data.inspect_page import rows
from mmjax.data.lengths import lengths_of
from mmjax.data.reader import Reader

WORDS = [f"w{n}" for n in range(40)]
SPEC = Buckets((5, 8), window=3)
COUNT = 96


def text(n):
    return " ".join(WORDS[(n * 7 + k) % 40] for k in range(1 + n * n % 13))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [{"text": [text(n), text(n + 1)] if n % 3 else text(n), "label": "ab"[n % 2], "n": n} for n in range(COUNT)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(300).train(text(n) for n in range(COUNT + 1))


def data(table, **changes):
    source = Manifest(str(table), "all", fields={"n": "n"})
    return Data(**{"source": source, "batch_size": 8, "max_length": 16, "packing": SPEC, **changes})


def places(bucketed, step, batch_size=8):
    return bucketed._stream(batch_size, None, once=False).drawn(step)[1]


def test_a_window_is_sorted_and_its_batches_come_in_an_order_of_their_own(table, tokenizer):
    bucketed = data(table).build(tokenizer, seed=3)
    plain = data(table, packing=None).build(tokenizer, seed=3)
    came, orders = [], set()
    for window in range(16):
        stream = [(row, plain.batch(3 * window + n)) for n in range(3) for row in range(8)]
        own = [int(batch["text_mask"][row].sum()) for row, batch in stream]
        in_order = sorted(range(24), key=lambda place: (own[place], place))
        want = [[24 * window + place for place in in_order[first : first + 8]] for first in (0, 8, 16)]
        found = [places(bucketed, 3 * window + n) for n in range(3)]
        assert sorted(found) == sorted(want)
        orders.add(tuple(want.index(one) for one in found))
        for n, one in enumerate(found):
            longest = max(own[place - 24 * window] for place in one)
            length = next(length for length in (5, 8, 16) if length >= longest)
            assert bucketed.batch(3 * window + n)["text"].shape == (8, length)
        came += [place for one in found for place in one]
    assert sorted(came) == list(range(16 * 24))
    assert {order.index(2) for order in orders} == {0, 1, 2}, "the longest would always come last"


def test_a_row_is_what_it_is_without_buckets_but_for_padding(table, tokenizer):
    bucketed = data(table).build(tokenizer, seed=3)
    plain = data(table, packing=None).build(tokenizer, seed=3)
    lengths = set()
    for step in range(12):
        batch = bucketed.batch(step)
        length = batch["text"].shape[1]
        lengths.add(length)
        assert {key: (x.shape, x.dtype) for key, x in batch.items()} == bucketed.train_spec(length)
        for row, place in enumerate(places(bucketed, step)):
            other = plain.batch(place // 8)
            for key in set(other) - {"index"}:
                value = other[key][place % 8]
                if key in ("text", "text_mask"):
                    assert (value[length:] == (tokenizer.pad_id if key == "text" else 0)).all(), key
                    value = value[:length]
                np.testing.assert_array_equal(batch[key][row], value)
    assert lengths == {5, 8, 16} == set(bucketed.lengths)
    assert bucketed.train_spec() == bucketed.train_spec(16) == bucketed.spec()
    with bucketed.epoch() as batches:
        assert next(batches)["text"].shape == (8, 16), "an evaluation has one length"


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 5), st.sampled_from([(), (4,), (6, 7, 9), (16,)]))
def test_each_epoch_has_each_record_once(table, tokenizer, batch_size, window, seed, lengths):
    """Where an epoch is no whole number of windows, one is of two epochs, and has of each what the plain stream has there."""
    bucketed = data(table, batch_size=batch_size, packing=Buckets(lengths, window)).build(tokenizer, seed=seed)
    size = batch_size * window
    stream = bucketed._stream(batch_size, None, once=False)
    drawn = [stream.drawn(step) for step in range(window * -(-2 * COUNT // size))]
    at = {place: index for indices, own in drawn for index, place in zip(indices, own, strict=True)}
    assert sum(len(own) for _, own in drawn) == len(at) and sorted(at) == list(range(len(at)))
    assert [at[place] for place in range(2 * COUNT)] == bucketed._reader.order.indices(0, 2 * COUNT)
    for first in (0, COUNT):
        assert sorted(at[place] for place in range(first, first + COUNT)) == list(range(COUNT))
    if COUNT % size == 0:
        epoch = [index for indices, _ in drawn[: COUNT // batch_size] for index in indices]
        assert sorted(epoch) == list(range(COUNT))


def test_any_rows_of_any_step_are_the_same(table, tokenizer):
    whole = data(table).build(tokenizer, seed=3)
    batches = [whole.batch(step) for step in range(7)]
    for part_of in (range(2), range(2, 8), (1, 5)):
        part = pickle.loads(pickle.dumps(data(table).build(tokenizer, seed=3)._stream(8, part_of, once=False)))
        for step in (4, 0, 6, 2):
            for key, array in part[step].batch.items():
                assert np.array_equal(array, batches[step][key][list(part_of)]), key


def test_what_is_forgotten_of_a_plan_is_made_again_alike(table, tokenizer):
    bucketed = data(table).build(tokenizer, seed=3)
    whole = [places(bucketed, step) for step in range(12)]
    bucketed._packing._plans = Recent(1)
    for step in (11, 0, 7, 1, 10, 4):
        assert places(bucketed, step) == whole[step]


def test_padding_is_told_once_whoever_makes_the_rows(table, tokenizer):
    whole, fills = data(table).build(tokenizer, seed=3), []
    batch = whole.batch(1)
    for part_of in (range(3), range(3, 8)):
        part = data(table).build(tokenizer, seed=3)
        part.batch(1, part_of)
        fills.append(part.fill)
    assert fills == [whole.fill, Fill()]
    assert (whole.fill.slots, whole.fill.texts) == (batch["text"].size, 8)
    assert whole.fill.tokens == batch["text_mask"].sum() and whole.fill.left_out == whole.fill.waited == 0
    assert whole.lost.tokens == whole.fill.tokens, "reading for the lengths counts nowhere"


def test_tags_go_with_their_tokens_and_another_text_stays(tmp_path, tokenizer):
    (tmp_path / "tags.conll").write_text("w1 O\nw2 B-X\nw3 I-X\nw4 O\nw5 B-X\nw6 O\n\nw4 O\n\n" * 8)
    own = Data(Conll(str(tmp_path / "tags.conll")), columns={"tags": Tags()}, batch_size=4, max_length=12)
    bucketed = dataclasses.replace(own, packing=Buckets((4,), window=2)).build(tokenizer, seed=0)
    short = next(batch for batch in map(bucketed.batch, range(4)) if batch["text"].shape[1] == 4)
    assert {key for key, x in short.items() if x.shape[1:2] == (4,)} == {"text", "text_mask", "tags", "tags_words", "tags_ends"}
    assert (short["tags"] == [-1, 0, -1, -1]).all() and short["tags_lost"].shape == (4, 1)
    lines = [{"text": text(n), "title": text(2 * n), "text_pair": "w1"} for n in range(8)]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Manifest(str(tmp_path / "two.jsonl"), "all", fields={"title": "title"})
    two = Data(source, columns={"title": Text()}, batch_size=2, max_length=20)
    for of, other, parts in (("text", "title", 3), ("title", "text", 2)):
        bucketed = dataclasses.replace(two, packing=Buckets((8,), window=4, of=of)).build(tokenizer, seed=0)
        batches = [bucketed.batch(step) for step in range(4)]
        assert {batch[of].shape[1] for batch in batches} == {8, 20} and {batch[other].shape[1] for batch in batches} == {20}
        assert all(len([key for key in b if b[key].shape[1:] == (8,)]) == parts for b in batches if b[of].shape[1] == 8)
    with pytest.raises(
        UserError, match="packing: buckets are of the lengths of texts of one key, and the records have text, ti"
    ):
        dataclasses.replace(two, packing=Buckets((8,))).build(tokenizer, seed=0)
    with pytest.raises(UserError, match=r"packing.of='titel': the texts of the records are text, title"):
        dataclasses.replace(two, packing=Buckets((8,), of="titel")).build(tokenizer, seed=0)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            Buckets((8, 5)),
            r"data.train: packing.lengths=\(8, 5\): give whole numbers from 1 up, each larger than the one before",
        ),
        (Buckets((5, 5)), r"packing.lengths=\(5, 5\): give whole numbers"),
        (Buckets((0, 5)), r"packing.lengths=\(0, 5\): give whole numbers"),
        (Buckets((5, 17)), r"packing.lengths=\(5, 17\): no text has more than max_length=16 tokens; leave 17 away"),
        (Buckets(window=0), r"packing.window=0: give a whole number of batches from 1 up"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(table, tokenizer, spec, said):
    with pytest.raises(UserError, match=said) as found:
        data(table, packing=spec).build(tokenizer, seed=0, name="train")
    assert "\n" not in str(found.value)


def test_what_has_no_text_to_sort_by_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="packing: buckets are of the lengths of texts of one key, and the records have none"):
        Data(Digits("train"), (Normalise((0.3,) * 3, (0.3,) * 3),), packing=Buckets()).build(None, seed=0)
    lines = [{"text": "w1", "query": n // 4} for n in range(16)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    grouped = Grouped(Manifest(str(tmp_path / "queries.jsonl"), "all", fields={"query": "query"}), by="query", rows=4)
    with pytest.raises(UserError, match="packing: each of the source's queries has 4 rows of one batch, a record each; leave"):
        Data(grouped, batch_size=8, packing=Buckets()).build(tokenizer, seed=0)
    answers = {"question": "w1", "context": "w2 w3", "answers": [{"text": "w2", "answer_start": 0}]}
    (tmp_path / "spans.jsonl").write_text(json.dumps(answers) + "\n")
    spans = Manifest(str(tmp_path / "spans.jsonl"), "all", fields={key: key for key in answers})
    with pytest.raises(UserError, match="packing: what makes 'text' of the records wants a row for each, all of one length"):
        Data(spans, columns={"answers": Span(max_question=4, stride=2)}, packing=Buckets()).build(tokenizer, seed=0)


def test_lengths_that_are_not_said_are_parts_of_the_longest(table, tokenizer):
    for longest, lengths in ((16, (4, 8, 16)), (13, (4, 7, 13)), (3, (1, 2, 3))):
        assert data(table, max_length=longest, packing=Buckets()).build(tokenizer, seed=0).lengths == lengths
    assert data(table, packing=Buckets((16,))).build(tokenizer, seed=0).lengths == (16,)
    assert data(table, packing=None).build(tokenizer, seed=0).lengths == ()


def test_records_that_change_after_they_were_planned_are_told(table, tokenizer, monkeypatch):
    bucketed = data(table).build(tokenizer, seed=3)
    step = next(step for step in range(9) if bucketed.batch(step)["text"].shape[1] == 5)
    read = Reader.stack

    def longer(self, *args):
        found = read(self, *args)
        found.batch["text_mask"][:, :9] = True
        return found

    monkeypatch.setattr(Reader, "stack", longer)
    with pytest.raises(UserError, match=f"packing: a text of step {step} has 9 tokens, and had 5 or fewer"):
        bucketed.batch(step)


def test_a_row_is_as_long_as_its_last_token(table):
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]], bool)
    assert lengths_of(mask).tolist() == [2, 0, 3, 4]


def test_the_page_of_data_shows_the_rows_of_step_0(table, tokenizer):
    bucketed = data(table).build(tokenizer, seed=3)
    batch, shown = bucketed.batch(0), list(rows(bucketed, 5))
    for row, (index, one, _) in enumerate(shown):
        assert one["n"][0] == batch["n"][row] == index
    assert len(shown) == 5
