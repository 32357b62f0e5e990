"""Stamps, on a few written here, and on the package itself where it is installed or unpacked."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import Data, Normalise, Resize, Stamps, WordPiece
from mmjax.data.sources.stamps import INSTALLED


def stamp(path, text="", sounds=(), level=0):
    """A picture with a clear left half, and what is beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 8, 4), level, np.uint8)
    pixels[:, :, 3] = np.where(np.arange(8) < 4, 0, 255)
    Image.fromarray(pixels).save(path)
    if text:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    for sound in sounds:
        (path.parent / sound).write_bytes(b"sound")


@pytest.fixture
def folder(tmp_path):
    """Three classes; owl and owlet have names that begin alike."""
    birds = tmp_path / "animals" / "birds"
    stamp(
        birds / "owl.png", "An owl.\nfr.utf8=Une chouette.\npt_BR.utf8= Uma coruja. \nde.utf8=\n", ("owl.ogg", "owl_desc.ogg")
    )
    stamp(birds / "owlet.png", "An owlet.\nfr.utf8=Une chevêche.\n", ("owlet_desc_fr.ogg", "owlet_desc_zh_tw.wav"), 7)
    stamp(birds / "owl_mirror.png")
    stamp(tmp_path / "animals" / "cat.png", "A cat.\n", ("cat_desc_pt_BR.ogg", "cat_desc.txt"))
    stamp(tmp_path / "space" / "moon.png", "The moon.\nfr.utf8=La lune.\n", ("moon_desc.ogg", "moon_desc_fr.ogg"))
    stamp(tmp_path / "food" / "pie.png", "A pie.\n")
    (tmp_path / "food" / "pie.svg").write_text("<svg/>")
    (tmp_path / "food" / "jam.svg").write_text("<svg/>")
    (tmp_path / "food" / "jam.txt").write_text("Jam.\n")
    return tmp_path


def test_pictures_captions_speech_and_classes(folder, caplog):
    records = pickle.loads(pickle.dumps(Stamps(str(folder), "all").build()))
    assert records.classes == ("animals", "food", "space") and len(records) == 5
    by_text = {record["text"]: record for record in map(records.__getitem__, range(5))}
    assert list(by_text) == list(records.texts())
    assert {text: record["name"] for text, record in by_text.items()} == {
        "A cat.": "animals",
        "An owl.": "animals",
        "An owlet.": "animals",
        "A pie.": "food",
        "The moon.": "space",
    }
    owlet = by_text["An owlet."]
    assert owlet["image"].shape == (6, 8, 3) and owlet["image"].dtype == np.uint8
    assert (owlet["image"][:, :4] == 255).all() and (owlet["image"][:, 4:] == 7).all(), "what is clear is white"
    assert by_text["An owl."]["speech"] == str(folder / "animals" / "birds" / "owl_desc.ogg")
    assert owlet["speech"] == by_text["A cat."]["speech"] == "", "spoken, but not in English"
    assert [record["label"] for record in by_text.values()] == list(records.labels)
    said = "\n".join(caplog.messages)
    assert "1 drawing(s) in food are SVG" in said and "1 picture(s) without a caption in 'en' are left out" in said


def test_a_language_of_its_own(folder):
    french = Stamps(str(folder), "all", language="fr").build()
    assert list(french.texts()) == ["Une chouette.", "Une chevêche.", "La lune."] and french.classes == ("animals", "space")
    assert [os.path.basename(french[i]["speech"]) for i in range(3)] == ["", "owlet_desc_fr.ogg", "moon_desc_fr.ogg"]
    heard = Stamps(str(folder), "all", language="fr", spoken=True).build()
    assert list(heard.texts()) == ["Une chevêche.", "La lune."]
    (owlet,) = (one for one in heard.stamps if "owlet" in one.file)
    assert owlet.captions == {"en": "An owlet.", "fr": "Une chevêche."}
    assert owlet.speech.keys() == {"fr", "zh_TW"}
    assert list(Stamps(str(folder), "all", language="pt_BR").build().texts()) == ["Uma coruja."]
    with pytest.raises(UserError, match=r"Stamps.language='pt': captions are in en, fr, pt_BR \(did you mean 'pt_BR'\?\)"):
        Stamps(str(folder), language="pt").build()
    with pytest.raises(UserError, match=r"Stamps.language='de': spoken captions are in en, fr, pt_BR, zh_TW"):
        Stamps(str(folder), language="de", spoken=True).build()


