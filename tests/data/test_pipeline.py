"""The pipeline: batches are a pure function of (seed, step), whoever reads them, whatever cannot be read."""

import dataclasses
import itertools
import logging
import pickle
from unittest import mock

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.data import (
    BPE,
    Caption,
    Data,
    Digits,
    Flip,
    Folder,
    Manifest,
    NextSentence,
    Noise,
    Normalise,
    RandomCrop,
    Resize,
    WordPiece,
)

CAPTION = Caption(("a photo of the number {}.", "the digit {}"))
DIGITS = Data(Digits("validation"), (RandomCrop((4, 6)), Noise(0.1), Normalise(), CAPTION), batch_size=20, max_length=10)

FIXED_THEN_RANDOM = (Resize((8, 6)), RandomCrop((4, 6)), Noise(0.1), Normalise(), CAPTION)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key])


def join(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece().train(DIGITS.texts())


@pytest.fixture(scope="module")
def digits(tokenizer):
    return DIGITS.build(tokenizer, seed=0)


def folder_data(path, **fields):
    return Data(Folder(str(path), "all"), (Resize((4, 4)), Normalise()), batch_size=5, **fields)


def test_texts_are_the_sources_then_the_templates(tmp_path):
    assert len(list(DIGITS.texts())) == 20 and next(DIGITS.texts()) == "a photo of the number zero."
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}\n')
    assert list(Data(Manifest(str(tmp_path / "a.jsonl"), "all")).texts()) == ["hello"]


def test_batch_is_what_the_spec_says(digits, tokenizer):
    batch = digits.batch(0)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == digits.spec()
    assert digits.spec(7)["text"] == ((7, 10), np.dtype(np.int32))
    assert set(batch) == {"image", "label", "group", "text", "text_mask", "index"}
    assert batch["index"].tolist() == list(range(20))
    np.testing.assert_array_equal(batch["group"], batch["label"])
    for ids, label in zip(batch["text"], batch["label"], strict=True):
        assert digits.classes[label] in tokenizer.decode(ids)
    assert (digits.size, digits.batch_size) == (288, 20) and digits.fingerprint == Digits("validation").build().fingerprint()


def test_stream_from_any_step_is_the_same_stream(digits, tokenizer):
    with DIGITS.build(tokenizer, seed=0).batches() as stream:
        whole = list(itertools.islice(stream, 18))  # an epoch is 14.4 batches
    for start in (0, 1, 13, 16):
        with digits.batches(start) as stream:
            for step in range(start, min(start + 3, 18)):
                same(next(stream), whole[step])
                same(digits.batch(step), whole[step])
    with pytest.raises(AssertionError):
        same(digits.batch(0), digits.batch(1))
    with pytest.raises(AssertionError):
        same(digits.batch(0), DIGITS.build(tokenizer, seed=1).batch(0))


def test_starting_far_away_costs_nothing(digits):
    with digits.batches(10**9) as stream:
        same(next(stream), digits.batch(10**9))


def test_each_record_comes_once_an_epoch(digits):
    seen = np.concatenate([digits.batch(step)["label"] for step in range(15)])[:288]
    np.testing.assert_array_equal(np.bincount(seen), np.bincount(Digits("validation").build().labels))


