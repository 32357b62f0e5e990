"""`mmjax data prepare`: the batches of what it writes are those of the source, whoever writes which part of it."""

import dataclasses
import hashlib
import json
import resource
import shutil

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import (
    Array,
    ArrayRecord,
    Balanced,
    Caption,
    Classes,
    Coco,
    Conll,
    Data,
    Digits,
    Flip,
    Folder,
    HideLabels,
    Manifest,
    Mix,
    Noise,
    Normalise,
    RandomCrop,
    Scenes,
    Strings,
    Subset,
    Tags,
    WordPiece,
)
from mmjax.data.prepare import prepare, said


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


def pictures(root, count=12):
    """PNG and JPEG files of 9 x 8 pixels, of which no two are alike; their names."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"{number:02}.{('png', 'jpg')[number % 2]}" for number in range(count)]
    for number, name in enumerate(names):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)).save(root / name)
    return names


def photos(root):
    """Two classes, with a picture of 16 bits and one that cannot be read."""
    for name in ("cat", "dog"):
        pictures(root / "photos" / name)
    Image.fromarray(np.arange(72, dtype=np.uint16).reshape(9, 8) * 500).save(root / "photos" / "dog" / "deep.png")
    (root / "photos" / "cat" / "05.jpg").write_bytes(b"broken")
    transforms = (RandomCrop((5, 6)), Flip(), Noise(0.1), Normalise(), Caption(("a {}", "one {}")))
    source = Folder(str(root / "photos"), "all", window=(0, 40000))
    return Data(source, transforms, batch_size=8, max_length=8, bad_record_limit=0.1)


def listed(root):
    """Captions, pairs, classes and none, groups by captions, images on several lines, label maps, numbers and lists."""
    names, lines = pictures(root / "images"), []
    for number in range(len(names)):
        Image.fromarray(np.full((9, 8), number % 3, np.uint8)).save(root / "images" / f"map{number}.png")
        line = {"image": f"images/{names[number // 2]}", "text": [f"é {number}", "half of it"], "text_pair": "so"}
        line |= {"label": "ab"[number % 2] if number % 4 else None, "price": number / 3, "seg": f"images/map{number}.png"}
        lines.append({**line, "text": "one" if number == 3 else line["text"], "kinds": [["x"], [], None][number % 3]})
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fields = {"price": "price", "kinds": "kinds"}
    source = Manifest(str(root / "list.jsonl"), "all", fields=fields, maps={"image_map": "seg"})
    columns = {"kinds": Classes(("x", "y")), "captions": Strings(2, 32, of="text")}
    return Data(source, (Flip(), Normalise()), columns, batch_size=5, max_length=8)


def boxes(root):
    """Boxes and names of what is there, some images without any."""
    names = pictures(root / "coco")
    about = {
        "images": [{"id": n, "file_name": name, "height": 9, "width": 8} for n, name in enumerate(names)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": n % 9, "category_id": (1, 3)[n % 2], "bbox": [1, 2, 3.25, 4.5], "iscrowd": 0, "area": 9}
            for n in range(15)
        ],
    }
    (root / "coco.json").write_text(json.dumps(about))
    columns = {"image_boxes": Array(rows=9), "image_classes": Array("int32", rows=9), "labels": Classes(("dog", "cat"))}
    return Data(Coco(str(root / "coco.json"), str(root / "coco")), (Flip(), Normalise()), columns, batch_size=5)


def tagged(root):
    (root / "a.conll").write_text("\n\n".join(f"EU B-ORG\nsays O\nso{n} O\nPeter B-PER" for n in range(9)))
    return Data(Conll(str(root / "a.conll")), columns={"tags": Tags()}, batch_size=4, max_length=9)


def batches(data):
    """A hash of some steps and of a pass over all records; unreadable ones, classes, and what a tokenizer learns from."""
    texts = [*data.source.build().texts_of("words")] if data.columns.get("tags") else [*data.texts("train")]
    dataset = data.build(WordPiece(200).train(texts) if texts else None, 5, "train")
    found = [dataset.batch(step) for step in range(3)]
    with dataset.epoch() as whole:
        found += list(whole)
    digest = hashlib.sha256()
    for batch in found:
        for key in sorted(batch):
            digest.update(f"{key} {batch[key].dtype} {batch[key].shape}".encode() + batch[key].tobytes())
    return digest.hexdigest(), dataset.bad, dataset.names, texts


def same(a, b):
    """Whether two records are equal in keys, their order, types, shapes, dtypes and values."""
    assert list(a) == list(b)
    for key in a:
        assert type(a[key]) is type(b[key]), key
        if isinstance(a[key], np.ndarray):
            assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("make", [photos, listed, boxes, tagged])
def test_batches_are_those_of_the_source_bit_for_bit(tmp_path, make):
    data = make(tmp_path)
    done = prepare(data, "train", tmp_path / "out", 5)
    assert done["missing"] == 0 and done["written"] == done["shards"] == 5
    again = dataclasses.replace(data, source=ArrayRecord(str(tmp_path / "out")))
    theirs, ours = data.source.build(), again.source.build()
    assert len(theirs) == len(ours) == done["records"] and theirs.classes == ours.classes
    expected = batches(data)
    assert batches(again) == expected and batches(dataclasses.replace(again, workers=0, threads=0)) == expected
    for index in (0, len(ours) - 1):
        same(theirs[index], ours[index])
    assert len(expected[1]) == done["unreadable"] == (1 if make is photos else 0)


def test_images_stay_the_files_that_they_were_where_these_tell_the_same_pixels(tmp_path):
    data = photos(tmp_path)
    done = prepare(data, "train", tmp_path / "out")
    assert (done["records"], done["files"], done["png"], done["unreadable"]) == (25, 23, 1, 1), "16 bits go by the window"
    records = ArrayRecord(str(tmp_path / "out")).build()
    assert records.encoded(1) == (tmp_path / "photos" / "cat" / "01.jpg").read_bytes()
    again = prepare(Data(ArrayRecord(str(tmp_path / "out")), bad_record_limit=1.0), "train", tmp_path / "second", 3)
    assert (again["files"], again["png"], again["unreadable"]) == (24, 0, 1)
    assert "images as PNG" not in said(again) and "24 images as their files, 1 unreadable" in said(again)
    assert prepare(Data(Digits("test")), "test", tmp_path / "digits", 1)["png"] == 360


def test_what_stands_on_another_source_stands_on_the_prepared_one(tmp_path):
    data = photos(tmp_path)
    data = dataclasses.replace(data, transforms=data.transforms[:-1])  # hidden labels have no name for a caption
    prepare(data, "train", tmp_path / "out", 3)
    for over in (lambda source: HideLabels(source, 0.5), Balanced):
        pair = [dataclasses.replace(data, source=over(source)) for source in (data.source, ArrayRecord(str(tmp_path / "out")))]
        assert batches(pair[0]) == batches(pair[1])
    for number, source in enumerate((Subset(data.source, only=("dog",)), Mix({"a": data.source, "b": data.source}))):
        own = dataclasses.replace(data, source=source)
        prepare(own, "train", tmp_path / str(number), 2)
        assert batches(dataclasses.replace(own, source=ArrayRecord(str(tmp_path / str(number))))) == batches(own)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_the_same_whoever_writes_them(tmp_path):
    data = photos(tmp_path)
    prepare(data, "train", tmp_path / "one", 4)
    for shard in (2, 0, 3, 1):
        with pytest.raises(UserError, match=r"no such file|are missing|is a folder"):
            ArrayRecord(str(tmp_path / "many")).build()
        done = prepare(dataclasses.replace(data, threads=0), "train", tmp_path / "many", 4, shard)
        assert done["written"] == 1
    assert done["missing"] == 0 and done["records"] == 25
    whole = contents(tmp_path / "one")
    assert contents(tmp_path / "many") == whole and len(whole) == 9, "and nothing half written beside"
    shutil.copytree(tmp_path / "photos", tmp_path / "moved")
    elsewhere = dataclasses.replace(data, source=dataclasses.replace(data.source, path=str(tmp_path / "moved")))
    prepare(elsewhere, "train", tmp_path / "other", 4)
    there = contents(tmp_path / "other")
    differing = [name for name in whole if there.get(name) != whole[name]]
    assert len(differing) <= 2, "but for the path of what cannot be read"


def test_what_is_whole_stays_and_what_is_not_is_written_again(tmp_path):
    data, out = photos(tmp_path), tmp_path / "out"
    prepare(data, "train", out, 4)
    whole = contents(out)
    files = sorted(out.glob("*.array_record"))
    assert prepare(data, "train", out)["written"] == 0
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].with_suffix(".json").unlink()
    files[3].unlink()
    with pytest.raises(UserError, match=r"1 of its 4 shards are missing, \w+-00003-of-00004.array_record; .*--shard 3/4"):
        ArrayRecord(str(out)).build()
    bytes_of = bytearray(files[0].read_bytes())
    bytes_of[len(bytes_of) // 2] ^= 1  # as long as it was
    files[0].write_bytes(bytes_of)
    assert prepare(data, "train", out, 4, 1)["written"] == 1, "the others' are theirs to look at"
    done = prepare(data, "train", out, 4)
    assert done["written"] == 3 and done["there"] == 1 and contents(out) == whole


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    data, out = photos(tmp_path), tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError) as raised:
            prepare(data, "train", out, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(raised.value) and "\n" not in str(raised.value)
    assert set(contents(out)) == {"prepared.json"}
    assert prepare(data, "train", out, 2)["missing"] == 0


@dataclasses.dataclass(frozen=True)
class Odd:
    """Records with something in them that no file holds, or a tokenizer's texts that none of them has."""

    value: str = "set"

    def build(self):
        return self

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"text": "a", "x": {"set": {1}, "objects": np.array([None]), "mmjax": 1}[self.value] if index else 1}

    classes = ()

    def texts(self):
        return iter(("a", "b"))

    def fingerprint(self):
        return self.value


