"""What `mmjax data inspect` says of a dataset."""

import json

import numpy as np
from PIL import Image

from mmjax.data import Caption, Data, Digits, Folder, Manifest, Normalise, Resize, WordPiece, describe
from mmjax.data import inspect as inspecting
from mmjax.data.inspect import REMEDY, look


def test_describe_shows_what_the_batch_holds():
    data = Data(Digits(), (Resize((4, 6)), Normalise(), Caption(("the digit {}",))), batch_size=8, max_length=10)
    dataset = data.build(WordPiece().train(data.texts()), 0)
    lines = describe(dataset).splitlines()
    batch = dataset.batch(0)
    assert lines[0] == f"records      1149, fingerprint {dataset.fingerprint}"
    assert lines[1] == "batch        8 rows, 143.6 steps an epoch"
    assert lines[2] == "looked at    all of them"
    assert lines[3].startswith("classes      10: zero 113, one 117, two 114, three 117, ")
    assert any(line.startswith("image        [8, 4, 6, 3] float32, -1 to") for line in lines)
    label = batch["label"]
    assert f"label        [8] int32, {label.min()} to {label.max()}, {len(set(label.tolist()))} different" in lines
    assert "text_mask    [8, 10] bool, 50.0% true" in lines and "padding      50.0% of the tokens" in lines
    assert f"             'the digit {dataset.classes[label[0]]}'" in lines
    for line in ("tokens       5 to 5 a text, half of them 5 or fewer", "cut          0.0% of the texts, at max_length=10"):
        assert line in lines
    assert "unknown      0.0% of the tokens" in lines and lines[-1] == "unreadable   0 record(s)"


def test_unreadable_files_are_named_and_end_nothing(image_folder):
    for level in (3, 7):
        (image_folder / "cat" / f"{level:02}.png").write_bytes(b"broken")
    data = Data(Folder(str(image_folder), "all"), (Normalise(),), batch_size=20, bad_record_limit=0.01)
    dataset = data.build(None, 0)
    found = look(dataset)
    assert found.text.splitlines()[-3:] == [
        "unreadable   2 record(s)",
        *(f"             {image_folder / 'cat' / name}: not an image" for name in ("03.png", "07.png")),
    ]
    first = f"{image_folder / 'cat' / '03.png'} (not an image)"
    assert found.faults == (f"2 of 20 records cannot be read, more than bad_record_limit=0.01 allows; the first: {first}",)
    assert dataset.bad == {}, "a look counts nothing"


def test_records_unlike_the_first_are_named(image_folder, write_image):
    write_image(image_folder / "dog" / "15.png", 0, size=(8, 8))
    found = look(Data(Folder(str(image_folder), "all"), (Normalise(),), batch_size=4).build(None, 0))
    unlike = "record 15: image: a record's is 8x8x3 float32, the first record's 6x5x3 float32; add Resize"
    assert "unlike       1 record(s) are unlike the first" in found.text and unlike in found.text
    assert found.faults[-1].startswith(f"1 of 20 records are unlike the first; {unlike}")


def test_of_many_records_some_are_looked_at(image_folder, monkeypatch):
    monkeypatch.setattr(inspecting, "MOST", 5)
    (image_folder / "dog" / "19.png").write_bytes(b"broken")
    (image_folder / "dog" / "18.png").write_bytes(b"broken")
    lines = describe(Data(Folder(str(image_folder), "all"), (Normalise(),), batch_size=4).build(None, 0)).splitlines()
    assert "looked at    5 evenly spaced records of 20" in lines and "unreadable   1 record(s)" in lines
    assert "classes      2: cat 10, dog 10" in lines, "the source knows all of them"


def test_texts_that_are_cut_and_tokens_that_are_unknown(tmp_path):
    rows = [{"text": "red cat " * 3000 if i == 0 else "red cat" if i < 6 else "red ☃", "label": i % 3 - 1} for i in range(8)]
    rows[1]["label"] = 5
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(Manifest(str(tmp_path / "a.jsonl"), "all"), batch_size=4, max_length=4)
    text = describe(data.build(WordPiece(60).train(["red cat"]), 0))
    for line in (
        "classes      3: 0 2, 1 2, 5 1",
        "             no class 3",
        "tokens       4 to 4096 or more a text, half of them 4 or fewer",
        "cut          12.5% of the texts, at max_length=4",
        f"unknown      6.2% of the tokens ({REMEDY})",
    ):
        assert line in text.splitlines(), text


def test_a_class_that_has_nothing_is_named(tmp_path, write_image):
    for file in ("train/a/0.png", "train/b/0.png", "test/a/0.png"):
        write_image(tmp_path / file)
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / "test" / "a" / "1.png")
    text = describe(Data(Folder(str(tmp_path), "test"), (Normalise(),), batch_size=1).build(None, 0))
    assert "classes      2: a 2, b 0\n             nothing of b\n" in text