def shares(count):
    """The rows of each of `count` processes."""
    return [range(20 * index // count, 20 * (index + 1) // count) for index in range(count)]


@pytest.mark.parametrize("count", [2, 4, 5])
def test_processes_together_make_the_batch_of_one(digits, count):
    for step in (0, 14):  # 14 crosses the end of an epoch
        same(join([digits.batch(step, rows) for rows in shares(count)]), digits.batch(step))
    streams = [digits.batches(14, rows) for rows in shares(count)]
    same(join([next(stream) for stream in streams]), digits.batch(14))
    for stream in streams:
        stream.close()


def test_rows_need_not_lie_together(digits):
    rows = [0, 1, 2, 7, 8, 19]
    for step in (3, 14):
        whole = digits.batch(step)
        same(digits.batch(step, rows), {key: value[rows] for key, value in whole.items()})
    one, whole = next(digits.epoch(rows)), next(digits.epoch())
    same(one, {key: value[rows] for key, value in whole.items()})


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_threads_change_nothing(threads, digits, tokenizer):
    data = Data(**{**vars(DIGITS), "threads": threads, "prefetch": 2})
    with data.build(tokenizer, 0).batches(3) as stream:
        for step in range(3, 9):
            same(next(stream), digits.batch(step))


def test_keeping_records_changes_nothing_and_reads_each_once(tokenizer):
    data = Data(Digits("validation"), FIXED_THEN_RANDOM, batch_size=20, max_length=10)
    kept, anew = (dataclasses.replace(data, cache_mb=mb).build(tokenizer, seed=3) for mb in (256, 0))
    reads = []
    take = type(kept._reader.records).__getitem__
    with mock.patch.object(type(kept._reader.records), "__getitem__", lambda self, i: reads.append(i) or take(self, i)):
        made = [kept.batch(step) for step in range(40)]
    assert len(reads) == len(set(reads)) <= kept.size  # each record at most once in almost three epochs
    for step in (0, 7, 39):
        same(made[step], anew.batch(step))


def test_a_split_too_large_to_keep_is_read_anew(tokenizer):
    data = Data(Digits("validation"), FIXED_THEN_RANDOM, batch_size=20, max_length=10, cache_mb=1)
    dataset = dataclasses.replace(data, transforms=(Resize((64, 64)), Normalise(), CAPTION)).build(tokenizer, seed=3)
    dataset.batch(0)
    assert not dataset._reader._kept


def test_workers_change_nothing_and_report_back(image_folder):
    (image_folder / "cat" / "03.png").write_bytes(b"broken")
    here = folder_data(image_folder, bad_record_limit=0.1).build(None, 0)
    there = folder_data(image_folder, bad_record_limit=0.1, workers=1, threads=1, prefetch=2).build(None, 0)
    with there.batches(2) as stream:
        for step in range(2, 8):
            same(next(stream), here.batch(step))
    assert there.bad == here.bad and len(here.bad) == 1
    stream.close()


def test_epoch_has_each_record_once_in_order(digits, tokenizer):
    batches = list(digits.epoch(batch_size=50))
    assert [len(batch["label"]) for batch in batches] == [50] * 6
    whole = join(batches)
    assert whole["valid"].sum() == 288 and whole["valid"][:288].all()
    np.testing.assert_array_equal(whole["label"][:288], Digits("validation").build().labels)
    for key in ("image", "text", "label"):
        assert (whole[key][288:] == whole[key][287]).all(), "the last row, repeated"
    again = join(list(DIGITS.build(tokenizer, seed=5).epoch(batch_size=96)))
    for key in ("image", "text"):  # neither the seed nor the batch size matters
        np.testing.assert_array_equal(again[key], whole[key][:288])
    parts = [list(digits.epoch(rows, 50)) for rows in (range(25), range(25, 50))]
    for mine, other, batch in zip(*parts, batches, strict=True):
        same(join([mine, other]), batch)


def test_unreadable_files_are_named_counted_and_replaced(image_folder, caplog):
    clean = folder_data(image_folder).build(None, 0)
    labels = [clean.batch(step)["label"] for step in range(4)]
    bad_file = image_folder / "cat" / "04.png"
    bad_file.write_bytes(b"\x89PNG\r\n\x1a\n")
    with caplog.at_level(logging.WARNING):
        dataset = folder_data(image_folder, bad_record_limit=0.1).build(None, 0)
        batches = [dataset.batch(step) for step in range(8)]
    assert list(dataset.bad) == [str(bad_file)]
    assert [record.message.count(str(bad_file)) for record in caplog.records] == [1], "warned of once, met twice"
    changed = sum((batch["label"] != label).sum() for batch, label in zip(batches, labels, strict=False))
    assert changed <= 1, "the other rows have not moved"
    levels = np.concatenate([np.rint(batch["image"][:, 0, 0, 0] * 127.5 + 127.5) for batch in batches[:4]])
    assert 4 not in levels and len(levels) == 20
    for step, batch in enumerate(batches):
        same(folder_data(image_folder, bad_record_limit=0.1).build(None, 0).batch(step), batch)


@dataclasses.dataclass(frozen=True)
class DrawnOver:
    """Every pixel is the first number drawn."""

    def __call__(self, record, rng, records):
        return {**record, "image": np.full((4, 4, 3), rng.random(), np.float32)}


def test_a_stand_in_is_given_the_draws_of_its_row(image_folder):
    def drawn():
        data = Data(Folder(str(image_folder), "all"), (Resize((4, 4)), DrawnOver()), batch_size=5, bad_record_limit=0.1)
        return np.concatenate([data.build(None, 0).batch(step)["image"][:, 0, 0, 0] for step in range(4)])

    clean = drawn()
    (image_folder / "cat" / "04.png").write_bytes(b"broken")
    np.testing.assert_array_equal(drawn(), clean)
    assert len(set(clean.tolist())) == 20


def test_an_evaluation_does_not_count_stand_ins(image_folder):
    (image_folder / "cat" / "09.png").write_bytes(b"broken")
    dataset = folder_data(image_folder, bad_record_limit=0.1).build(None, 0)
    valid = join(list(dataset.epoch(batch_size=8)))["valid"]
    assert valid.tolist() == [row != 9 and row < 20 for row in range(24)]


def test_too_many_unreadable_files_stop_the_run(image_folder):
    for level in (3, 7, 8):
        (image_folder / "cat" / f"{level:02}.png").write_bytes(b"broken")
    dataset = folder_data(image_folder, bad_record_limit=0.1).build(None, 0)
    with pytest.raises(
        UserError, match=r"3 of 20 records cannot be read, more than bad_record_limit=0.1 allows; the first: .*png"
    ):
        for step in range(4):
            dataset.batch(step)
    with dataset.batches() as stream, pytest.raises(UserError, match="3 of 20 records"):
        list(itertools.islice(stream, 4))


def test_nothing_readable(image_folder):
    for file in image_folder.rglob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"records drawn in a row cannot be read; the first: .*00.png \(not an image\)"):
        folder_data(image_folder, bad_record_limit=1.0).build(None, 0)


def test_truncated_texts_are_counted(tokenizer):
    data = Data(Digits("test"), (Normalise(), CAPTION), batch_size=10, max_length=6)
    dataset = data.build(tokenizer, 0)
    long = sum("photo" in tokenizer.decode(ids) for ids in dataset.batch(0)["text"])
    assert 0 < long < 10 and dataset.truncated == long
    dataset.batch(0)
    assert dataset.truncated == 2 * long


def test_one_of_several_captions_is_drawn(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ["x one", "y two", "z three"]}\n')
    data = Data(Manifest(str(tmp_path / "a.jsonl"), "all"), batch_size=64, max_length=8)
    tokenizer = BPE(300).train(data.texts())
    batch = data.build(tokenizer, 0).batch(0)
    found = [tokenizer.decode(ids) for ids in batch["text"]]
    assert set(found) == {"x one", "y two", "z three"} and set(batch["group"].tolist()) == {0}, "captions of one example"


def test_pairs_for_next_sentence_prediction(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "Here is {i}. There is {i}."}}\n' for i in range(30)))
    data = Data(Manifest(str(tmp_path / "a.jsonl"), "all"), (NextSentence(),), batch_size=30, max_length=24)
    tokenizer = WordPiece().train(data.texts())
    batch = data.build(tokenizer, 0).batch(0)
    assert {"next", "text_segments"} <= batch.keys() and 5 <= batch["next"].sum() <= 25
    for ids, segments, follows in zip(batch["text"], batch["text_segments"], batch["next"], strict=True):
        first, second = tokenizer.decode(ids[segments == 0]), tokenizer.decode(ids[segments == 1])
        assert (first.split()[2] == second.split()[2]) == bool(follows)