def test_mistakes_are_named(tmp_path):
    data = photos(tmp_path)
    prepare(data, "train", tmp_path / "out", 2)
    out, nowhere = str(tmp_path / "out"), tmp_path / "nowhere"
    weighted = Mix({"a": data.source, "b": data.source}, {"a": 1.0, "b": 2.0})
    (tmp_path / "file").write_text("")
    for own, place, rest, message in (
        (dataclasses.replace(data, source=Digits()), out, (2,), "holds other records (fingerprint: "),
        (data, out, (3,), "holds other records (shards: 2 there, 3 here); give another folder"),
        (dataclasses.replace(data, source=weighted), nowhere, (), "Mix draws some records more often than others"),
        (dataclasses.replace(data, source=Balanced(data.source)), nowhere, (), "Balanced draws some records more often"),
        (data, nowhere, (26,), "shards=26: give a number from 1 to 25"),
        (data, nowhere, (4, 4), "shard 4 of 4: they are numbered from 0 to 3"),
        (dataclasses.replace(data, bad_record_limit=0.0), nowhere, (1,), "more than bad_record_limit=0.0 of the 25 records"),
        (Data(Odd()), tmp_path / "odd", (1,), "record 1: 'x' holds set: texts, numbers"),
        (Data(Odd("objects")), tmp_path / "objects", (1,), "record 1: 'x' is an array of objects"),
        (data, tmp_path / "file", (), "is a file: give a folder"),
        (data, tmp_path / "file" / "below", (), "Not a directory"),
    ):
        with pytest.raises(UserError) as raised:
            prepare(own, "train", place, *rest)
        assert message in str(raised.value) and "\n" not in str(raised.value), str(raised.value)
        assert str(raised.value).startswith("data.train: ")
    assert not list(nowhere.glob("*.array_record"))
    for source, message in (
        (ArrayRecord(out, text_field="caption"), "ArrayRecord.text_field='caption': the prepared folder"),
        (ArrayRecord(out, format="json"), "leave it at 'example'"),
        (
            ArrayRecord(out, split="train"),
            "holds whole records of one split; leave it at 'all' (--data.NAME.source.split all)",
        ),
        (ArrayRecord(out, fields={"length": "length"}), "leave it at {} (--data.NAME.source.fields '{}')"),
        (ArrayRecord(f"{out}/*.array_record"), f"give path={out!r}"),
    ):
        with pytest.raises(UserError, match="ArrayRecord") as raised:
            source.build()
        assert message in str(raised.value)
    (tmp_path / "out" / "prepared.json").write_text('{"version": 0}')
    with pytest.raises(UserError, match="version 0, and this mmjax reads 1"):
        ArrayRecord(out).build()


def test_a_tokenizer_that_would_be_another_is_said(tmp_path, caplog):
    prepare(Data(Scenes(count=3)), "train", tmp_path / "out", 1)
    assert "texts for a tokenizer that are not those of its records" in caplog.text
