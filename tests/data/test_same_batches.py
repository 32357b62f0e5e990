"""The same pictures in every format: the batches of a step are the same, whoever makes them and wherever a run goes on."""

import dataclasses
import hashlib

import pytest
from pictures import COUNT, text, written

from mmjax.data import Balanced, Buckets, Data, Flip, Mix, Noise, Normalise, Packed, RandomCrop, WordPiece

ROWS, STEPS = 8, 7
WORDS = WordPiece(200)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("same")
    patch = pytest.MonkeyPatch()
    patch.setenv("MMJAX_CACHE", str(root / "cache"))
    yield written(root)
    patch.undo()


def data_of(source, **fields):
    moved = (RandomCrop((5, 6)), Flip(), Noise(0.05), Normalise())
    return Data(source, batch_size=ROWS, max_length=8, **{"transforms": moved, **fields})


def opened(data):
    tokenizer = WORDS.train(map(text, range(COUNT)))
    return data.build(tokenizer, 11, "train")


def hashes(batches):
    """One for each row of each step, over all keys but `group`, which formats number in ways of their own."""
    found = []
    for batch in batches:
        keys = sorted(key for key in batch if key != "group")
        rows = (b"".join(key.encode() + batch[key][row].tobytes() for key in keys) for row in range(len(batch["index"])))
        found.append([hashlib.sha256(row).hexdigest() for row in rows])
    return found


def made_by(data, processes, start=0):
    """What so many processes make of the steps from `start` on, put together again."""
    size, parts = ROWS // processes, []
    for process in range(processes):
        with opened(data).batches(start, range(process * size, (process + 1) * size)) as batches:
            parts.append(hashes(next(batches) for _ in range(STEPS - start)))
    return [[row for part in parts for row in part[step]] for step in range(STEPS - start)]


CASES = [
    *((name, "records") for name in ("folder", "manifest", "web_dataset", "parquet", "arrow", "array_record", "coco")),
    *((name, "blocks") for name in ("web_dataset", "parquet", "arrow", "array_record")),
    ("mix", "records"),
    ("mix", "blocks"),
    ("balanced", "records"),
    ("packed", "records"),  # several texts a row; of two processes each has half of a window's rows
    ("packed", "blocks"),
    ("packed mix", "records"),
    ("bucketed", "records"),  # windows of three batches: a run goes on in the middle of one
    ("bucketed pictures", "blocks"),
    ("streamed", "records"),
    ("packed stream", "records"),
    ("bucketed stream", "records"),
]


def chosen(sources, name, order):
    """The data of a case."""
    parts = {"tar": sources["web_dataset"], "table": sources["parquet"]}
    more = {
        "mix": Mix(parts, {"tar": 3.0, "table": 1.5}),
        "balanced": Balanced(sources["folder"]),
        "packed": sources["texts"],
        "packed mix": Mix({"once": sources["texts"], "twice": sources["texts"]}, {"once": 1.0, "twice": 2.0}),
        "bucketed": sources["texts"],
        "bucketed pictures": sources["parquet"],
        "packed stream": sources["streamed texts"],
        "bucketed stream": sources["streamed texts"],
    }
    packings = {"packed": Packed(16, texts=3, window=ROWS, examples=20, carry=2), "bucketed": Buckets((5, 6), window=3)}
    packing = packings.get(name.split()[0])
    fields = {} if packing is None else {"packing": packing}
    fields |= {"transforms": ()} if "pictures" not in name and packing is not None else {}
    return data_of(more.get(name) or sources[name], order=order, block_window=2, **fields)


@pytest.mark.parametrize(("name", "order"), CASES)
def test_batches_are_the_same_on_any_number_of_processes_and_wherever_a_run_goes_on(sources, name, order):
    data = chosen(sources, name, order)
    whole, plain = made_by(data, 1), not data.packing and data.transforms
    assert len({row for rows in whole for row in rows}) == ROWS * STEPS or not plain  # of packed rows some are two short texts
    for processes, start in ((2, 0), (4, 3)):
        assert made_by(data, processes, start) == whole[start:]
    if name.startswith("bucketed"):
        assert {opened(data).batch(step)["text"].shape[1] for step in range(STEPS)} == {5, 8}


def often(name, order):
    """Whether workers make a case in each run of the tests: each format once, and each way to order and to pack once. That a
    source of another format has blocks is nothing to them."""
    return (order == "records" and name != "packed mix") or name in ("web_dataset", "mix", "bucketed pictures")


@pytest.mark.parametrize(
    ("name", "order"),
    [pytest.param(*case, marks=() if often(*case) else pytest.mark.slow) for case in CASES if "stream" not in case[0]],
)
def test_workers_make_the_same_batches(sources, name, order):
    data = chosen(sources, name, order)
    assert made_by(dataclasses.replace(data, workers=2), 1, 4) == made_by(data, 1, 4)


def test_every_format_gives_the_same_batches(sources):
    names = ("manifest", "web_dataset", "parquet", "arrow", "array_record")
    found = {name: made_by(data_of(sources[name]), 1) for name in names}
    assert all(own == found["manifest"] for own in found.values())


def test_the_blocks_of_a_source_are_its_records(sources):
    for name, expected in (("web_dataset", [7, 8, 11]), ("array_record", [7, 8, 11]), ("arrow", [4, 3, 4, 4, 4, 4, 3])):
        assert sources[name].build().blocks().tolist() == expected
    for name in ("web_dataset", "parquet", "arrow", "array_record"):
        records = dataclasses.replace(sources[name], split="train").build()
        assert records.blocks().sum() == len(records) < COUNT
