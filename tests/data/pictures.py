"""The same pictures in every format, written by tests that hold the formats against each other."""

import gzip
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from mmjax.data import ArrayRecord, Arrow, Coco, Folder, Manifest, Parquet, Streamed, WebDataset
from mmjax.data.sources.array_record import write_array_record

COUNT = 26


def picture(number):
    """A PNG of which no two are alike."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def text(number):
    return f"picture {number}" + f" of {'a cat' if number % 2 else 'an emu'}" * (number % 3 > 0)


def written(root):
    """Name -> a source of the same pictures, in a new folder; all but the folder with their texts."""
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
        (root / f"{shard}.tar.gz").write_bytes(gzip.compress((root / f"{shard}.tar").read_bytes()))
        lines = "".join(f"{json.dumps({'text': text(number)})}\n" for number in range(first, last))
        (root / f"{shard}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
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
    return sources(root)


def sources(root):
    """The same, of a folder where they are written."""
    return {
        "folder": Folder(str(root / "classes"), "all"),
        "manifest": Manifest(str(root / "list.jsonl"), "all"),
        "web_dataset": WebDataset(str(root / "*.tar")),
        "parquet": Parquet(str(root / "?.parquet")),
        "texts": Parquet(str(root / "*.texts.parquet")),
        "arrow": Arrow(str(root / "*.arrow")),
        "array_record": ArrayRecord(str(root / "*.array_record")),
        "streamed": Streamed(str(root / "*.tar.gz"), COUNT, shuffle_window=10),
        "streamed texts": Streamed(str(root / "*.jsonl.gz"), COUNT, shuffle_window=10),
        "coco": Coco(str(root / "coco.json"), str(root / "images")),
    }