def test_classes_by_level_and_the_unpacked_package(folder, tmp_path_factory):
    assert Stamps(str(folder), "all", level=2).build().classes == ("animals", "animals/birds", "food", "space")
    unpacked = tmp_path_factory.mktemp("unpacked")
    (unpacked / "usr" / "share" / "tuxpaint").mkdir(parents=True)
    first = Stamps(str(folder), "all").build().fingerprint()
    folder.rename(unpacked / INSTALLED)
    assert Stamps(str(unpacked), "all").build().fingerprint() == Stamps(str(unpacked / INSTALLED), "all").build().fingerprint()
    assert Stamps(str(unpacked), "all").build().fingerprint() == first
    (unpacked / INSTALLED / "food" / "pie.txt").write_text("A tart.\n")
    assert Stamps(str(unpacked), "all").build().fingerprint() != first


def test_splits_hold_pictures_apart_and_feed_batches(tmp_path):
    for kind in ("food", "space"):
        for number in range(12):
            stamp(tmp_path / kind / f"{number}.png", f"{kind} number {number}.")
    files = {
        split: {one.file for one in Stamps(str(tmp_path), split).build().stamps} for split in ("train", "validation", "test")
    }
    assert sum(map(len, files.values())) == len(set().union(*files.values())) == 24
    assert {Path(file).parent.name for file in files["test"]} == {"food", "space"}
    data = Data(Stamps(str(tmp_path)), (Resize((8, 8)), Normalise()), batch_size=4, max_length=8, threads=0)
    batch = data.build(WordPiece(64).train(data.texts()), 0).batch(0)
    assert batch["image"].shape == (4, 8, 8, 3) and batch["text"].shape == (4, 8) and batch["label"].max() < 2


def test_what_cannot_be_read_is_said(folder, caplog):
    (folder / "food" / "pie.txt").write_bytes(b"A pi\xe9.\n")
    assert len(Stamps(str(folder), "all").build()) == 4
    assert any("pie.txt is no UTF-8" in message for message in caplog.messages)
    with pytest.raises(UserError, match=r"no such folder; install Debian's package tuxpaint-stamps-default \(apt-get install"):
        Stamps(str(folder / "nowhere")).build()
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="no stamps in its folders; install Debian's package tuxpaint-stamps-default"):
        Stamps(str(folder / "empty")).build()
    with pytest.raises(UserError, match=r"Stamps.fractions=\(2, -1, 0\): give three shares"):
        Stamps(str(folder), fractions=(2, -1, 0)).build()
    with pytest.raises(UserError, match=r"Stamps.split='tset' is not a split"):
        Stamps(str(folder), "tset").build()


def test_the_package_itself():
    place = os.environ.get("STAMPS", f"/{INSTALLED}")
    if not Path(place).is_dir():
        pytest.skip("Debian's tuxpaint-stamps-default is not installed; STAMPS names a folder that it was unpacked into")
    records = Stamps(place, "all").build()
    assert len(records) > 700 and {"animals", "food", "space", "vehicles"} < set(records.classes)
    assert len(Stamps(place, "all", language="fr", spoken=True).build()) > 700
    kept = {split: {one.file for one in Stamps(place, split).build().stamps} for split in ("train", "validation", "test")}
    assert sum(map(len, kept.values())) == len(records) and kept["test"].isdisjoint(kept["train"])
    for index in range(0, len(records), 50):
        record = records[index]
        assert record["image"].ndim == 3 and record["text"] and record["name"] in records.classes
        assert not record["speech"] or Path(record["speech"]).is_file()
