"""WebDataset: what is read is what was written, in any order, by any process; what is wrong is named."""

import dataclasses
import io
import json
import os
import pickle
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.cli import main
from mmjax.core.errors import UserError
from mmjax.data import BadRecordError, Data, Normalise, Subset, WebDataset, WordPiece, splits
from mmjax.data.files import open_files

TINY = Path(__file__).parents[1] / "train" / "tiny.py"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(level, size=(6, 5)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write(path, members, form="ustar"):
    """A tar of (name, bytes), or of TarInfo for what is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return str(path)


def example(number, key=None, classes=3):
    """The members of one example."""
    key = f"{number:05}" if key is None else key
    about = {"caption": f"in json {number}", "size": {"width": number, "boxes": [{"x": 1}, {"x": number}]}, "area": number / 2}
    return [
        (f"{key}.png", png(number)),
        (f"{key}.txt", f"é caption {number}".encode()),
        (f"{key}.cls", b"%d\n" % (number % classes)),
        (f"{key}.json", json.dumps(about).encode()),
        (f"{key}.depth.NPY", npy(np.full((2, 3), number, np.float32))),
    ]


@pytest.fixture
def three(tmp_path):
    """Twelve examples in three shards, one of each format; the names of the last are of any length."""
    folder = tmp_path / "shards"
    for shard, form in enumerate(FORMATS):
        members = []
        for number in range(shard * 4, shard * 4 + 4):
            long = {"ustar": "dir/" * 20, "gnu": "d" * 90 + "/" + "e" * 90 + "/", "pax": "é/" * 80}[form]
            members += example(number, f"{long}{number:05}" if number % 2 else None)
        write(folder / f"{shard}.tar", members, form)
    return str(folder / "*.tar")


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_every_record_is_what_was_written(three):
    fields = {
        "caption": "json/caption",
        "x": "json/size/boxes/x",
        "area": "json/area",
        "depth": "depth.npy",
        "key": "__key__",
    }
    records = WebDataset(three, names=("a", "b", "c"), fields=fields).build()
    assert len(records) == 12 and records.classes == ("a", "b", "c") and records.blocks().tolist() == [4, 4, 4]
    for number in range(12):
        record = records[number]
        np.testing.assert_array_equal(record["image"], np.full((6, 5, 3), number, np.uint8))
        np.testing.assert_array_equal(record["depth"], np.full((2, 3), number, np.float32))
        assert record["text"] == f"é caption {number}" and record["label"] == number % 3 and record["name"] == "abc"[number % 3]
        assert record["caption"] == f"in json {number}" and record["x"] == [1, number] and record["area"] == number / 2
        assert record["key"].endswith(f"{number:05}") and (len(record["key"]) > 80) == bool(number % 2)
    assert list(records.texts()) == [f"é caption {number}" for number in range(12)]
    assert list(records.texts_of("caption")) == [f"in json {number}" for number in range(12)]
    same(records[-1], records[11])
    with pytest.raises(IndexError):
        records[12]


def test_pickled_threaded_and_forked_records_are_the_same(three, monkeypatch):
    monkeypatch.setattr(open_files, "MOST", 1)
    records = WebDataset(three).build()
    again = pickle.loads(pickle.dumps(records))
    assert len(pickle.dumps(records)) < 2000, "arrays are mapped anew, not carried"
    assert again.fingerprint() == records.fingerprint() and again.blocks().tolist() == [4, 4, 4]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: again[index % 12], range(240)))
    for index, record in enumerate(found):
        same(record, records[index % 12])
    files = records.shards.files
    with files._lock:  # as a thread holds it while the process is forked
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert records[7]["text"] == "é caption 7" and len(files._files) == 1


def test_batches_are_the_same_whoever_reads(three):
    data = Data(WebDataset(three), (Normalise(),), batch_size=5, max_length=8)
    tokenizer = WordPiece(80).train(data.texts())
    here = data.build(tokenizer, 3)
    first = [here.batch(step) for step in range(4)]
    for workers in (0, 2):
        with dataclasses.replace(data, workers=workers).build(tokenizer, 3).batches() as batches:
            for step in range(4):
                same(next(batches), first[step])
    assert sorted(Counter(int(x) for batch in first for x in batch["label"])) == [0, 1, 2]


def test_the_index_is_made_once_and_small(tmp_path, monkeypatch):
    size = 3000
    members = [member for n in range(size) for member in ((f"{n:09}.jpg", b"j"), (f"{n:09}.txt", b"t"), (f"{n:09}.cls", b"0"))]
    path = write(tmp_path / "a.tar", members)
    records = WebDataset(path, split="train").build()
    folders = [records.shards.folder, records.split.parent]
    bytes_of = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    assert bytes_of / size < 24, bytes_of / size
    assert isinstance(records.shards.starts, np.memmap) and isinstance(records.places, np.memmap)

    def never(*_):
        raise AssertionError("nothing is read")

    monkeypatch.setattr(os, "pread", never)
    again = WebDataset(path, split="train").build()
    assert again.fingerprint() == records.fingerprint() and len(again) == len(records)


def test_a_changed_shard_is_indexed_anew(tmp_path):
    path = write(tmp_path / "a.tar", example(1))
    first = WebDataset(path).build()
    write(tmp_path / "a.tar", [*example(1), *example(2)])
    second = WebDataset(path).build()
    assert len(first) == 1 and len(second) == 2 and second[1]["text"] == "é caption 2"
    assert first.fingerprint() != second.fingerprint()


def test_fingerprints_know_examples_not_places(tmp_path):
    paths = [write(tmp_path / place / "a.tar", example(1) + example(2)) for place in ("here", "there")]
    here, there = (WebDataset(path).build() for path in paths)
    assert here.fingerprint() == there.fingerprint() and here.shards.folder != there.shards.folder
    other = WebDataset(write(tmp_path / "b.tar", example(2) + example(1))).build()
    assert other.fingerprint() != here.fingerprint()
    assert here.described(1) == there.described(1) == ("a.tar 00002", 2, ("é caption 2",))


def test_splits_are_by_the_key_alone(tmp_path):
    keys = [f"{number:05}" for number in range(200)]
    write(tmp_path / "x" / "0.tar", [(f"{key}.txt", key.encode()) for key in keys[:70]])
    write(tmp_path / "x" / "1.tar", [(f"{key}.txt", key.encode()) for key in keys[70:]])
    write(tmp_path / "y" / "all.tar", [(f"{key}.txt", key.encode()) for key in keys])
    found = {}
    for split in ("train", "validation", "test"):
        records = WebDataset(str(tmp_path / "x" / "*.tar"), split=split).build()
        found[split] = [records[index]["text"] for index in range(len(records))]
        assert found[split] == [key for key in keys if splits.hash_split(key, (0.8, 0.1, 0.1)) == split]
        assert found[split] == list(WebDataset(str(tmp_path / "y" / "all.tar"), split=split).build().texts())
        low = sum(key in found[split] for key in keys[:70])
        assert records.blocks().tolist() == [low, len(records) - low]
        again = pickle.loads(pickle.dumps(records))
        assert list(again.texts()) == found[split] and again.fingerprint() == records.fingerprint()
    assert sorted(key for keys_of in found.values() for key in keys_of) == keys
    with pytest.raises(UserError, match=r"WebDataset\.split='test': none of the 200 examples of"):
        WebDataset(str(tmp_path / "y" / "all.tar"), split="test", fractions=(0.5, 0.5, 0.0)).build()


@given(st.lists(st.text(max_size=4)), st.sampled_from([(0.8, 0.1, 0.1), (0.0, 0.3, 0.7), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0)]))
def test_splits_of_many_are_those_of_each(keys, fractions):
    places = np.array([splits.place_of(key) for key in keys], np.uint64)
    for split in splits.SPLITS:
        expected = [splits.hash_split(key, fractions) == split for key in keys]
        assert splits.in_split(places, split, fractions).tolist() == expected


def test_examples_are_grouped_as_webdataset_does(tmp_path, caplog):
    """The keys and fields that webdataset 1.0.2 gives of these members, but for hidden files, which it takes for a folder's."""
    names = [
        "a/1.jpg",
        "a/1.seg.PNG",
        "b/1.jpg",
        "__meta__.json",
        "__meta__/x.txt",
        "README",
        "v1.0/2.txt",
        "./3.txt",
        "a.b/.4.txt",
    ]
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    path = write(tmp_path / "a.tar", [folder, *((name, name.encode()) for name in names)])
    records = WebDataset(path, text_field="txt;jpg").build()
    found = [records.shards.example(index, lambda _: True, whole=True) for index in range(len(records))]
    assert found == [
        ("a/1", {"jpg": b"a/1.jpg", "seg.png": b"a/1.seg.PNG"}),
        ("b/1", {"jpg": b"b/1.jpg"}),
        ("__meta__", {"json": b"__meta__.json"}),
        ("v1.0/2", {"txt": b"v1.0/2.txt"}),
        ("./3", {"txt": b"./3.txt"}),
    ]
    assert f"2 member(s) of the shards are of no example, having no extension or being hidden: {path} README" in caplog.text


def test_alternatives_and_what_half_of_the_examples_lack(tmp_path, caplog):
    members = []
    for number, extension in enumerate(("jpg", "jpeg", "JPG", "png", "")):
        key = f"{number:03}"
        members += [(f"{key}.{extension}", png(number))] if extension else []
        members += [(f"{key}.txt", b"t"), *([(f"{key}.cls", b"1")] if number < 2 else [])]
    records = WebDataset(write(tmp_path / "a.tar", members)).build()
    assert [int(records[number]["image"][0, 0, 0]) for number in range(4)] == [0, 1, 2, 3]
    assert records[0].keys() == {"image", "text"}, "of the class three of five know nothing"
    said = [record.getMessage() for record in caplog.records]
    assert "WebDataset: 4 of 5 examples have 'jpg;jpeg;png'; the others are unreadable" in said
    assert "WebDataset: 2 of 5 examples have 'cls'; it is left out" in said
    with pytest.raises(BadRecordError, match=r"a\.tar 004: it has no 'jpg;jpeg;png'"):
        records[4]
    assert WebDataset(write(tmp_path / "a.tar", members), image_field="").build()[4] == {"text": "t"}
    assert WebDataset(write(tmp_path / "a.tar", members), label_field="cls;txt", names=("t", "u")).build()[0]["label"] == 1


def test_a_subset_chooses_without_reading_images(tmp_path):
    members = [member for number in range(30) for member in example(number)]
    source = WebDataset(write(tmp_path / "a.tar", members), names=("a", "b", "c"))
    records = Subset(source, only=("b", "c"), shots=2).build()
    assert len(records) == 4 and records.counts() == {"b": 2, "c": 2}
    other = WebDataset(write(tmp_path / "b" / "a.tar", members), names=("a", "b", "c"))
    assert Subset(other, only=("b", "c"), shots=2).build().own == records.own


def truncated(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


def test_mistakes(tmp_path):
    def info(name, kind, link=""):
        found = tarfile.TarInfo(name)
        found.type, found.linkname = kind, link
        return found

    good = write(tmp_path / "good.tar", example(1))
    cases = [
        (WebDataset(str(tmp_path / "*.txt")), "no such file"),
        (WebDataset(str(tmp_path)), "is a folder: name the files in it"),
        (WebDataset("pipe:curl -s x/a.tar"), "examples are read in any order"),
        (WebDataset(str(tmp_path / "{good,absent}.tar")), "no such file as"),
        (WebDataset(str(tmp_path / "{good,good}.tar")), "more than once"),
        (WebDataset(good, text_field="tct"), "WebDataset.text_field='tct' is no field of the data (did you mean 'txt'?)"),
        (WebDataset(good, text_field="json/captoin"), "is no field of the data (did you mean 'json/caption'?)"),
        (WebDataset(good, text_field="xml/captoin"), "is no field of the data"),
        (WebDataset(good, fields={"a": "json/b"}), "WebDataset.fields.a='json/b' is no field of the data"),
        (WebDataset(good, fields={"label": "cls"}), "a record has a 'label' already"),
        (WebDataset(good, split="tain"), "WebDataset.split='tain' is not a split (did you mean 'train'?)"),
        (WebDataset(good, image_field="", text_field=""), "the data has neither '' nor ''; it has png, txt, cls, json"),
        (WebDataset(good, max_pixels=0), "max_pixels=0"),
    ]
    for number, (member, said) in enumerate(
        [
            (info("1.jpg", tarfile.SYMTYPE, "2.jpg"), "'1.jpg' is a symbolic link"),
            (info("1.jpg", tarfile.LNKTYPE, "2.jpg"), "'1.jpg' is a hard link"),
            (info("1.jpg", tarfile.CHRTYPE), "'1.jpg' is a device"),
            (info("1.jpg", tarfile.FIFOTYPE), "'1.jpg' is a pipe"),
            (info("1.jpg", tarfile.GNUTYPE_SPARSE), "'1.jpg' is a sparse file"),
            (info("1.jpg", b"Q"), "'1.jpg' (byte 0) is of the unknown kind b'Q'"),
            (("/1.jpg", b""), "'/1.jpg' leads out"),
            (("a/../1.jpg", b""), "'a/../1.jpg' leads out"),
            (("README", b""), "no example in it"),
        ]
    ):
        path = write(tmp_path / f"wrong{number}.tar", [member])
        cases.append((WebDataset(path), f"{path}: {said}"))
    for packed, program in (("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")):
        with tarfile.open(tmp_path / f"a.tar.{packed}", f"w:{packed}") as tar:
            tar.addfile(tarfile.TarInfo("a.txt"))
        cases.append((WebDataset(str(tmp_path / f"a.tar.{packed}")), f"unpack it ({program})"))
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"no tar at all, " * 100)
    (tmp_path / "joined.tar").write_bytes((tmp_path / "good.tar").read_bytes() * 2)
    cases += [
        (WebDataset(str(tmp_path / "empty.tar")), "empty.tar has 0 bytes"),
        (WebDataset(str(tmp_path / "text.tar")), "no header at byte 0"),
        (WebDataset(str(tmp_path / "joined.tar")), "something follows the end, at byte"),
    ]
    for spec, message in cases:
        with pytest.raises(UserError) as raised:
            spec.build()
        assert message in str(raised.value) and "\n" not in str(raised.value), str(raised.value)


@pytest.mark.parametrize(
    "size, said", [(550, "'00001.png' has bytes 512 to"), (1024, "it ends at byte 1024, without"), (1100, "ends at byte 1100")]
)
def test_a_cut_shard_is_named_with_the_byte(tmp_path, size, said):
    path = write(tmp_path / "a.tar", example(1))
    truncated(path, size)
    with pytest.raises(UserError) as raised:
        WebDataset(path).build()
    assert str(raised.value).startswith(f"{path}: it is cut: ") and said in str(raised.value)


def test_unreadable_examples_are_named(tmp_path):
    members = [*example(0), *example(1)[1:], *example(2), ("00002.txt", b"again"), *example(3), *example(4), *example(5)]
    members += [("00003.txt", b"apart")]
    members[-len(example(5)) - 1] = ("00005.png", b"no image")
    broken = {"00004.txt": b"\xff", "00004.json": b"{"}
    path = write(tmp_path / "a.tar", [(name, broken.get(name, content)) for name, content in members])
    records = WebDataset(path, fields={"area": "json/area"}).build()
    assert len(records) == 7 and records[0]["text"] == "é caption 0"
    apart = "its key stands in more than one place of the shard: sort the members by their names"
    cases = {1: "it has no 'png'", 2: "it has 'txt' more than once", 3: apart, 4: "not UTF-8", 5: "not an image", 6: apart}
    for index, said in cases.items():
        with pytest.raises(BadRecordError) as raised:
            records[index]
        assert said in raised.value.reason and raised.value.path.startswith(f"{path} 0000"), str(raised.value)
    with pytest.raises(BadRecordError, match="00004 json: not JSON"):
        WebDataset(path, text_field="json/caption").build()[4]
    assert list(records.texts()) == ["é caption 0", "é caption 1", "é caption 5"]
    assert records.described(3) == ("a.tar 3", -1, ())


def test_a_shard_that_changes_or_vanishes_is_named(tmp_path):
    path = write(tmp_path / "a.tar", example(1))
    records = WebDataset(path).build()
    assert records[0]["label"] == 1
    write(tmp_path / "a.tar", example(2) + example(3))
    with pytest.raises(UserError, match=r"a\.tar has changed since the run looked at it \(it has \d+ bytes and had 10240\)"):
        records[0]
    records = WebDataset(path).build()
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match="its time has changed"):
        records[0]
    records = pickle.loads(pickle.dumps(WebDataset(path).build()))
    os.remove(path)
    with pytest.raises(BadRecordError, match=r"a\.tar example 0: its file: No such file or directory"):
        records[0]


