"""Manifests: what a line may hold, the splits, and complaints that name the line."""

import json

import pytest

from mmjax.core.errors import UserError
from mmjax.data import Manifest


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
        return str(path)

    return write


@pytest.fixture
def csv(tmp_path):
    def write(text):
        path = tmp_path / "rows.csv"
        path.write_text(text)
        return str(path)

    return write


def test_images_captions_and_labels(jsonl, tmp_path, write_image):
    write_image(tmp_path / "a.png", 3)
    path = jsonl(
        {"image": "a.png", "text": ["one", "two"], "label": "dog", "group": "x"},
        {"image": "a.png", "text": "three", "label": "cat", "group": 7},
    )
    records = Manifest(path, split="all").build()
    assert records.classes == ("cat", "dog")
    first, second = records[0], records[1]
    assert first["image"].shape == (6, 5, 3) and (first["image"] == 3).all()
    assert (first["text"], first["label"], first["name"]) == (("one", "two"), 1, "dog")
    assert first["group"] == 0x0CDC1683 and second["group"] == 7  # crc32(b"x") & 0x7FFFFFFF
    assert list(records.texts()) == ["one", "two", "three"]


def test_csv_with_numbers_as_labels_sorts_them_as_numbers(csv):
    records = Manifest(csv('text,label\n"a, b",10\nc,2\n'), split="all").build()
    assert records.classes == ("2", "10")
    assert records[0] == {"text": "a, b", "label": 1, "name": "10"}


def test_labels_alone_make_groups(csv, tmp_path, write_image):
    write_image(tmp_path / "in" / "a.png")
    records = Manifest(csv("image,label\na.png,3\n"), split="all", root=str(tmp_path / "in")).build()
    assert records[0]["group"] == records[0]["label"] == 0 and records[0]["image"].shape == (6, 5, 3)


def test_text_only_and_pairs_under_other_names(jsonl):
    records = Manifest(jsonl({"en": "hello", "de": "hallo"}), split="all", text_field="en", pair_field="de").build()
    assert records[0] == {"text": "hello", "text_pair": "hallo"}
    assert list(records.texts()) == ["hello", "hallo"] and records.classes == ()


def test_the_field_split_wins_over_the_hash(jsonl):
    path = jsonl(*({"text": str(i), "split": "val" if i < 3 else "train"} for i in range(8)))
    assert [r["text"] for r in Manifest(path, "validation").build().examples] == ["0", "1", "2"]
    assert len(Manifest(path, "train").build()) == 5


def test_hash_split_keeps_the_captions_of_an_image_together(jsonl):
    rows = [{"image": f"{i}.png", "text": f"caption {j}"} for i in range(40) for j in range(2)]
    path = jsonl(*rows)
    found = {split: [r["image"] for r in Manifest(path, split).build().examples] for split in ("train", "validation", "test")}
    assert sorted(image for images in found.values() for image in images) == sorted(r["image"] for r in rows)
    assert all(images.count(image) == 2 for images in found.values() for image in images)


def test_fingerprint(jsonl):
    first = Manifest(jsonl({"text": "a"}, {"text": "b"}), "all").build().fingerprint()
    assert Manifest(jsonl({"text": "a"}, {"text": "b"}), "all").build().fingerprint() == first
    assert Manifest(jsonl({"text": "b"}, {"text": "a"}), "all").build().fingerprint() != first


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{not json"], "rows.jsonl:1: not JSON"),
        (['["a"]'], "rows.jsonl:1: write one object a line"),
        (['{"text": "a"}', "", '{"text": 3}'], "rows.jsonl:3: text=3 is not a string, or a list of one or more"),
        (['{"text": []}'], "rows.jsonl:1: text=[] is not a string, or a list of one or more"),
        (['{"image": 1}'], "rows.jsonl:1: image=1 is not a path"),
        (['{"text": "a", "label": true}'], "rows.jsonl:1: label=True is not a string or a whole number"),
        (['{"caption": "a"}'], "rows.jsonl:1: neither 'image' nor 'text'; it has caption"),
        (['{"image": "a", "text_pair": "b"}'], "rows.jsonl:1: text_pair needs a text before it"),
        (['{"text": "a", "label": "x"}', '{"text": "a"}'], "rows.jsonl:2: every line has what the first one has; here label"),
        (
            ['{"text": "a", "label": "x"}', '{"text": "a", "label": 1}'],
            "rows.jsonl:2: labels are all strings or all whole numbers; 1 here, 'x' in the first line",
        ),
        (['{"text": "a", "split": "tset"}'], "rows.jsonl:1: split='tset' is not a split (did you mean 'test'?)"),
        ([""], "it has no lines"),
    ],
)
def test_malformed_lines(jsonl, rows, message):
    with pytest.raises(UserError) as raised:
        Manifest(jsonl(*rows), "all").build()
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_malformed_csv(csv):
    for text, message in (("image,text\na\n", "rows.csv:2: as many values"), ('text\n"a\n', "rows.csv:2: not CSV")):
        with pytest.raises(UserError, match=message):
            Manifest(csv(text), "all").build()


def test_mistakes(jsonl, tmp_path):
    path = jsonl({"text": "a", "caption": "b"})
    (tmp_path / "rows.txt").write_text("a")
    (tmp_path / "latin.csv").write_bytes("text\nné\n".encode("latin-1"))
    cases = [
        (Manifest("/nowhere.csv"), "Manifest.path='/nowhere.csv': no such file"),
        (Manifest(str(tmp_path / "rows.txt")), "write .csv or .jsonl, not .txt"),
        (Manifest(str(tmp_path / "latin.csv")), "not UTF-8"),
        (Manifest(path, split="dev"), "Manifest.split='dev' is not a split"),
        (Manifest(path, fractions=(1, 1, -1)), "Manifest.fractions=(1, 1, -1)"),
        (Manifest(path, label_field="captoin"), "Manifest.label_field='captoin': no line of"),
        (Manifest(path, "test", fractions=(1.0, 0.0, 0.0)), "Manifest.split='test': none of the 1 lines"),
    ]
    for spec, message in cases:
        with pytest.raises(UserError) as raised:
            spec.build()
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_numbers_with_leading_zeros_stay_names(csv):
    assert Manifest(csv("text,label\na,007\nb,7\n"), split="all").build().classes == ("007", "7")
