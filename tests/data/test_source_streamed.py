"""Compressed files, read from the first to the last."""

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile

import numpy as np
import pytest
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture, text

from mmjax.core.errors import UserError
from mmjax.data import ArrayRecord, Data, Streamed, WebDataset
from mmjax.data.prepare import prepare
from mmjax.data.types import BadRecordError

zstandard = pytest.importorskip("zstandard", reason="what reads zstd is not installed")
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def tar(*members, kind=tarfile.REGTYPE):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = (len(content), kind)
            made.addfile(info, io.BytesIO(content))
    return file.getvalue()


def read(source, count=None):
    records = source.build()
    return [records[number] for number in range(len(records) if count is None else count)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", [*PACK, ""])
def test_lines_of_every_compression(tmp_path, kind):
    """Two frames in a file too, which is how programs write that compress in parallel."""
    pack = PACK.get(kind, bytes)
    for number, parts in enumerate(((["a", "b"], ["c"]), (["d"],))):
        whole = b"".join(pack(lines(*({"text": one, "n": ord(one)} for one in part))) for part in parts)
        (tmp_path / f"{number}.jsonl{'.' * bool(kind)}{kind}").write_bytes(whole)
    source = Streamed(f"{tmp_path}/*.jsonl*", 4, fields={"number": "n"})
    assert read(source, 6) == [{"text": one, "number": ord(one)} for one in "abcdab"]
    assert list(source.build().texts()) == list("abcd") == list(source.build().texts_of("text"))


def test_tar_files_have_the_records_that_web_dataset_has(tmp_path):
    members = []
    for n in range(6):
        about = json.dumps({"words": {"caption": text(n)}}).encode()
        members += [(f"{n}.png", picture(n)), (f"{n}.json", about), (f"{n}.cls", b"%d" % (n % 2)), (f"{n}.depth.npy", b"")]
    (tmp_path / "a.tar").write_bytes(tar(*members))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar(*members)))
    fields = {"text_field": "json/words/caption", "names": ("emu", "cat"), "fields": {"key": "__key__"}}
    ours, theirs = read(Streamed(f"{tmp_path}/a.tar.gz", 6, **fields)), read(WebDataset(f"{tmp_path}/a.tar", **fields))
    assert len(ours) == 6 and [one["name"] for one in ours[:2]] == ["emu", "cat"]
    for own, other in zip(ours, theirs, strict=True):
        assert own.keys() == other.keys() and np.array_equal(own.pop("image"), other.pop("image")) and own == other


def test_images_of_lines_lie_below_the_folder(tmp_path):
    (tmp_path / "1.png").write_bytes(picture(1))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines({"image": "1.png", "text": "one"})))
    assert read(Streamed(f"{tmp_path}/a.jsonl.gz", 1))[0]["image"].shape == (9, 8, 3)


def test_splits_are_those_of_each_example_and_a_run_goes_on_in_them(tmp_path):
    for shard in range(3):
        own = lines(*({"text": f"{shard} {n}"} for n in range(40)))
        (tmp_path / f"{shard}.jsonl.gz").write_bytes(gzip.compress(own))
    parts = {}
    for split in ("train", "validation", "test"):
        records = Streamed(f"{tmp_path}/*.jsonl.gz", 1, split=split, fractions=(0.6, 0.2, 0.2), shuffle_window=5).build()
        parts[split] = [json.loads(line)["text"] for (_, _, line), _ in records.read(None)]
    assert sum(map(len, parts.values())) == 120 and len({one for part in parts.values() for one in part}) == 120
    assert 50 < len(parts["train"]) < 95
    again = Streamed(f"{tmp_path}/*.jsonl.gz", 1, split="train", fractions=(0.6, 0.2, 0.2), shuffle_window=5).build()
    records = Streamed(f"{tmp_path}/*.jsonl.gz", 1, split="train", fractions=(0.6, 0.2, 0.2), shuffle_window=5).build()
    assert records[60]["text"] == parts["train"][60]
    again.go_on(json.loads(json.dumps(records.positions())))
    files = []
    whole, again.read = again.read, lambda position: (files.append(position), whole(position))[1]
    assert again[62]["text"] == parts["train"][62] and files[0][0] > 0, "the first file was read again"


def test_records_that_cannot_be_read(tmp_path):
    content = b'{"text": "a"}\n\n{"text": \n[1]\n{"words": "b"}\n{"text": "\xff"}\n{"text": "c"}\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    records = Streamed(f"{tmp_path}/a.jsonl", 6, text_field="text").build()
    assert (records[0], records[5]) == ({"text": "a"}, {"text": "c"})
    reasons = ("line 3: not JSON", "line 4: no JSON object", "line 5: it has no 'text'", "line 6: not JSON")
    for number, reason in enumerate(reasons):
        with pytest.raises(BadRecordError, match=f"a.jsonl {reason}"):
            records[number + 1]
    assert list(records.texts()) == ["a", "c"]
    (tmp_path / "b.tar").write_bytes(tar(("1.txt", b"a"), ("1.txt", b"b"), ("2.txt", b"c"), ("1.txt", b"d")))
    records = Streamed(f"{tmp_path}/b.tar", 3).build()
    with pytest.raises(BadRecordError, match=r"b.tar 1: its key stands in more than one place: sort the members"):
        records[2]
    with pytest.raises(BadRecordError, match=r"b.tar 1: it has an extension more than once"):
        records[0]
    assert records[1] == {"text": "c"}


