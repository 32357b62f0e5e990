"""The same pictures in every format: the batches of a step are the same, whoever makes them and wherever a run goes on."""

import dataclasses
import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from mmjax.data import (
    ArrayRecord,
    Arrow,
    Balanced,
    Buckets,
    Coco,
    Data,
    Flip,
    Folder,
    Manifest,
    Mix,
    Noise,
    Normalise,
    Packed,
    Parquet,
    RandomCrop,
    WebDataset,
    WordPiece,
)
from mmjax.data.sources.array_record import write_array_record

COUNT, ROWS, STEPS = 26, 8, 7
WORDS = WordPiece(200)


def picture(number):
    """A PNG of which no two are alike."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def text(number):
    return f"picture {number}" + f" of {'a cat' if number % 2 else 'an emu'}" * (number % 3 > 0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Name -> a source of the same pictures; all but the folder with their texts."""
    root = tmp_path_factory.mktemp("same")
    patch = pytest.MonkeyPatch()
    patch.setenv("MMJAX_CACHE", str(root / "cache"))
    (root / "images").mkdir()
    for number in range(COUNT):
        place = root / "classes" / ("cat" if number % 2 else "emu")
        place.mkdir(parents=True, exist_ok=True)
        for folder in (root / "images", place):
            (folder / f"{number:02}.png").write_bytes(picture(number))
    lines = [{"image": f"images/{number:02}.png", "text": text(number)} for number in range(COUNT)]
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = pa.table({"image": list(map(picture, range(COUNT))), "text": list(map(text, range(COUNT)))})
    for shard, (first, last) in enumerate(((0, 7), (7, 15), (15, COUNT))):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number in range(first, last):
                for name, data in ((f"{number:02}.png", picture(number)), (f"{number:02}.txt", text(number).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        pa.parquet.write_table(table.slice(first, last - first), root / f"{shard}.parquet", row_group_size=3)
        texts = table.select(["text"]).slice(first, last - first)
        pa.parquet.write_table(texts, root / f"{shard}.texts.parquet", row_group_size=3)
        with pa.OSFile(str(root / f"{shard}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(first, last - first), max_chunksize=4)
        examples = ({"image": picture(number), "text": text(number)} for number in range(first, last))
        write_array_record(root / f"{shard}.array_record", examples)
    images = [{"id": n, "file_name": f"{n:02}.png", "height": 9, "width": 8} for n in range(COUNT)]
    captions = [{"id": n, "image_id": n, "caption": text(n)} for n in range(COUNT)]
    (root / "coco.json").write_text(json.dumps({"images": images, "annotations": captions}))
    yield {
        "folder": Folder(str(root / "classes"), "all"),
        "manifest": Manifest(str(root / "list.jsonl"), "all"),
        "web_dataset": WebDataset(str(root / "*.tar")),
        "parquet": Parquet(str(root / "?.parquet")),
        "texts": Parquet(str(root / "*.texts.parquet")),
        "arrow": Arrow(str(root / "*.arrow")),
        "array_record": ArrayRecord(str(root / "*.array_record")),
        "coco": Coco(str(root / "coco.json"), str(root / "images")),
    }
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
]


@pytest.mark.parametrize(("name", "order"), CASES)
def test_batches_are_the_same_whoever_makes_them_and_wherever_a_run_goes_on(sources, name, order):
    parts = {"tar": sources["web_dataset"], "table": sources["parquet"]}
    more = {
        "mix": Mix(parts, {"tar": 3.0, "table": 1.5}),
        "balanced": Balanced(sources["folder"]),
        "packed": sources["texts"],
        "packed mix": Mix({"once": sources["texts"], "twice": sources["texts"]}, {"once": 1.0, "twice": 2.0}),
        "bucketed": sources["texts"],
        "bucketed pictures": sources["parquet"],
    }
    packings = {"packed": Packed(16, texts=3, window=ROWS, examples=20, carry=2), "bucketed": Buckets((5, 6), window=3)}
    packing = packings.get(name.split()[0])
    fields = {} if packing is None else {"packing": packing}
    fields |= {"transforms": ()} if name in ("packed", "packed mix", "bucketed") else {}
    data = data_of(more.get(name) or sources[name], order=order, block_window=2, **fields)
    whole = made_by(data, 1)
    assert len({row for rows in whole for row in rows}) == ROWS * STEPS or fields  # of packed rows some are two short texts
    for processes, workers, start in ((2, 0, 0), (4, 0, 3), (1, 2, 4)):
        assert made_by(dataclasses.replace(data, workers=workers), processes, start) == whole[start:]
    if name.startswith("bucketed"):
        assert {opened(data).batch(step)["text"].shape[1] for step in range(STEPS)} == {5, 8}


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
