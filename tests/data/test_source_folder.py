"""A folder of class folders: classes, splits, and what the user may have got wrong."""

import os
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


def test_a_class_called_train(tmp_path, write_image, caplog):
    for file in ("bus/0.png", "car/0.png", "train/freight/0.png", "train/1.png"):
        write_image(tmp_path / file)
    records = Folder(str(tmp_path), "all").build()
    assert records.classes == ("bus", "car", "train") and len(records) == 4
    assert Folder(str(tmp_path), "all", layout="splits").build().files == ("train/freight/0.png",)
    assert "1 image(s) lie in no class folder and are left out" in caplog.messages[-1]


def test_folders_that_may_be_splits_or_classes(tmp_path, write_image):
    for file in ("train/cat/0.png", "test/cat/0.png", "more/0.png"):
        write_image(tmp_path / file)
    with pytest.raises(
        UserError, match=r"'test', 'train' look like splits, and 'more' beside them has images too; say layout="
    ):
        Folder(str(tmp_path)).build()
    assert Folder(str(tmp_path), layout="splits").build().files == ("train/cat/0.png",)
    assert Folder(str(tmp_path), "all", layout="classes").build().classes == ("more", "test", "train")
    (tmp_path / "more" / "0.png").rename(tmp_path / "more" / "0.txt")
    assert Folder(str(tmp_path)).build().classes == ("cat",), "a folder without images is no class"


def test_a_folder_of_nothing_but_test_images(tmp_path, write_image):
    write_image(tmp_path / "test" / "cat" / "0.png")
    assert Folder(str(tmp_path), "test").build().classes == ("cat",)
    write_image(tmp_path / "test" / "0.png")
    assert Folder(str(tmp_path), "all").build().classes == ("test",)


def test_linked_folders(tmp_path, write_image, caplog):
    root, store = tmp_path / "photos", tmp_path / "store"
    for i in range(3):
        write_image(store / "deep" / f"{i}.png", i)
    write_image(root / "cat" / "z" / "own.png")
    (root / "dog").mkdir()
    for link in (root / "cat" / "a", root / "cat" / "b", root / "dog" / "linked", root / "eel"):
        link.symlink_to(store)
    (root / "cat" / "again").symlink_to(root / "cat" / "z")
    (store / "round").symlink_to(root)  # in a circle
    (store / "deep" / "round").symlink_to(store)
    (root / "dog" / "gone").symlink_to(tmp_path / "nowhere")
    records = Folder(str(root), "all").build()
    found = {
        name: [f for f, label in zip(records.files, records.labels, strict=True) if label == rank]
        for rank, name in enumerate(records.classes)
    }
    assert found["cat"][:4] == ["cat/z/own.png", *(f"cat/a/deep/{i}.png" for i in range(3))]
    assert found["eel"][:3] == [f"eel/deep/{i}.png" for i in range(3)] and "dog/linked/deep/0.png" in found["dog"]
    assert all(len(records[i]["image"]) for i in range(len(records)))
    assert any("dog/gone is a link to what is not there" in message for message in caplog.messages)


def test_a_file_name_that_is_not_utf8(image_folder):
    odd = os.fsencode(image_folder / "cat") + b"/caf\xe9.png"
    with open(odd, "wb") as file:
        file.write((image_folder / "cat" / "03.png").read_bytes())
    records = Folder(str(image_folder), "all").build()
    assert len(records) == 21 and records.fingerprint()
    index = next(i for i, file in enumerate(records.files) if "caf" in file)
    assert (records[index]["image"] == 3).all()
    assert sum(len(Folder(str(image_folder), split).build()) for split in ("train", "validation", "test")) == 21
    with open(odd, "wb") as file:
        file.write(b"broken")
    with pytest.raises(BadRecordError) as raised:
        records[index]
    assert str(raised.value).encode().endswith(rb"cat/caf\xe9.png: not an image")


def test_every_class_of_a_small_folder_is_in_every_split(image_folder, write_image, caplog):
    write_image(image_folder / "eel" / "0.png")
    write_image(image_folder / "eel" / "1.png")
    counts = {split: Folder(str(image_folder), split).build().labels for split in ("train", "validation", "test")}
    assert [counts["train"].count(label) for label in range(3)] == [8, 8, 1]
    assert [counts["validation"].count(label) for label in range(3)] == [1, 1, 1]
    assert [counts["test"].count(label) for label in range(3)] == [1, 1, 0]
    assert len(caplog.messages) == 1 and "the split test has nothing of 1 class(es): 'eel' (2 in all)" in caplog.messages[0]


def test_a_class_folder_without_images_is_said(image_folder, caplog):
    (image_folder / "fox").mkdir()
    assert Folder(str(image_folder), "all").build().classes == ("cat", "dog")
    assert "no images in fox: no class" in caplog.messages[0]


def test_windows_and_limits_reach_the_files(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "a" / "0.png")
    assert (Folder(str(tmp_path), "all", window=(2000, 4000)).build()[0]["image"] == 128).all()
    with pytest.raises(BadRecordError, match="4 x 4 are 16 pixels, and max_pixels=15"):
        Folder(str(tmp_path), "all", max_pixels=15).build()[0]


def test_mistakes(tmp_path, image_folder):
    cases = [
        (Folder(str(image_folder), window=(5, 5)), "Folder.window=(5, 5): give (low, high)"),
        (Folder(str(image_folder), layout="split"), "Folder.layout='split' is not a layout (did you mean 'splits'?)"),
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