def test_a_field_that_few_have_is_left_out_and_said(tmp_path, caplog):
    some = [{"text": "a", "label": 1}, {"text": "b"}, {"text": "c"}]
    (tmp_path / "a.jsonl").write_bytes(lines(*some))
    assert read(Streamed(f"{tmp_path}/a.jsonl", 3)) == [{"text": one} for one in "abc"]
    assert "1 of the first 3 examples have 'label'; it is left out" in caplog.text
    records = Streamed(f"{tmp_path}/a.jsonl", 3, label_field="label").build()  # named with its default: the same
    assert records[0] == {"text": "a"}


@pytest.mark.parametrize(
    ("files", "path", "fields", "line"),
    [
        ({"a.jsonl": b""}, "a.jsonl", {}, "Streamed.split='all': there is no example in .*a.jsonl"),
        ({"a.jsonl": b"a\nb\n"}, "a.jsonl", {}, "there is no example in .*a.jsonl that can be read .*line 1: not JSON"),
        ({"a.jsonl.zst": PACK["zst"](lines({"text": "a"}) * 99)[:-6]}, "a.jsonl.zst", {}, "a.jsonl.zst is damaged or cut"),
        ({"a.csv.gz": b"text"}, "a.csv.gz", {}, "all files are .jsonl or all are .tar .*; .*a.csv.gz is not"),
        ({"a.jsonl": b"{}", "b.tar": b""}, "?.*", {}, "all files are .jsonl or all are .tar .*; .*b.tar is not"),
        ({"a.jsonl": lines({"text": "a"})}, "b.jsonl", {}, "no such file"),
        (
            {"a.jsonl": lines({"text": "a"})},
            "a.jsonl",
            {"text_field": "tex"},
            "text_field='tex' is no field",
        ),
        ({"a.jsonl": lines({"n": 1})}, "a.jsonl", {}, "the data has neither 'image' nor 'text'; it has n"),
        ({"a.jsonl": lines({"text": "a"})}, "a.jsonl", {"records": 0}, "Streamed.records=0"),
        ({"a.jsonl.gz": b"PK\x03\x04" + bytes(20)}, "a.jsonl.gz", {}, "compressed with zip: use gzip, bzip2, xz or zstd"),
        ({"a.tar.gz": gzip.compress(tar(("../a.txt", b"a")))}, "a.tar.gz", {}, "a.tar.gz: '../a.txt' leads out of the folder"),
        ({"a.tar": tar(("a.txt", b""), kind=tarfile.SYMTYPE)}, "a.tar", {}, "'a.txt' is a symbolic link"),
        ({"a.tar": tar(("a.txt", b"a"))[:512]}, "a.tar", {}, "a.tar: it is cut"),
        ({"a.tar.gz": gzip.compress(tar(("a.txt", b"a")))[:-12]}, "a.tar.gz", {}, "a.tar.gz is damaged or cut"),
    ],
)
def test_mistakes_are_one_line(tmp_path, files, path, fields, line):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=line) as caught:
        read(Streamed(**{"path": f"{tmp_path}/{path}", "records": 1, **fields}))
    assert "\n" not in str(caught.value)


TEXTS = {"jsonl": lines(*({"text": f"line {n}"} for n in range(9))), "tar": tar(*((f"{n}.txt", b"text") for n in range(9)))}
WHOLE = {f"{kind}.{end}": pack(content) for kind, pack in PACK.items() for end, content in TEXTS.items()}


@settings(max_examples=60)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damage_is_one_line_or_an_unreadable_record(tmp_path_factory, name, data):
    kind, end = name.split(".")
    path = tmp_path_factory.mktemp("damaged") / f"a.{end}.{kind}"
    path.write_bytes(damaged(data, WHOLE[name]))
    try:
        records = Streamed(str(path), 9).build()
        for number in range(9):
            try:
                assert records[number]["text"]
            except BadRecordError as error:
                assert "\n" not in str(error)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_file_that_changes_ends_the_run(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*({"text": f"line {n}"} for n in range(9))))
    records = Streamed(str(path), 9, shuffle_window=2).build()
    path.write_bytes(path.read_bytes() * 2)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"a.jsonl.* has changed"):
        records[8]


def test_what_it_holds_has_a_fingerprint(tmp_path):
    def found(content, folder="a", **fields):
        path = tmp_path / folder / "a.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return Streamed(str(path), fields.pop("records", 2), **fields).build().fingerprint()

    same = found(lines({"text": "a"}, {"text": "b"}))
    assert found(lines({"text": "a"}, {"text": "b"}), "b") == same  # wherever it lies
    others = [found(lines({"text": "a"}, {"text": "c"})), found(lines({"text": "a"}, {"text": "b"}), records=1)]
    others += [found(lines({"text": "a"}, {"text": "b"}), shuffle_window=5)]
    assert len({same, *others}) == 4


def test_prepare_makes_files_of_it_that_are_read_in_any_order(tmp_path):
    members = [member for n in range(9) for member in ((f"{n}.png", picture(n)), (f"{n}.txt", b"%d" % n))]
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar(*members)))
    source = Streamed(f"{tmp_path}/a.tar.gz", 9, shuffle_window=2)
    done = prepare(Data(source), "train", tmp_path / "out", shards=3)
    assert (done["records"], done["unreadable"]) == (9, 0)
    made = ArrayRecord(str(tmp_path / "out")).build()
    for number, record in enumerate(read(source)):
        assert np.array_equal(made[number]["image"], record["image"]) and made[number]["text"] == record["text"]
