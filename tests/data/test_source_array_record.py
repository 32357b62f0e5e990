"""ArrayRecord: examples of TensorFlow's and JSON, read in any order; written and read back, also by protobuf itself."""

import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

from mmjax.core.errors import UserError
from mmjax.data import ArrayRecord, BadRecordError, Data, Normalise, Subset, WordPiece, splits
from mmjax.data.files import open_files
from mmjax.data.files.tf_example import example_bytes, parse_example
from mmjax.data.sources.array_record import write_array_record


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


def png(level):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def example(number):
    boxes = np.arange(4, dtype=np.float32) + number
    return {"image": png(number), "text": f"é {number}", "label": number % 3 - 1, "boxes": boxes, "area": number / 2}


@pytest.fixture
def two(tmp_path):
    """Ten records in two files."""
    for file in range(2):
        assert (
            write_array_record(tmp_path / f"{file}.array_record", map(example, range(file * 4, 4 + file * 6))) == 4 + file * 2
        )
    return str(tmp_path / "*.array_record")


def raw(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_every_record_is_what_was_written(two):
    records = ArrayRecord(two, names=("a", "b"), fields={"box": "boxes", "size": "area"}).build()
    assert len(records) == 10 and records.blocks().tolist() == [4, 6] and records.classes == ("a", "b")
    for number in range(10):
        label = number % 3 - 1
        expected = {"image": np.full((6, 5, 3), number, np.uint8), "text": f"é {number}", "label": label, "size": number / 2}
        expected |= {"box": np.arange(4) + number} | ({"name": "ab"[label]} if label >= 0 else {})
        same(records[number], expected)
    assert list(records.texts()) == [f"é {number}" for number in range(10)]
    same(records[-1], records[9])
    with pytest.raises(IndexError):
        records[10]
    assert records.described(5) == ("1.array_record 1", 1, ("é 5",))


def test_pickled_and_threaded_records_are_the_same(two, monkeypatch):
    monkeypatch.setattr(open_files, "MOST", 1)
    records = ArrayRecord(two, split="train", fractions=(0.6, 0.2, 0.2)).build()
    again = pickle.loads(pickle.dumps(records))
    assert again.fingerprint() == records.fingerprint() and len(again) == len(records) < 10
    with ThreadPoolExecutor(8) as pool:
        for index, record in enumerate(pool.map(lambda index: again[index % len(again)], range(100))):
            same(record, records[index % len(records)])
    held = [link for link in map(os.path.realpath, Path("/proc/self/fd").glob("*")) if link.endswith(".array_record")]
    assert len(held) <= 2, "one a source; the others are closed"


def test_batches_are_the_same_whoever_reads(two):
    data = Data(ArrayRecord(two), (Normalise(),), batch_size=4, max_length=8)
    tokenizer = WordPiece(80).train(data.texts())
    here = data.build(tokenizer, 3)
    first = [here.batch(step) for step in range(3)]
    for workers in (0, 2):
        with dataclasses.replace(data, workers=workers).build(tokenizer, 3).batches() as batches:
            for step in range(3):
                same(next(batches), first[step])


def test_splits_are_by_content(two, tmp_path):
    found = {}
    fractions = (0.4, 0.3, 0.3)
    for split in splits.SPLITS:
        records = ArrayRecord(two, split=split, fractions=fractions).build()
        found[split] = list(records.texts())
        assert records.blocks().sum() == len(records) and len(records.blocks()) == 2
    assert sorted(text for texts in found.values() for text in texts) == [f"é {number}" for number in range(10)]
    write_array_record(tmp_path / "other" / "a", map(example, range(12)))
    for split, texts in found.items():
        assert set(texts) <= set(ArrayRecord(str(tmp_path / "other" / "a"), split=split, fractions=fractions).build().texts())


def test_json_with_paths_and_nested_fields(tmp_path):
    Image.fromarray(np.full((6, 5, 3), 7, np.uint8)).save(tmp_path / "a.png")
    lines = [{"file": "a.png", "text": ["one", "two"], "about": {"label": "cat", "size": 3}}]
    path = raw(tmp_path / "a", [json.dumps(line).encode() for line in lines])
    spec = ArrayRecord(path, format="json", image_field="file", label_field="about/label", names=("dog", "cat"))
    record = dataclasses.replace(spec, fields={"size": "about/size"}, root=str(tmp_path)).build()[0]
    assert record["image"][0, 0, 0] == 7 and record["text"] == ("one", "two") and record["label"] == 1 and record["size"] == 3


def test_a_subset(two):
    assert Subset(ArrayRecord(two, names=("a", "b")), shots=2).build().counts() == {"a": 2, "b": 2}


def test_mistakes(two, tmp_path):
    good, content = str(tmp_path / "0.array_record"), (tmp_path / "0.array_record").read_bytes()
    (tmp_path / "cut").write_bytes(content[:-100])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"no such file " * 9000)
    json_file = raw(tmp_path / "json", [b'{"text": "a"}'])
    cases = [
        (ArrayRecord(str(tmp_path / "absent*")), "ArrayRecord.path="),
        (ArrayRecord(good, format="exampel"), "ArrayRecord.format='exampel' is no format (did you mean 'example'?)"),
        (ArrayRecord(good, text_field="txet"), "ArrayRecord.text_field='txet' is no field of the data (did you mean 'text'?)"),
        (ArrayRecord(good, format="json"), "give format='example'"),
        (ArrayRecord(json_file), "give format='json'"),
        (ArrayRecord(raw(tmp_path / "none", [])), "no record in 1 file(s)"),
        (ArrayRecord(raw(tmp_path / "one", [b"\x00"])), "the first 1 record(s) cannot be read"),
        *((ArrayRecord(str(tmp_path / name)), "is no ArrayRecord file, or it is cut") for name in ("cut", "empty", "text")),
    ]
    for spec, message in cases:
        with pytest.raises(UserError) as raised:
            spec.build()
        assert message in str(raised.value) and "\n" not in str(raised.value), str(raised.value)