def test_an_index_that_is_gone_is_named(tmp_path, cache):
    records = WebDataset(write(tmp_path / "a.tar", example(1))).build()
    pickled = pickle.dumps(records)
    (records.shards.folder / "starts.npy").unlink()
    with pytest.raises(UserError, match="the index of the shards is gone or broken"):
        pickle.loads(pickled)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bytes of a tar in each format, and the bytes of their headers of 512."""
    found = {}
    for form in FORMATS:
        long = "d" * 120 + "/" if form != "ustar" else ""
        path = tmp_path_factory.mktemp("whole") / "a.tar"
        write(
            path,
            [(f"{long}{number}.{extension}", b"%d" % number * 40) for number in range(2) for extension in ("txt", "cls")],
            form,
        )
        with tarfile.open(path) as tar:
            headers = [place for member in tar.getmembers() for place in range(member.offset, member.offset_data, 512)]
        data = path.read_bytes()
        found[form] = (data, [place for place in headers if data[place + 257 : place + 262] == b"ustar"])
    return found


def outcome(data, folder):
    """What is read: keys and texts, or the errors in place of them."""
    path = folder / "a.tar"
    path.write_bytes(data)
    try:
        records = WebDataset(str(path), label_field="").build()
    except UserError as error:
        return str(error)
    found = []
    for index in range(len(records)):
        try:
            found.append(records[index]["text"])
        except BadRecordError as error:
            found.append(str(error))
    return found


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_shard_is_refused_or_right(whole, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    content, headers = whole[data.draw(st.sampled_from(sorted(FORMATS)))]
    right = ["0" * 40, "1" * 40]
    if data.draw(st.booleans()):
        cut = outcome(content[: data.draw(st.integers(0, len(content) - 1))], folder)
        assert isinstance(cut, str) or cut == right
        return
    place = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 511))
    flipped = bytearray(content)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    found = outcome(bytes(flipped), folder)
    assert isinstance(found, str) or found == right, found


@settings(max_examples=100, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMATS)), places=st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=30)))
)
def test_anything_at_all_ends_in_a_named_error_or_a_record(whole, tmp_path_factory, form, places):
    content = bytearray(whole[form][0])
    for place, written in places:
        content[place : place + len(written)] = written
    outcome(bytes(content), tmp_path_factory.mktemp("fuzz"))


def test_inspect_and_flags_from_a_config(three, tmp_path, capsys):
    (tmp_path / "config.py").write_text(f"""
from mmjax.data import Data, Normalise, Resize, WebDataset
import dataclasses
from mmjax.train.config_file import load_config

def experiment():
    tiny = load_config({str(TINY)!r})
    source = WebDataset("absent.tar", names=tuple("abcdefghij"))
    data = {{name: Data(source, (Resize((8, 8)), Normalise()), batch_size=8, max_length=8) for name in tiny.data}}
    return dataclasses.replace(tiny, data=data)
""")
    config = str(tmp_path / "config.py")
    words = [word for name in ("train", "validation", "test") for word in (f"--data.{name}.source.path", three)]
    assert main(["data", "inspect", config, *words, "--data.train.source.split", "train"]) == 0
    said = capsys.readouterr().out
    assert "records      12, fingerprint" in said and "classes      10: a 4, b 4, c 4, d 0" in said and "unreadable   0" in said
    assert main(["data", "inspect", config]) == 2
    assert "WebDataset.path='absent.tar': no such file" in capsys.readouterr().err
