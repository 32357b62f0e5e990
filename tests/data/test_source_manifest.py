"""Manifests: what a line may hold, the splits, and complaints that name the line."""

import json

import numpy as np
import pytest
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import BadRecordError, Manifest


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
    assert (first["group"], second["group"]) == (0, 1)  # numbered, for "x" is no number
    assert list(records.texts()) == ["one", "two", "three"]


def test_csv_with_numbers_as_labels_sorts_them_as_numbers(csv):
    records = Manifest(csv('text,label\n"a, b",10\nc,2\n'), split="all").build()
    assert records.classes == ("2", "10")
    assert records[0] == {"text": "a, b", "label": 1, "name": "10", "group": 0}


def test_labels_alone_make_groups(csv, tmp_path, write_image):
    write_image(tmp_path / "in" / "a.png")
    records = Manifest(csv("image,label\na.png,3\n"), split="all", root=str(tmp_path / "in")).build()
    assert records[0]["group"] == records[0]["label"] == 0 and records[0]["image"].shape == (6, 5, 3)


def test_text_only_and_pairs_under_other_names(jsonl):
    records = Manifest(jsonl({"en": "hello", "de": "hallo"}), split="all", text_field="en", pair_field="de").build()
    assert records[0] == {"text": "hello", "text_pair": "hallo", "group": 0}
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
        (
            ['{"text": "a", "label": "x"}', '{"text": "a"}'],
            "rows.jsonl:2: every line has what the first one has; here label is missing",
        ),
        (
            ['{"image": "a", "text": "b"}', '{"image": "a", "text": ""}'],
            "rows.jsonl:2: every line has what the first one has; here text is empty: leave out such lines, or give each a "
            "text, or have no texts read by Manifest.text_field=''",
        ),
        (['{"image": "a", "text": "b"}', '{"image": "a", "text": null}'], "here text is empty: leave out"),
        (['{"image": "a", "text": "b"}', '{"image": "a"}'], "here text is missing: leave out"),
        (['{"image": "a", "text": ""}', '{"image": "a", "text": "b"}'], "here text is there, and the first line has none:"),
        (
            ['{"text": "a", "label": "x"}', '{"text": "", "label": "x"}'],
            "rows.jsonl:2: neither 'image' nor 'text'; it has label; its 'text' is empty: leave out",
        ),
        (
            ['{"text": "a", "label": "x"}', '{"text": "a", "label": 1}'],
            "rows.jsonl:2: labels are all strings or all whole numbers; 1 here, 'x' in the first line that has one",
        ),
        (['{"text": "a", "split": "tset"}'], "rows.jsonl:1: split='tset' is not a split (did you mean 'test'?)"),
        ([""], "it has no lines"),
    ],
)
def test_malformed_lines(jsonl, rows, message):
    with pytest.raises(UserError) as raised:
        Manifest(jsonl(*rows), "all").build()
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("lines", [4, 60_000])  # 60,000: more than the lines that are read one by one
def test_a_field_of_no_name_is_left_out(tmp_path, lines):
    path = tmp_path / "rows.csv"
    rows = [f"{n},{n}.png,{'' if n % 2 else 'a text'},{n % 3},two" for n in range(lines)]
    path.write_text("\n".join([",image,text,label,text_pair", *rows]) + "\n")  # pandas' column of numbers has no name
    for fields, keys in (
        ({"text_field": ""}, {"image", "label", "name"}),
        ({"text_field": "", "label_field": ""}, {"image"}),
        ({"text_field": "text_pair", "pair_field": "", "image_field": ""}, {"text", "label", "name"}),
    ):
        records = Manifest(str(path), "all", **fields).build()
        assert len(records) == lines and all(set(records.example(n)) == {*keys, "group"} for n in (0, lines - 1))
    with pytest.raises(UserError, match="text_pair needs a text before it, and that is empty"):
        Manifest(str(path), "all").build()
    with pytest.raises(UserError, match=r"rows.csv:3: every line has what the first one has; here text is empty"):
        Manifest(str(path), "all", pair_field="").build()


def test_what_cannot_be_left_out_is_named(csv):
    path = csv("image,text,de\na.png,a,b\n")
    for fields, message in (
        (
            {"text_field": "", "image_field": "", "audio_field": "", "video_field": ""},
            "Manifest.text_field='' and image_field='' and audio_field='' and video_field='': nothing",
        ),
        (
            {"text_field": "", "pair_field": "de"},
            "Manifest.pair_field='de' needs a text before it, and text_field='' reads none",
        ),
        ({"text_field": "", "image_field": "label"}, "rows.csv:2: no 'label'; it has image, text, de"),
    ):
        with pytest.raises(UserError, match=message):
            Manifest(path, "all", **fields).build()


