"""The page of `mmjax data inspect --out`: what it shows is what the batch holds, and nothing in it can run or reach out."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmjax.data import Array, Classes, Data, Folder, Manifest, Normalise, Resize, Tags, WordPiece, html
from mmjax.data.inspect import look
from mmjax.data.inspect_page import page, rows, speed, visible

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Parsed(HTMLParser):
    """Tags, attributes and the text that a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.said = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.said.append(data)

    @property
    def text(self):
        return " ".join("".join(self.said).split())


def harmless(text):
    """The page, which holds nothing that runs or that lies elsewhere."""
    found = Parsed(text)
    assert not {"script", "iframe", "object", "link", "img", "a", "form"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on") and name not in ("srcset", "action", "formaction"), name
        assert name != "src" or value.startswith("data:audio/wav;base64,"), value
        assert name not in ("href", "xlink:href") or value.startswith("data:image/"), value
    assert "http:" not in text and "https:" not in text
    assert ("content", "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'") in found.attributes
    return found


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """Pictures with boxes, and captions that would do harm; some of a picture in both splits."""
    root = tmp_path_factory.mktemp("captions")
    lines = []
    for number in range(12):
        pixels = np.random.default_rng(number % 11).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        line = {"image": f"{number}.png", "text": EVIL if number == 3 else f"red cat {number} ☃ " * (1 + number % 3)}
        line |= {
            "label": EVIL if number % 2 else "plain",
            "kinds": ["x"] * (number % 2),
            "boxes": [[1, 2, 5, 7]] * (1 + number % 2),
        }
        lines.append({**line, "split": "test" if number in (3, 11) else "train"})
    (root / "5.png").write_bytes(b"broken")
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = []
    for split in ("train", "test"):
        source = Manifest(str(root / "list.jsonl"), split, fields={"kinds": "kinds", "image_boxes": "boxes"})
        columns = {"kinds": Classes(("x", EVIL)), "image_boxes": Array("float32", rows=3)}
        data = Data(
            source, (Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),), columns, batch_size=4, max_length=9, bad_record_limit=0.5
        )
        dataset = data.build(WordPiece(80).train(["red cat 0123456789"]), 0, split)
        found.append((split, dataset, look(dataset)))
    return found


def test_the_rows_are_those_of_the_batch(captions):
    dataset = captions[0][1]
    batch = dataset.batch(0)
    shown = [arrays for _, arrays, _ in rows(dataset, 9)]
    assert len(shown) == 4
    for row, arrays in enumerate(shown):
        for key in arrays:
            np.testing.assert_array_equal(arrays[key][0], batch[key][row])


def test_a_page_shows_what_there_is_and_does_no_harm(captions):
    made = page("Data of <b>x</b>", captions, 100, 0, ["a <fault>"])
    found = harmless(made.text)
    assert "Data of <b>x</b>" in found.text and "a <fault>" in found.text
    for part in (
        "train 9 of 10",
        "test 2 of 2",
        "1 groups of equal records",
        "across test and train",
        EVIL,
        "[UNK]",
    ):
        assert part in found.text + made.line, part
    assert "5.png: not an image" in found.text and "1 unreadable" in found.text
    assert found.tags.count("rect") > 3 and "cut" in found.text and re.search(r"unknown tokens", found.text)
    pictures = [value for name, value in found.attributes if name == "href"]
    shown = [index for index, _, _ in rows(captions[0][1], 9)]
    assert shown.count(-1) == found.text.count("one that stands in for an unreadable record") == 1
    for index, picture in zip(shown, pictures, strict=False):
        data = base64.b64decode(picture.partition("base64,")[2])
        if index >= 0:
            record = captions[0][1]._reader.records[index]
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), record["image"])


def test_what_a_model_sees_is_made_visible_again():
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    spec = Normalise((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    normalised = spec({"image": image}, np.random.default_rng(0), None)["image"]
    np.testing.assert_array_equal(visible(normalised, spec), image)
    grey = visible(np.array([[[-3.0], [1.0]], [[5.0], [np.nan]]], np.float32)[:1], None)
    assert grey[..., 0].tolist() == [[0, 255]] and grey.shape == (1, 2, 3)


def test_speed_counts_examples_and_nothing_else(image_folder):
    (image_folder / "cat" / "03.png").write_bytes(b"broken")
    data = Data(Folder(str(image_folder), "all"), (Resize((8, 8)), Normalise()), batch_size=5, bad_record_limit=0.2)
    dataset = data.build(None, 0)
    rate, share = speed(dataset, 0.05)
    assert rate > 100 and 0 < share <= 1 and dataset.bad == {}
    made = page("x", [("train", dataset, look(dataset))], 10, 0.02)
    assert re.search(r"The pipeline makes [\d,]+ examples/s here \(workers=0, threads=2, cache_mb=256\)", made.text)


def test_tags_and_maps_are_shown(tmp_path):
    pixels = np.zeros((6, 6), np.uint8)
    pixels[2:4] = 1
    Image.fromarray(pixels).save(tmp_path / "map.png")
    Image.fromarray(np.full((6, 6, 3), 9, np.uint8)).save(tmp_path / "a.png")
    line = {"image": "a.png", "map": "map.png", "words": ["Peter", "says"], "tags": ["B-PER", "O"]}
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(line)] * 3))
    source = Manifest(str(tmp_path / "a.jsonl"), "all", fields={"words": "words", "tags": "tags"}, maps={"image_map": "map"})
    dataset = Data(source, (Normalise(),), {"tags": Tags()}, batch_size=2, max_length=6).build(
        WordPiece(60).train(["peter says"]), 0
    )
    found = harmless(page("x", [("train", dataset, look(dataset))], 9, 0).text)
    assert "tags: B-PER O" in found.text and "text: peter says" in found.text
    tinted = [value for name, value in found.attributes if name == "href" and value.startswith("data:image/png")][1]
    rgba = np.asarray(Image.open(io.BytesIO(base64.b64decode(tinted.partition("base64,")[2]))))
    assert rgba.shape == (6, 6, 4) and len(np.unique(rgba.reshape(-1, 4), axis=0)) == 2


def test_bars_and_histograms_hold_their_numbers():
    found = Parsed(html.bars({"a": 2, EVIL: 4}))
    widths = [value for name, value in found.attributes if name == "style" and "width:" in value and "%" in value]
    assert widths == ["width:50.0%", "width:100.0%"] and EVIL in found.text
    told = re.findall(r"(\d+) to (\d+): (\d+)", html.histogram([0, 1, 1, 70]))
    assert sum(int(count) for *_, count in told) == 4 and told[0] == ("0", "2", "3") and told[-1][2] == "1"


def test_large_pictures_are_jpeg_of_a_bounded_size():
    large = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    kind, _, data = html.data_uri(large).partition(";base64,")
    assert kind == "data:image/jpeg" and max(Image.open(io.BytesIO(base64.b64decode(data))).size) == 768
    assert html.data_uri(large[:9, :9]).startswith("data:image/png")
