import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import Conll, Data, Manifest, Packed, Tags, Text, WordPiece
from mmjax.data.bins import Bins
from mmjax.data.files.recent import Recent
from mmjax.data.packing import Fill

WORDS = [f"w{n}" for n in range(40)]
SPEC = Packed(window=4, fill=0.9)


def text(n):
    return " ".join(WORDS[(n * 7 + k) % 40] for k in range(1 + n * n % 9))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text(n)}) + "\n" for n in range(150)))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece(300).train(text(n) for n in range(150))


def data(table, **changes):
    settings = {"source": Manifest(str(table)), "batch_size": 8, "max_length": 16, "packing": SPEC}
    return Data(**{**settings, **changes})


def texts_of(batch):
    """The ids of each text of a batch, as bytes, row by row."""
    found = []
    for ids, lengths in zip(batch["text"], batch["text_lengths"], strict=True):
        ends = np.cumsum(lengths)
        found.append([ids[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True) if length])
    return found


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 5), st.integers(1, 4))
def test_bins_hold_whole_examples_and_no_more_than_they_can(lengths, bins, most):
    own, lengths = Bins(bins, 9, most), np.array(lengths, int)
    left = own.fill(0, range(len(lengths)), lengths)
    placed = [number for held in own.held for _, number in held]
    assert sorted([*placed, *left]) == [n for n in range(len(lengths)) if lengths[n]]
    free = [9 - sum(lengths[n] for _, n in held) for held in own.held]
    assert min(free) >= 0 and max(len(held) for held in own.held) <= most
    for number in left:  # nothing that would fit is left
        assert all(lengths[number] > room or len(held) == most for room, held in zip(free, own.held, strict=True))


def test_the_best_bin_is_the_fullest_that_has_room():
    own = Bins(3, 10, 9)
    assert own.fill(0, range(6), np.array([7, 6, 5, 3, 4, 5])) == []
    assert own.held == [[(0, 0), (0, 3)], [(0, 1), (0, 4)], [(0, 2), (0, 5)]]
    own = Bins(2, 100, 9)
    own.fill(0, range(4), np.array([60, 50, 45, 5]))
    assert own.held == [[(0, 0)], [(0, 1), (0, 2), (0, 3)]]