def test_malformed_csv(csv):
    for text, message in (
        ("image,text\na\n", "rows.csv:2: as many values"),
        ("text,text\na,b\n", "rows.csv:1: the header has 'text' more than once"),
        ('text\n"a\n', "rows.csv:2: not CSV"),
    ):
        with pytest.raises(UserError, match=message):
            Manifest(csv(text), "all").build()


def groups(records):
    return [example["group"] for example in records.examples]


def test_lines_of_one_image_or_one_caption_are_one_group(jsonl):
    lines = [("a.png", "one"), ("b.png", "two"), ("a.png", "three"), ("c.png", "three"), ("d.png", ["four", "two"])]
    rows = [{"image": image, "text": text} for image, text in lines]
    assert groups(Manifest(jsonl(*rows), "all").build()) == [0, 1, 0, 0, 1]
    given = [{**row, "group": group} for row, group in zip(rows, (5, 4, 3, 5, 0), strict=True)]
    assert groups(Manifest(jsonl(*given), "all").build()) == [5, 4, 3, 5, 0], "the file's own word alone"


def test_different_captions_and_groups_never_collide(jsonl):
    texts = ("blue runs car runs two sea", "flies red big runs play tree", "blue runs car runs two sea", "a dog")
    assert groups(Manifest(jsonl(*({"text": text} for text in texts)), "all").build()) == [0, 1, 0, 3]  # of equal CRC-32
    rows = [{"text": str(i), "group": text} for i, text in enumerate(texts)]
    assert groups(Manifest(jsonl(*rows), "all").build()) == [0, 1, 0, 2]
    rows = [{"text": str(i), "group": group} for i, group in enumerate((2**40, 7, -1, "7", 2**40))]
    assert groups(Manifest(jsonl(*rows), "all").build()) == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("none", ["-1", "-20", "", " ", "-1.0"])
def test_a_negative_or_an_empty_label_is_no_class(csv, none):
    records = Manifest(csv(f"text,label\na,{none}\nb,0\nc,10\nd,2\ne,{none}\n"), "all").build()
    assert records.classes == ("0", "2", "10") and records.labels == (-1, 0, 2, 1, -1)
    assert "name" not in records[0] and records[1]["name"] == "0"


def test_null_and_negative_labels_of_jsonl(jsonl):
    rows = [{"image": f"{i}.png", "label": label} for i, label in enumerate((None, "cat", "dog", "cat", -3, ""))]
    records = Manifest(jsonl(*rows), "all").build()
    assert records.classes == ("cat", "dog") and records.labels == (-1, 0, 1, 0, -1, -1)
    assert groups(records) == [2, 0, 1, 0, 6, 7], "what has no class is nobody's positive"
    assert Manifest(jsonl(*({"text": "a", "label": None},) * 2), "all").build().labels == ()


@pytest.mark.parametrize(
    ("suffix", "separator", "given"),
    [
        (".tsv", "\t", ""),
        (".tsv", "\t", "\\t"),
        (".csv", ";", ""),
        (".csv", "\t", ""),
        (".csv", "|", ""),
        (".csv", ";", ";"),
        (".csv", "~", "~"),
        (".tsv", ",", ","),
        (".CSV", ",", ""),
    ],
)
def test_tables_of_any_separator(tmp_path, suffix, separator, given):
    wanted = [("0.png", "a red; or a blue\tcat, |~"), ("1.png", "a dog, asleep")]
    quoted = [["image ", " text"], *([f'"{value}"' for value in row] for row in wanted)]
    (tmp_path / f"table{suffix}").write_text("\n".join(separator.join(row) for row in quoted) + "\n\n")
    records = Manifest(str(tmp_path / f"table{suffix}"), "all", separator=given).build()
    assert [(example["image"], example["text"]) for example in records.examples] == wanted


def test_a_comma_stays_what_parts_where_it_may(csv):
    assert [e["text"] for e in Manifest(csv("text,a;b\nx;y,z\n"), "all").build().examples] == ["x;y"]
    assert [e["text"] for e in Manifest(csv("text\nx;y\n"), "all").build().examples] == ["x;y"]


