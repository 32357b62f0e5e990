"""Parquet, record by record against what was written."""

import io
import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import Array, BadRecordError, Class, Classes, Data, Normalise, Number, Parquet, Subset, WordPiece
from mmjax.data.files.recent import Recent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


def png(level, size=(6, 5)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def features(**own):
    """The metadata that HuggingFace's `datasets` writes."""
    return {"huggingface": json.dumps({"info": {"features": own}})}


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pets(count, start=0):
    """Images as HuggingFace has them, captions, classes with names, numbers and arrays."""
    rows = range(start, start + count)
    columns = {
        "image": pa.array([{"bytes": png(i % 250), "path": f"{i}.png"} for i in rows], IMAGE),
        "text": pa.array([[f"a pet {i}", f"pet é {i}"] for i in rows]),
        "label": pa.array([i % 3 - 1 for i in rows], pa.int64()),
        "age": pa.array([None if i % 5 == 4 else i / 2 for i in rows], pa.float32()),
        "boxes": pa.array([[[i, 0, i + 1.5, 2]] * (i % 3) for i in rows], pa.list_(pa.list_(pa.float32()))),
        "vector": pa.array([[i, i + 1] for i in rows], pa.list_(pa.int16())),
        "tags": pa.array([["x", "y"][: i % 3] for i in rows]),
        "unused": pa.array([b"x" * 1000 for _ in rows]),
    }
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    return pa.table(columns).replace_schema_metadata(features(label=label, image={"_type": "Image"}))


FIELDS = {"age": "age", "image_boxes": "boxes", "vector": "vector", "tags": "tags"}


@pytest.fixture
def folder(tmp_path):
    """Two files of 10 and 7 rows in row groups of 4."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    pq.write_table(pets(10), tmp_path / "data" / "a.parquet", row_group_size=4)
    pq.write_table(pets(7, 10), tmp_path / "data" / "deep" / "b.parquet", row_group_size=4)
    return tmp_path / "data"


def test_every_record_is_what_was_written(folder):
    records = Parquet(str(folder), fields=FIELDS).build()
    assert len(records) == 17 and records.classes == ("cat", "dog") and records.blocks().tolist() == [4, 4, 2, 4, 3]
    records = pickle.loads(pickle.dumps(records))
    for i in np.random.default_rng(0).permutation(17).tolist():
        record = records[i]
        assert (record["image"] == i).all() and record["image"].shape == (6, 5, 3)
        assert record["text"] == (f"a pet {i}", f"pet é {i}") and record["label"] == i % 3 - 1
        assert record.get("name") == [None, "cat", "dog"][i % 3]
        assert np.isnan(record["age"]) if i % 5 == 4 else record["age"] == i / 2
        assert record["vector"].dtype == np.int16 and record["vector"].tolist() == [i, i + 1]
        assert record["image_boxes"].dtype == np.float32 and record["image_boxes"].tolist() == [[i, 0, i + 1.5, 2]] * (i % 3)
        assert record["tags"] == ["x", "y"][: i % 3] and "unused" not in record
    assert records[-1]["label"] == records[16]["label"]
    with pytest.raises(IndexError):
        records[17]
    assert list(records.texts()) == [text for i in range(17) for text in (f"a pet {i}", f"pet é {i}")]
    assert list(records.texts_of("tags")) == [tag for i in range(17) for tag in ["x", "y"][: i % 3]]
    assert records.described(11) == ("deep/b.parquet:1", 1, ("a pet 11", "pet é 11"))


def test_only_columns_that_are_asked_for_are_read(folder):
    records = Parquet(str(folder), image_field="", text_field="", fields={"vector": "vector"}).build()
    assert {**records[3], "vector": 0} == {"label": -1, "vector": 0}
    assert records.held.table(0, ("vector", "label")).column_names == ["vector", "label"]
    (key,) = [key for key in records.held.recent._held if set(key[1]) == {"vector", "label"}][:1]
    assert key[0] == 0


def test_batches_are_the_same_with_workers_and_after_pickling(folder):
    source = Parquet(str(folder), fields=FIELDS, cache_mb=1)
    columns = {
        "image_boxes": Array(rows=2),
        "age": Number(),
        "tags": Classes(("x", "y")),
        "label": Class(),
        "vector": Array("int32"),
    }
    tokenizer = WordPiece(100).train(source.build().texts())
    found = []
    for workers in (0, 2):
        dataset = Data(source, (Normalise(),), columns, batch_size=8, workers=workers, threads=2).build(tokenizer, seed=3)
        if workers:
            dataset = pickle.loads(pickle.dumps(dataset))
        with dataset.batches() as batches:
            found.append([next(batches) for _ in range(5)])
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys() and {"image", "text", "label", "group"} <= one.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    assert found[0][0]["image_boxes"].shape == (8, 2, 4)


def test_splits_share_out_the_rows_and_adding_a_file_moves_none(folder):
    whole = Parquet(str(folder)).build()
    parts = [Parquet(str(folder), split=split, fractions=(0.5, 0.3, 0.2)).build() for split in ("train", "validation", "test")]
    rows = [set(part.places.tolist()) for part in parts]
    assert set.union(*rows) == set(range(17)) and sum(map(len, rows)) == 17
    assert [part.blocks().sum() for part in parts] == list(map(len, parts))
    assert [parts[0][i]["text"] for i in range(len(parts[0]))] == [whole[i]["text"] for i in sorted(rows[0])]
    prints = {records.fingerprint() for records in (whole, *parts)}
    assert len(prints) == 4 and whole.fingerprint() == Parquet(str(folder)).build().fingerprint()
    pq.write_table(pets(30, 17), folder / "c.parquet")
    more = Parquet(str(folder), split="train", fractions=(0.5, 0.3, 0.2)).build()
    texts = {more[i]["text"] for i in range(len(more))}
    assert {parts[0][i]["text"] for i in range(len(parts[0]))} == {text for text in texts if int(text[0].split()[-1]) < 17}
    assert more.fingerprint() != parts[0].fingerprint()


def test_rows_of_one_image_path_stay_in_one_split(tmp_path, write_image):
    for i in range(12):
        write_image(tmp_path / "images" / f"{i}.png", i)
    table = pa.table({"image": [f"images/{i % 12}.png" for i in range(36)], "text": [f"caption {i}" for i in range(36)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    seen = {}
    for split in ("train", "validation", "test"):
        records = Parquet(str(tmp_path / "*.parquet"), split=split, fractions=(0.4, 0.3, 0.3)).build()
        seen[split] = {int(records[i]["image"][0, 0, 0]) for i in range(len(records))}
        assert sorted(int(records[i]["text"].split()[1]) % 12 for i in range(len(records))) == sorted(3 * list(seen[split]))
    assert sorted(level for own in seen.values() for level in own) == list(range(12))


def test_names_of_classes_from_a_column_of_strings(tmp_path):
    one, two = ["dog", None, " cat", ""], ["emu", "emu", "cat"]
    pq.write_table(pa.table({"text": list("abcd"), "label": one}), tmp_path / "a.parquet", row_group_size=1)
    table = pa.table({"text": list("efg"), "label": pa.array(two).dictionary_encode()})
    pq.write_table(table, tmp_path / "b.parquet")
    records = Parquet(str(tmp_path)).build()
    assert records.classes == ("cat", "dog", "emu")
    assert [records[i]["label"] for i in range(7)] == [1, -1, 0, -1, 2, 2, 0] and records[4]["name"] == "emu"
    subset = Subset(Parquet(str(tmp_path)), only=("dog", "emu")).build()
    assert [subset[i]["text"] for i in range(len(subset))] == ["a", "e", "f"] and subset[1]["label"] == 1
    named = Parquet(str(tmp_path), names=("emu", "dog", "cat")).build()
    assert [named[i]["label"] for i in range(7)] == [1, -1, 2, -1, 0, 0, 2]
    with pytest.raises(BadRecordError, match="'emu' is no class"):
        Parquet(str(tmp_path), names=("dog", "cat")).build()[4]
    pq.write_table(pa.table({"text": list("abc"), "label": ["10", "9", "-1"]}), tmp_path / "c.parquet")
    numbers = Parquet(str(tmp_path / "c.parquet")).build()
    assert numbers.classes == ("9", "10") and [numbers[i]["label"] for i in range(3)] == [1, 0, -1]


def test_nulls_and_numbers_of_classes(tmp_path):
    columns = {
        "text": pa.array(["a", None, "c", "d"]),
        "label": pa.array([1.0, 0.0, None, 1.5]),
        "whole": pa.array([1, None, 3, 4], pa.int32()),
        "flag": pa.array([True, None, False, True]),
        "list": pa.array([[1], [None], None, []], pa.list_(pa.int64())),
        "empty": pa.nulls(4),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    records = Parquet(str(tmp_path), fields={key: key for key in ("whole", "flag", "list", "empty")}).build()
    assert records[0] == {"text": "a", "label": 1, "whole": 1, "flag": 1, "list": np.array([1]), "empty": None}
    assert records[2] == {"text": "c", "label": -1, "whole": 3, "flag": 0, "list": None, "empty": None}
    with pytest.raises(BadRecordError, match=r"a\.parquet row 1.*null among its int64"):
        records[1]
    with pytest.raises(BadRecordError, match=r"row 3 label: 1\.5 is no class"):
        records[3]
    with pytest.raises(BadRecordError, match="row 1 text: a text is a string"):
        Parquet(str(tmp_path)).build()[1]
    flags = Parquet(str(tmp_path), label_field="flag").build()
    assert [flags[i]["label"] for i in (0, 2, 3)] == [1, 0, 1]
    assert flags.described(1) == ("a.parquet:1", -1, ()), "a record that cannot be read has no captions"


def test_fields_inside_of_structs(tmp_path):
    objects = [{"bbox": [[1.0, 2.0, 3.0, 4.0]] * i, "category": [7] * i} for i in range(3)]
    sentences = [[{"raw": f"one {i}", "id": 1}, {"raw": f"two {i}", "id": 2}] for i in range(3)]
    pq.write_table(pa.table({"objects": objects, "sentences": sentences}), tmp_path / "a.parquet")
    spec = Parquet(str(tmp_path), text_field="sentences.raw", fields={"boxes": "objects.bbox", "kinds": "objects.category"})
    records = spec.build()
    for i in range(3):
        assert records[i]["text"] == (f"one {i}", f"two {i}") and records[i]["kinds"].tolist() == [7] * i
        assert records[i]["boxes"].tolist() == [[1, 2, 3, 4]] * i


def test_a_group_larger_than_the_cache_is_read_by_pieces(tmp_path, caplog):
    noise = np.random.default_rng(0)
    rows = [noise.bytes(100_000) for _ in range(50)]
    pq.write_table(pa.table({"blob": rows, "text": [str(i) for i in range(50)]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"blob": rows[:3], "text": ["50", "51", "52"]}), tmp_path / "b.parquet")
    spec = Parquet(str(tmp_path), image_field="blob", cache_mb=1)
    records = spec.build()
    assert [message for message in caplog.messages if "1 row group(s) are larger than cache_mb=1 (up to 5 MB)" in message]
    assert records.blocks().tolist() == [2] * 25 + [3] and records.described(51) == ("b.parquet:1", -1, ("51",))
    order = [0, 1, 49, 3, 2, 30, 31, 52, 33, *range(53)]
    for i in order:
        block, row = records._find(i)
        table = records.held.table(block, ("blob", "text"))
        assert table.column("blob")[row].as_py() == rows[i % 50] and table.column("text")[row].as_py() == str(i)
        assert records.held.recent.size <= 1_000_000 and table.num_rows == records.blocks()[block]
    found = {}

    def read(start):
        for i in range(start, 50, 4):
            block, row = records._find(i)
            found[i] = records.held.table(block, ("blob", "text")).column("text")[row].as_py()

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: str(i) for i in range(50)}


def test_the_cache_keeps_the_latest_and_makes_once():
    recent, made = Recent(10), []

    def make(key, size=4):
        made.append(key)
        return key.upper(), size

    for key in "abab":
        assert recent.get(key, lambda key=key: make(key)) == key.upper()
    assert made == ["a", "b"] and recent.size == 8
    recent.get("a", lambda: make("a"))
    recent.get("c", lambda: make("c"))
    assert sorted(recent._held) == ["a", "c"], "the least recently used went"
    assert recent.get("d", lambda: make("d", 99)) == "D" and list(recent._held) == ["d"] and recent.size == 99
    with pytest.raises(KeyError):
        recent.get("e", lambda: {}["e"])
    assert recent.get("e", lambda: make("e")) == "E" and len(pickle.loads(pickle.dumps(recent))) == 0
    begun, results = threading.Barrier(4), []

    def ask():
        begun.wait()
        results.append(recent.get("slow", lambda: make("slow")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["SLOW"] * 4 and made.count("slow") == 1


def test_mistakes_when_opened(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    pq.write_table(pa.table({"text": ["a"], "label": [1], "when": pa.array([0], pa.timestamp("ms"))}), other / "a.parquet")
    cases = [
        (Parquet(str(tmp_path / "no" / "*.parquet")), "Parquet.path="),
        (Parquet(str(folder), split="tset"), "Parquet.split='tset' is not a split (did you mean 'test'?)"),
        (Parquet(str(folder), text_field="caption"), "Parquet.text_field='caption' is no field of the data"),
        (Parquet(str(folder), fields={"a": "agee"}), "(did you mean 'age'?)"),
        (Parquet(str(folder), text_field="age"), "'age' of"),
        (Parquet(str(other), fields={"when": "when"}), "is a timestamp[ms], and 'when' is made of a string, a number"),
        (Parquet(str(folder), cache_mb=0), "Parquet.cache_mb=0"),
        (Parquet(str(other), split="test", fractions=(1.0, 0.0, 0.0)), "none of the 1 rows"),
    ]
    for spec, message in cases:
        with pytest.raises(UserError) as raised:
            spec.build()
        assert message in str(raised.value) and "\n" not in str(raised.value)


def test_files_that_differ_are_named(tmp_path):
    def check(message, **spec):
        with pytest.raises(UserError, match=message):
            Parquet(str(tmp_path), **spec).build()

    pq.write_table(pa.table({"text": ["a"], "x": [1], "v": [[1.0]]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1], "x": ["1"]}), tmp_path / "b.parquet")
    check(r"the column 'text' of .*b\.parquet is a whole number, that of .*a\.parquet a string")
    pq.write_table(pa.table({"text": pa.array(["b"], pa.large_string()), "y": ["1"]}), tmp_path / "b.parquet")
    assert len(Parquet(str(tmp_path)).build()) == 2, "a column that is not asked for may differ, and a string be a large one"
    check(r"b\.parquet has no column 'x', which .*a\.parquet has", fields={"x": "x"})
    table = pa.table({"text": ["b"], "v": pa.array([[1]], pa.list_(pa.float32())), "x": pa.nulls(1)})
    pq.write_table(table, tmp_path / "b.parquet")
    check(r"'v' of .* is a list of number \(float32\), that of .* a list of number \(float64\)", fields={"v": "v"})
    assert Parquet(str(tmp_path), fields={"x": "x"}).build()[1]["x"] is None
    pq.write_table(pa.table({"text": ["b"], "label": [1]}), tmp_path / "b.parquet")
    check(r"a\.parquet has no column 'label', which .*b\.parquet has")
    pq.write_table(pa.table([["a"], ["b"]], ["text", "text"]), tmp_path / "a.parquet")
    check("two columns 'text'")
    for path, names in (("a", ["x", "y"]), ("b", ["y", "x"])):
        own = features(label={"_type": "ClassLabel", "names": names})
        pq.write_table(pa.table({"text": ["b"], "label": [1]}).replace_schema_metadata(own), tmp_path / f"{path}.parquet")
    check("the classes of 'label' in .* are not those in")


def test_a_file_that_goes_or_changes_while_it_is_read(folder):
    records = Parquet(str(folder)).build()
    assert records[0]["label"] == -1
    pq.write_table(pets(10, 3), folder / "a.parquet", row_group_size=4)
    os.utime(folder / "a.parquet", ns=(1, 1))
    assert records[1]["label"] == 0, "decoded before"
    with pytest.raises(BadRecordError, match=r"a\.parquet row 5: the file was changed"):
        records[5]
    (folder / "deep" / "b.parquet").unlink()
    with pytest.raises(BadRecordError, match=r"b\.parquet row 2: no such file"):
        records[12]


@pytest.fixture(scope="module")
def encoded():
    sink = io.BytesIO()
    pq.write_table(pets(12).drop(["unused"]), sink, row_group_size=5)
    return sink.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_ends_in_an_error_by_name(data, encoded, tmp_path):
    broken, path = damaged(data, encoded), tmp_path / "damaged.parquet"
    path.write_bytes(broken)
    try:
        records = Parquet(str(path), fields=FIELDS).build()
    except UserError as error:
        assert str(path) in str(error) or "is no field" in str(error) or "has neither" in str(error)
        assert "\n" not in str(error)
        return
    assert len(broken) == len(encoded), "a cut file has no footer"
    for index in range(min(len(records), 12)):
        try:
            records[index]
        except BadRecordError as error:
            assert f"damaged.parquet row {index}" in str(error)
    list(records.texts())


def test_pyarrow_is_not_imported_with_mmjax():
    program = "import sys, mmjax.data; mmjax.data.Parquet('x'); assert 'pyarrow' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