def test_every_text_is_in_one_row_as_it_is_alone(table, tokenizer):
    packed = data(table).build(tokenizer, seed=3)
    spec = packed._packing.spec
    assert spec.length == 16 and spec.texts == 4
    alone = data(table, packing=None, batch_size=spec.examples).build(tokenizer, seed=3)
    came, held = [], []
    for step in range(6):
        batch = packed.batch(step)
        assert {key: (x.shape, x.dtype) for key, x in batch.items()} == packed.train_spec()
        assert np.array_equal(batch["text_mask"].sum(axis=1), batch["text_lengths"].sum(axis=1))
        assert (batch["text"][~batch["text_mask"]] == tokenizer.pad_id).all()
        held += [one for row in texts_of(batch) for one in row]
        for window in (2 * step, 2 * step + 1):
            one = alone.batch(window)
            came += [ids[mask].tobytes() for ids, mask in zip(one["text"], one["text_mask"], strict=True)]
    fill = packed.fill
    assert fill.texts == len(came) == 12 * spec.examples and fill.slots == 6 * 8 * 16
    assert fill.waited > 0, "carry would not be tested"
    # All that came is there, but for what waits for the windows to come, or was left out.
    waiting = sorted(came)
    for one in held:
        waiting.remove(one)
    assert len(waiting) <= fill.waited and fill.tokens == sum(len(one) // 4 for one in held)


def test_what_finds_no_room_is_counted(table, tokenizer):
    crowded = data(table, packing=Packed(window=4, examples=10, carry=2)).build(tokenizer, seed=3)
    for step in range(6):
        crowded.batch(step)
    held = [one for window in range(12) for row in crowded._packing.held(window)[0] for one in row]
    assert len(set(held)) == len(held), "a text is in two rows"
    windows = [{window - came for row in crowded._packing.held(window)[0] for came, _ in row} for window in range(12)]
    assert set.union(*windows) == {0, 1, 2}
    # Of the windows whose texts can wait no longer, whatever is in no row was left out.
    gone = {(window, number) for window in range(10) for number in range(10)} - set(held)
    assert crowded.fill.left_out == len(gone) > 0 and crowded.fill.texts == 120


def test_any_rows_of_any_step_are_the_same(table, tokenizer):
    whole = data(table).build(tokenizer, seed=3)
    batches = [whole.batch(step) for step in range(4)]
    for rows in (range(2), range(2, 8), (1, 5)):
        part = pickle.loads(pickle.dumps(data(table).build(tokenizer, seed=3)._stream(8, rows, once=False)))
        for step in (3, 0, 2):
            for key, array in part[step].batch.items():
                assert np.array_equal(array, batches[step][key][list(rows)]), key


def test_what_is_forgotten_of_a_plan_is_made_again_alike(table, tokenizer):
    packing = data(table, packing=Packed(window=4, examples=10, carry=3)).build(tokenizer, seed=3)._packing
    whole = [packing.held(window) for window in range(12)]
    packing._plans = Recent(3)
    for window in (5, 6, 5, 7, 8, 8, 3, 9, 9, 10, 9, 0, 11):
        assert packing.held(window) == whole[window]
    packing._plans = Recent(100)
    assert [packing.held(window) for window in range(12)] == whole
    for key in [key for key in packing._plans._held if key[1]]:  # what a window had of its own, others beside it leave alone
        del packing._plans._held[key]
    assert [packing.held(window) for window in range(12)] == whole


def test_windows_are_told_once_whoever_makes_their_rows(table, tokenizer):
    whole, fills = data(table).build(tokenizer, seed=3), []
    whole.batch(1)
    for rows in (range(2), range(2, 4), range(4, 8)):
        part = data(table).build(tokenizer, seed=3)
        part.batch(1, rows)
        fills.append(part.fill)
    assert sum(fills, Fill()) == whole.fill and fills[1] == Fill()


def test_an_evaluation_has_a_text_a_row(table, tokenizer):
    own = data(table).build(tokenizer, seed=3)
    with own.epoch() as batches:
        batch = next(batches)
    assert "text_lengths" not in batch and batch["text"].shape == (8, 16)
    assert {key: (x.shape, x.dtype) for key, x in batch.items() if key != "valid"} == own.spec()


def test_tags_go_with_their_tokens(tmp_path, tokenizer):
    (tmp_path / "tags.conll").write_text("w1 O\nw2 B-X\nw3 I-X\n\nw4 O\n\nw5 B-X\nw6 O\n\n" * 10)
    columns = {"tags": Tags()}
    own = Data(Conll(str(tmp_path / "tags.conll")), columns=columns, batch_size=4, max_length=12, packing=SPEC)
    batch = own.build(tokenizer, seed=0).batch(0)
    ids = {f"w{n}": tokenizer.encode([f"w{n}"], 12)["ids"][0] for n in range(1, 7)}
    tag_of = {"w1": 0, "w2": 1, "w3": 2, "w4": 0, "w5": 1, "w6": 0}
    want = {int(ids[word][1]): tag for word, tag in tag_of.items()}
    assert batch["text_lengths"].max() > 0 and (batch["text_lengths"] > 0).sum(axis=1).max() > 1
    for token, tag, real in zip(batch["text"].ravel(), batch["tags"].ravel(), batch["text_mask"].ravel(), strict=True):
        assert tag == (want.get(int(token), -1) if real else -1)


def test_numbers_that_make_no_rows_are_refused(table, tokenizer):
    for changes, words in [
        ({"length": 8}, r"packing.length=8: a text may have max_length=16 tokens"),
        ({"window": 3}, r"packing.window=3: batch_size=8 is not a whole number of windows"),
    ]:
        with pytest.raises(UserError, match=words):
            data(table, packing=dataclasses.replace(SPEC, **changes)).build(tokenizer, seed=0)


def test_records_of_two_texts_are_refused(tmp_path, tokenizer):
    (tmp_path / "two.jsonl").write_text('{"text": "w1", "title": "w2"}\n' * 3)
    source = Manifest(str(tmp_path / "two.jsonl"), fields={"title": "title"})
    two = Data(source, columns={"title": Text()}, max_length=8, packing=Packed())
    with pytest.raises(UserError, match="packing: rows hold the texts of one key, and the records have text, title"):
        two.build(tokenizer, seed=0)


def test_what_is_an_examples_own_is_left_out_and_told(tmp_path, tokenizer, caplog):
    (tmp_path / "labels.jsonl").write_text('{"text": "w1 w2", "label": "a"}\n{"text": "w3", "label": "b"}\n' * 3)
    own = Data(Manifest(str(tmp_path / "labels.jsonl")), batch_size=2, max_length=8, packing=Packed())
    with caplog.at_level("INFO"):
        built = own.build(tokenizer, seed=0, name="train")
    assert "data.train: rows of several texts hold no label" in caplog.text
    assert set(built.batch(0)) == {"text", "text_mask", "text_lengths", "index"} == set(built.train_spec())