def test_further_fields_and_label_maps(csv, jsonl, tmp_path, write_image):
    write_image(tmp_path / "a.png", 3)
    Image.fromarray(np.array([[1, 2], [3, 255]], np.uint8)).save(tmp_path / "m.png")
    path = csv("image,age,size,code,mask file\na.png,3,-1.5,007,m.png\na.png,4,2e3,8,m.png\n")
    fields = {"years": "age", "size": "size", "code": "code"}
    records = Manifest(path, "all", fields=fields, maps={"mask": "mask file"}).build()
    record = records[1]
    assert (record["years"], record["size"], record["code"]) == (4, 2000.0, "8") and isinstance(record["size"], float)
    assert record["mask"].tolist() == [[1, 2], [3, 255]] and record["mask"].dtype == np.int32
    others = [Manifest(path, "all", fields=fields), Manifest(path, "all", fields={**fields, "mask": "mask file"})]
    assert len({records.fingerprint(), *(other.build().fingerprint() for other in others)}) == 3
    rows = Manifest(jsonl({"text": "a", "box": [1, 2.5], "id": "7"}), "all", fields={"box": "box", "id": "id"}).build()
    assert rows[0] == {"text": "a", "group": 0, "box": [1, 2.5], "id": "7"}


def test_what_is_left_empty_is_not_known(csv, jsonl, tmp_path, write_image):
    write_image(tmp_path / "a.png", 3)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "m.png")
    path = csv("image,kg,note,map\na.png,3,x,m.png\na.png,,,\n")
    fields = {"kg": "kg", "note": "note"}
    first, second = Manifest(path, "all", fields=fields, maps={"image_map": "map"}).build()
    assert (first["kg"], first["note"]) == (3.0, "x") and isinstance(first["kg"], float)
    assert np.isnan(second["kg"]) and second["note"] is None
    assert second["image_map"].shape == second["image"].shape[:2] and (second["image_map"] == -1).all()
    rows = Manifest(jsonl({"text": "a", "kg": 3}, {"text": "b", "kg": None}), "all", fields={"kg": "kg"}).build()
    assert rows[0]["kg"] == 3.0 and np.isnan(rows[1]["kg"])


def test_mistakes_in_further_fields_and_maps(jsonl, tmp_path):
    path = jsonl({"text": "a", "age": 3, "odd": {}, "m": "m.png"}, {"text": "b", "age": None, "odd": {}, "m": 3})
    cases = [
        ({"fields": {"label": "age"}}, "Manifest.fields.label: a record has a 'label' already"),
        ({"fields": {"m": "age"}, "maps": {"m": "m"}}, "Manifest.maps.m: a record has a 'm' already"),
        ({"fields": {"age": "agee"}}, "rows.jsonl:1: 'agee' is not there (did you mean 'age'?), and Manifest.fields.age"),
        ({"fields": {"odd": "odd"}}, "rows.jsonl:1: odd={} is not a string, a number or a list (Manifest.fields.odd)"),
        ({"maps": {"map": "m"}}, "rows.jsonl:2: m=3 is not a path (Manifest.maps.map)"),
    ]
    for options, message in cases:
        with pytest.raises(UserError) as raised:
            Manifest(path, "all", **options).build()
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_map_that_cannot_be_read_is_a_bad_record(csv, tmp_path, write_image):
    write_image(tmp_path / "a.png")
    records = Manifest(csv("image,mask\na.png,a.png\n"), "all", maps={"mask": "mask"}).build()
    with pytest.raises(BadRecordError, match=r"a.png: a label map has one channel"):
        records[0]


def test_every_class_of_a_small_file_is_in_every_split(csv, caplog):
    lines = [f"{name}{i}.png,{name}" for name in ("a", "b", "") for i in range(10)] + ["rare.png,rare"]
    path = csv("image,label\n" + "\n".join(lines) + "\n")
    for split, count in (("train", 8), ("validation", 1), ("test", 1)):
        labels = Manifest(path, split).build().labels
        assert [labels.count(label) for label in (0, 1, -1)] == [count] * 3
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        f"the split {split} has nothing of 1 class(es): 'rare' (1 in all)" for split in ("validation", "test")
    ]


def test_mistakes(jsonl, tmp_path):
    path = jsonl({"text": "a", "caption": "b"})
    (tmp_path / "rows.txt").write_text("a")
    (tmp_path / "latin.csv").write_bytes("text\nné\n".encode("latin-1"))
    cases = [
        (Manifest("/nowhere.csv"), "Manifest.path='/nowhere.csv': no such file"),
        (Manifest(str(tmp_path / "rows.txt")), "write .csv, .tsv or .jsonl, not .txt"),
        (Manifest(str(tmp_path / "latin.csv")), "not UTF-8"),
        (Manifest(path, separator=";"), "Manifest.separator=';': the lines of"),
        (Manifest(str(tmp_path / "latin.csv"), separator=";;"), "Manifest.separator=';;': give one character"),
        (Manifest(path, window=(1, 0)), "Manifest.window=(1, 0): give (low, high)"),
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