def test_what_workers_are_sent_can_be_pickled(digits):
    stream = pickle.loads(pickle.dumps(digits._stream(20, None, once=False)))
    same(stream[3].batch, digits.batch(3))


def test_mistakes(image_folder, write_image, tokenizer):
    write_image(image_folder / "cat" / "00.png", 0, size=(8, 8))
    normalised = Data(Folder(str(image_folder), "all"), (Normalise(),), batch_size=20)
    cases = [
        (lambda: Data(Digits(), batch_size=0).build(None, 0), "batch_size=0: give a whole number from 1 up"),
        (lambda: Data(Digits(), prefetch=0).build(None, 0), "prefetch=0"),
        (lambda: Data(Digits(), bad_record_limit=2).build(None, 0), "bad_record_limit=2"),
        (lambda: Data(Digits()).build(None, -1), "seed=-1"),
        (lambda: Data(Digits()).build(None, 0), "the image is still uint8 at the end"),
        (lambda: Data(Digits(), (Normalise(), CAPTION)).build(None, 0), "text, and no tokenizer was given"),
        (lambda: Data(Digits(), (Normalise(), CAPTION), max_length=2).build(tokenizer, 0), "max_length=2 leaves no room"),
        (
            lambda: normalised.build(None, 0).batch(0),
            "image: a record's is 6x5x3 float32, the first record's 8x8x3 float32; add Resize",
        ),
    ]
    for mistake, message in cases:
        with pytest.raises(UserError) as raised:
            mistake()
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_every_complaint_begins_with_the_name_of_the_data(image_folder, write_image, caplog):
    """When it is opened, when a tokenizer reads its texts, and later, while it is read."""
    transforms, folder = (Normalise(),), Folder(str(image_folder), "all")

    def first(call):
        with pytest.raises(UserError) as raised:
            call()
        return str(raised.value).split(":")[0]

    mine = "data.mine"
    assert first(lambda: Data(Folder("nowhere")).build(None, 0, "mine")) == mine
    assert first(lambda: list(Data(Folder("nowhere"), (CAPTION,)).texts("mine"))) == mine
    assert first(lambda: Data(Digits(), batch_size=0).build(None, 0, "mine")) == mine
    assert first(lambda: Data(Digits(), (Normalise(), Flip())).build(None, 0, "mine")) == mine
    write_image(image_folder / "dog" / "19.png", 0, size=(8, 8))
    with Data(folder, transforms, batch_size=20).build(None, 0, "mine").batches() as stream:
        assert first(lambda: next(stream)) == mine
    (image_folder / "dog" / "19.png").write_text("no image")
    dataset = Data(folder, transforms, batch_size=20, bad_record_limit=0.5).build(None, 0, "mine")
    for step in range(2):
        dataset.batch(step)
    assert caplog.messages[-1].startswith(f"data.mine: cannot read {image_folder / 'dog' / '19.png'}")
    assert (
        first(
            lambda: [
                Data(folder, transforms, batch_size=20, bad_record_limit=0).build(None, 0, "mine").batch(i) for i in (0, 1)
            ]
        )
        == mine
    )


def test_a_mistake_in_a_thread_comes_out_as_it_is(image_folder, write_image):
    write_image(image_folder / "dog" / "19.png", 0, size=(8, 8))
    data = Data(Folder(str(image_folder), "all"), (Normalise(),), batch_size=20)
    with data.build(None, 0).batches() as stream, pytest.raises(UserError, match="add Resize"):
        next(stream)