def test_unreadable_records_and_changed_files_are_named(tmp_path):
    path = raw(tmp_path / "a", [example_bytes(example(0)), b"\x0a\x05", example_bytes({"text": "no image"})])
    records = ArrayRecord(path).build()
    for index, said in ((1, "no example (byte 2: 5 bytes are said to follow, and 0 do)"), (2, "it has no 'image'")):
        with pytest.raises(BadRecordError) as raised:
            records[index]
        assert (raised.value.path, raised.value.reason) == (f"{path}[{index}]", said)
    data = bytearray((tmp_path / "a").read_bytes())
    data[200] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match="has changed since the run looked at it"):
        records[0]
    with pytest.raises(BadRecordError, match=r"a\[0\]: .*hash mismatch"):
        ArrayRecord(path, image_field="").build()[0]
    os.remove(path)
    with pytest.raises(BadRecordError, match=r"its file: No such file"):
        records[0]


VALUES = st.one_of(
    st.binary(max_size=300),
    st.text(),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(width=32, allow_nan=False),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.binary(max_size=5), max_size=5),
    arrays.arrays(np.float32, st.integers(0, 5), elements=st.floats(width=32, allow_nan=False)),
)


def listed(value):
    several = list(value) if isinstance(value, list | np.ndarray) else [value]
    return [one.encode() if isinstance(one, str) else one for one in several]


@given(st.dictionaries(st.text(max_size=20), VALUES, max_size=6))
def test_examples_are_those_of_protobuf(values):
    data = example_bytes(values)
    theirs = proto.Example.FromString(data)
    assert set(theirs.features.feature) == set(values)
    for name, value in values.items():
        feature = theirs.features.feature[name]
        kind = feature.WhichOneof("kind")
        assert list(getattr(feature, kind).value) == listed(value)
        assert kind == {bytes: "bytes_list", float: "float_list", np.float32: "float_list"}.get(
            type((listed(value) or [b""])[0]), "int64_list"
        )
    ours = parse_example(theirs.SerializeToString(deterministic=True))
    assert ours.keys() == values.keys()
    for name, value in values.items():
        expected = listed(value)
        found = ours[name]
        assert ([] if found is None else listed(found)) == expected
        assert not isinstance(found, list | np.ndarray) or len(expected) > 1
    assert example_bytes(dict(reversed(values.items()))) == data


def test_lists_that_are_not_packed():
    numbers = b"\x1a\x04\x08\x05\x08\x01"  # int64_list { value: 5 value: 1 }, each with a tag of its own
    floats = b"\x12\x0a\x0d\x00\x00\x80\x3f\x0d\x00\x00\x00\x40"
    entries = [b"\x0a\x01" + name + b"\x12" + bytes([len(value)]) + value for name, value in ((b"i", numbers), (b"f", floats))]
    features = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in entries)
    data = b"\x0a" + bytes([len(features)]) + features
    theirs = proto.Example.FromString(data).features.feature
    assert list(theirs["i"].int64_list.value) == parse_example(data)["i"].tolist() == [5, 1]
    assert list(theirs["f"].float_list.value) == parse_example(data)["f"].tolist() == [1, 2]


@given(st.binary(max_size=40), st.data())
def test_any_bytes_are_an_example_or_a_value_error(data, draw):
    whole = bytearray(example_bytes({"a": [1, 300], "b": b"text", "c": [1.0, 2.0]}))
    place = draw.draw(st.integers(0, len(whole) - 1))
    whole[place : place + 1] = data[:1]
    for one in (data, bytes(whole), bytes(whole)[:place]):
        try:
            parse_example(one)
        except ValueError:
            continue


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    for value, said in (
        (np.zeros((2, 2)), "has the shape [2, 2]"),
        ([1, "a"], "'x' holds int, str"),
        (2**63, "64 bits do not hold"),
        ({}, "'x' holds dict"),
    ):
        with pytest.raises(UserError) as raised:
            write_array_record(tmp_path / "a", [{"x": 1}, {"x": value}])
        assert str(raised.value).startswith(f"{tmp_path / 'a'}: example 1: ") and said in str(raised.value)
        assert not [path for path in tmp_path.iterdir() if path.is_file()]
    assert write_array_record(tmp_path / "a", [{"x": None, "text": "t"}]) == 1
    assert parse_example(ArrayRecord(str(tmp_path / "a")).build().data(0)) == {"text": b"t"}


def test_tensorflow_and_tfds_stay_out(two):
    program = f"""
import sys
from mmjax.data import ArrayRecord
assert ArrayRecord({two!r}).build()[0]["image"].shape == (6, 5, 3)
assert not {{"tensorflow", "tensorflow_datasets"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
