"""A folder of class folders: classes, splits, and what the user may have got wrong."""

import pickle

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import BadRecordError, Folder


def test_classes_are_sorted_and_images_rgb(image_folder, write_image):
    Image.new("L", (5, 6), 7).save(image_folder / "cat" / "grey.png")
    records = Folder(str(image_folder), split="all").build()
    assert records.classes == ("cat", "dog") and len(records) == 21
    by_file = dict(zip(records.files, range(21), strict=True))
    grey, dog = records[by_file["cat/grey.png"]], records[by_file["dog/13.png"]]
    assert grey["image"].shape == (6, 5, 3) and (grey["image"] == 7).all()
    assert (dog["image"] == 13).all() and dog["image"].dtype == np.uint8
    assert (dog["label"], dog["group"], dog["name"]) == (1, 1, "dog")
    assert pickle.loads(pickle.dumps(records))[0]["name"] == "cat"


def test_splits_are_disjoint_and_adding_a_file_moves_no_other(image_folder, write_image):
    def split_of():
        found = {}
        for split in ("train", "validation", "test"):
            found |= dict.fromkeys(Folder(str(image_folder), split, (0.5, 0.25, 0.25)).build().files, split)
        return found

    before = split_of()
    assert len(before) == 20 and set(before.values()) == {"train", "validation", "test"}
    write_image(image_folder / "ant" / "new.png")
    after = split_of()
    assert len(after) == 21 and before.items() <= after.items()


def test_a_folder_that_is_already_split(tmp_path, write_image):
    for split, name in (("train", "cat"), ("train", "dog"), ("val", "dog"), ("test", "eel")):
        write_image(tmp_path / split / name / "1.png")
    assert Folder(str(tmp_path), "train").build().files == ("train/cat/1.png", "train/dog/1.png")
    validation = Folder(str(tmp_path), "validation").build()
    assert validation.files == ("val/dog/1.png",)
    assert validation.classes == ("cat", "dog", "eel") and validation[0]["label"] == 1
    assert len(Folder(str(tmp_path), "all").build()) == 4


def test_hidden_files_and_other_extensions_are_passed_over(image_folder, write_image):
    write_image(image_folder / ".trash" / "1.png")
    write_image(image_folder / "cat" / "._1.png")
    (image_folder / "cat" / "notes.txt").write_text("x")
    assert len(Folder(str(image_folder), "all").build()) == 20


def test_fingerprint_follows_the_files_not_their_place(image_folder, tmp_path, write_image):
    first = Folder(str(image_folder), "all").build().fingerprint()
    moved = image_folder.rename(tmp_path / "elsewhere")
    assert Folder(str(moved), "all").build().fingerprint() == first
    write_image(moved / "cat" / "new.png")
    assert Folder(str(moved), "all").build().fingerprint() != first


def test_unreadable_images_are_named(image_folder):
    (image_folder / "cat" / "00.png").write_bytes(b"not an image")
    whole = (image_folder / "cat" / "01.png").read_bytes()
    (image_folder / "cat" / "01.png").write_bytes(whole[: len(whole) // 2])
    records = Folder(str(image_folder), "all").build()
    (image_folder / "cat" / "02.png").unlink()
    for index, reason in ((0, "00.png: not an image"), (1, "01.png: .*"), (2, "02.png: no such file")):
        with pytest.raises(BadRecordError, match=reason):
            records[index]


def test_mistakes(tmp_path, image_folder):
    cases = [
        (Folder("/nowhere"), "Folder.path='/nowhere': no such folder"),
        (Folder(str(image_folder), "valid"), "Folder.split='valid' is not a split (did you mean 'validation'?)"),
        (Folder(str(image_folder), fractions=(0.5, 0.2, 0.2)), "Folder.fractions=(0.5, 0.2, 0.2): give three shares"),
        (Folder(str(image_folder), "test", fractions=(1.0, 0.0, 0.0)), "Folder.split='test': none of the 20 images"),
        (Folder(str(image_folder / "cat")), "no images in class folders"),
    ]
    for spec, message in cases:
        with pytest.raises(UserError) as raised:
            spec.build()
        assert message in str(raised.value) and "\n" not in str(raised.value)
