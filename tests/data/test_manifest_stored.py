"""The lines of a manifest in Arrow's columns: the same records as a small parser of the test's own makes, whichever reader read
them; and a cache that is cut, damaged, full or out of date."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import HideLabels, Manifest, Subset, splits
from mmjax.data.sources import manifest
from mmjax.data.tables import groups, json_text, quick, stored, storing, table

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Everything goes through the cache, in small blocks."""
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    for place, name, value in ((manifest, "SMALL", 0), (table, "FIRST", 64), (table, "BLOCK", 400), (storing, "ROWS", 4)):
        monkeypatch.setattr(place, name, value)
    return tmp_path / "cache"


def objects(path):
    """The lines as dicts, by the simplest means."""
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in io.StringIO(text, newline=None) if line.strip()]
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def number(text):
    try:
        return int(text)
    except ValueError:
        return float(text)


def expected(rows, split, fractions, written):
    """What `Manifest(fields={"years": "age"})` makes of lines, in quadratic time; and its fingerprint."""
    names = sorted(
        {row["label"] for row in rows if row.get("label") not in (None, "")},
        key=lambda name: (len(name), name) if name in ("2", "10") else name,
    )
    ages = [None if row.get("age") == "" else row.get("age") for row in rows]
    there = [age for age in ages if age is not None]
    if written and there and all(age.replace(".", "", 1).isdecimal() for age in there):
        ages = [None if age is None else number(age) for age in ages]
        there = [age for age in ages if age is not None]
    if there and all(type(age) in (int, float) for age in there) and (None in ages or any(type(a) is float for a in there)):
        ages = [math.nan if age is None else float(age) for age in ages]
    keys = [row.get("image") or json.dumps(row["text"]) for row in rows]
    classes = {}
    for key, row in zip(keys, rows, strict=True):
        if not any(key in own for own in classes.values()):
            classes.setdefault(row.get("label") or None, []).append(key)
    shared = splits.share_out(classes, fractions)
    kept = [i for i, key in enumerate(keys) if split in ("all", shared[key])]
    group = {i: place for place, i in enumerate(kept)}
    for _ in kept:
        for i in kept:
            for j in kept:
                own, other = ({row["text"]} if isinstance(row["text"], str) else set(row["text"]) for row in (rows[i], rows[j]))
                if own & other or ("image" in rows[i] and rows[i]["image"] == rows[j]["image"]):
                    group[i] = group[j] = min(group[i], group[j])
    images = [rows[i].get("image") for i in kept]
    found = []
    for i in kept:
        example = {key: rows[i][key] for key in ("image", "text") if key in rows[i]}
        if isinstance(example["text"], list):
            example["text"] = tuple(example["text"])
        if names:
            example["label"] = names.index(rows[i]["label"]) if rows[i].get("label") in names else -1
            if example["label"] >= 0:
                example["name"] = str(rows[i]["label"])
        example |= {"group": group[i], "years": ages[i]}
        if None not in images and len(set(images)) < len(images):
            example["image_id"] = sorted(set(images), key=images.index).index(rows[i]["image"])
        found.append(example)
    digest = hashlib.sha256()
    for example in found:
        data = json.dumps(example, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return found, digest.hexdigest()[:32]


WORDS = st.sampled_from(["a", "b", "c d", 'say "q"', "é, \U0001f600", "line\nend", "null", "{}", "\\", "\x7f", "Inf ", "x}\n{"])
HALVES = st.sampled_from(["\ud800", "a\udc00"])
AGES = st.sampled_from(
    [
        *([1, 2], [1, 2, 2**40], [1.5, 2], [-0.0, 1.5, 0], [1, None], [1.5, None], ["3", "x"], [2**70, 3], [True, 1]),
        *([["w"], ["v", "u"], []], [[1, 2.5], ["w"]], [None], [math.nan, 2], [1, "x", None, [1]], [0.1, -7]),
    ]
)


@st.composite
def json_rows(draw):
    words = st.one_of(WORDS, HALVES) if draw(st.integers(0, 4)) == 0 else WORDS
    texts = draw(
        st.sampled_from([words, st.lists(words, min_size=1, max_size=3), st.one_of(words, st.lists(words, min_size=1))])
    )
    labels = draw(st.sampled_from([["cat", "dog"], [10, 9, None], ["2", "10", ""], [None], ()]))
    ages, image = draw(AGES), draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 24))):
        row = {"text": draw(texts), "age": draw(st.sampled_from(ages))}
        row |= {"image": draw(st.sampled_from(["a.png", "b.png", "ü.png", "d.png"]))} if image else {}
        rows.append(row | ({"label": draw(st.sampled_from(labels))} if labels else {}))
    return rows


def check(path, split, fractions):
    rows = objects(path)
    whole, digest = expected(rows, split, fractions, path.suffix == ".csv")
    spec = Manifest(str(path), split, fractions, fields={"years": "age"})
    if not whole:
        with pytest.raises(UserError, match="none of the"):
            spec.build()
        return
    records = pickle.loads(pickle.dumps(spec.build()))
    assert repr([list(e.items()) for e in records.examples]) == repr([list(e.items()) for e in whole])
    assert records.fingerprint() == digest
    assert list(records.texts()) == [t for e in whole for t in ((e["text"],) if isinstance(e["text"], str) else e["text"])]
    assert records.labels == (tuple(e["label"] for e in whole) if "label" in whole[0] else ())
    told = [{key: value for key, value in e.items() if key not in ("image_id", "label", "group")} for e in whole]
    assert [records.described(i)[0] for i in range(len(whole))] == [json.dumps(one, sort_keys=True) for one in told]


@MANY
@given(rows=json_rows(), data=st.data())
def test_jsonl_is_what_its_lines_say(tmp_path, rows, data):
    path = tmp_path / "rows.jsonl"
    end, ascii_ = data.draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])), data.draw(st.booleans())
    text = end.join(json.dumps(row, ensure_ascii=ascii_ or "\\ud" in json.dumps(row)) for row in rows)
    path.write_bytes(data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode())
    fractions = data.draw(st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0)]))
    check(path, data.draw(st.sampled_from(["all", "train", "validation"])), fractions)


@MANY
@given(data=st.data())
def test_csv_is_what_its_lines_say(tmp_path, data):
    path = tmp_path / "rows.csv"
    ages = data.draw(st.sampled_from([["1", "22"], ["1", "2.5"], ["1", ""], ["x", "1"], [""]]))
    drawn = st.tuples(st.sampled_from(["a.png", "b.png"]), WORDS, st.sampled_from(["cat", "dog", ""]), st.sampled_from(ages))
    file = io.StringIO()
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(file, quoting=quoting, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])))
    writer.writerows([("image", "text", "label", "age"), *data.draw(st.lists(drawn, min_size=1, max_size=24))])
    path.write_bytes(file.getvalue().encode())
    check(path, data.draw(st.sampled_from(["all", "train"])), (0.8, 0.1, 0.1))


LINES = st.sampled_from(
    ['{"a": "x", "b": 1}', '{"a": "y\\u00e9", "b": -0}', '{"b": 2, "a": "z"}', '{"a": "x", "b": 1, "c": [NaN]}']
)


@MANY
@given(lines=st.lists(LINES, min_size=1, max_size=5), data=st.data())
def test_the_quick_reader_says_nothing_else_than_the_careful_one(lines, data):
    whole = ("\n".join(lines) + data.draw(st.sampled_from(["", "\n"]))).encode()
    pieces = [b"\n", b"\r", b" ", b"{", b"}", b",", b'"', b"null", b"Inf", b"\xff", b'"a":1,', b"\0", b"1.5", b"01", b"]"]
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(whole)))
        whole = whole[:at] + data.draw(st.sampled_from(pieces)) + whole[at + data.draw(st.integers(0, 2)) :]
    import pyarrow as pa

    for number_type in (pa.int64(), pa.float64()):
        found = quick.of_json(whole, {"a": pa.string(), "b": number_type})
        if found is None:
            continue
        told = [json.loads(line) for line in whole.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")]
        assert found[0] == len(told)
        for name in ("a", "b"):
            column = found[1][name].to_pylist() if name in found[1] else [None] * len(told)
            given_ = [float(v) if number_type == pa.float64() and type(v) is int else v for v in (t.get(name) for t in told)]
            assert repr(column) == repr(given_)


@MANY
@given(data=st.data())
def test_the_quick_reader_of_separated_fields_reads_what_csv_does(data):
    import pyarrow as pa

    whole = "".join(
        data.draw(st.lists(st.sampled_from(['"', ",", "a", "b c", "\n", '""', '"x"', ",\n"]), max_size=14))
    ).encode()
    found = quick.of_separated(whole, ",", ["p", "q"], {"p": pa.string(), "q": pa.string()}) if whole else None
    if found is not None:
        rows = [row for row in csv.reader(io.StringIO(whole.decode(), newline=""), strict=True) if row]
        assert (
            found[1] == len(rows) and [list(r) for r in zip(*(c.to_pylist() for c in found[2].values()), strict=True)] == rows
        )


def test_the_quick_readers_read_what_is_usual():
    import pyarrow as pa

    assert quick.of_json(b'{"a": "Inf null {} \\"", "c": {"d": null}}\n{"a": "y"}\n', {"a": pa.string()}) is not None
    assert quick.of_json(b'{"a": 1}\r\n{"a": 2}', {"a": pa.int64()})[1]["a"].to_pylist() == [1, 2]
    found = quick.of_separated(b'"say ""a, b""",1\n5" wide,2\n'[:-10], ",", ["p", "q"], {"p": pa.string()})
    assert found is not None and found[2]["p"].to_pylist() == ['say "a, b"']
    for other in (b'{"a": "x"} {"a":\n"y"}', b'{"a": "x"}\n\n{"a": "y"}', b'{"a": null}\n{"a": "y"}', b'{"a": "x", "b": Inf}'):
        assert quick.of_json(other, {"a": pa.string()}) is None
    for other in (b'"a"b,c\n', b'a "b,c\n', b'a,"b\nc"\n'):
        assert quick.of_separated(other, ",", ["p", "q"], {"p": pa.string()}) is None
    assert quick.of_json(b'{"a": ' + b"[" * 600 + b"]" * 600 + b"}", {"a": pa.string()}) is None


LONG = 120


@pytest.fixture
def listed(tmp_path, write_image):
    write_image(tmp_path / "0.png")
    path = tmp_path / "list.jsonl"
    rows = ({"image": f"{i // 2}.png", "text": f"picture {i}", "label": "abc"[i % 3], "age": i} for i in range(LONG))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("late", ["x", 2.5, 2**70, [1], None, True])
def test_types_that_change_late_in_a_file(tmp_path, late):
    path = tmp_path / "late.jsonl"
    ages = [*range(80), late]
    path.write_text("".join(json.dumps({"text": "a", "age": age}) + "\n" for age in ages))
    found = [example["years"] for example in Manifest(str(path), "all", fields={"years": "age"}).build().examples]
    floats = [math.nan if age is None else float(age) for age in ages] if late is None or late == 2.5 else ages
    assert repr(found) == repr(floats)


def test_most_blocks_are_read_quickly(listed, monkeypatch):
    read = []
    whole = storing._Storing._quick
    monkeypatch.setattr(storing._Storing, "_quick", lambda *own: read.append(whole(*own)) or read[-1])
    Manifest(str(listed), fields={"age": "age"}).build()
    assert len(read) > 20 and sum(one is None for one in read) == 1, "the first one says of which types the fields are"


def test_a_table_is_read_once_and_again_when_it_changes(listed, monkeypatch):
    first = Manifest(str(listed)).build()
    assert len(pickle.dumps(first)) < 2000, "processes share what lies in the cache"
    monkeypatch.setattr(manifest, "store", None)
    monkeypatch.setattr(manifest, "choose", None)
    assert Manifest(str(listed)).build().fingerprint() == first.fingerprint()
    monkeypatch.undo()
    listed.write_text(listed.read_text().replace("picture 7", "picture x"))
    assert Manifest(str(listed)).build().fingerprint() != first.fingerprint()
    assert next(first.texts()) == "picture 0", "what is open stays what it was"


def test_in_memory_and_from_the_cache_are_alike(listed, monkeypatch, cache):
    for spec in (Subset(Manifest(str(listed)), ("a", "c"), shots=3), HideLabels(Manifest(str(listed))), Manifest(str(listed))):
        monkeypatch.setattr(manifest, "SMALL", 0)
        one = spec.build()
        monkeypatch.setattr(manifest, "SMALL", 1 << 20)
        other = spec.build()
        assert one.fingerprint() == other.fingerprint() and list(one.texts()) == list(other.texts())
        assert pickle.loads(pickle.dumps(other)).fingerprint() == one.fingerprint()
    places = sorted(path.name for path in cache.iterdir())
    assert places == ["manifest-1", "manifest-split-1"]


def test_a_letter_that_has_changed_in_a_damaged_cache_is_seen(listed, cache):
    spec = Manifest(str(listed), "all")
    spec.build()
    file = next(cache.rglob(stored.DATA))
    file.write_bytes(file.read_bytes().replace(b"picture 7", b"picture 8", 1))
    records = spec.build()
    assert records.example(100)["text"] == "picture 100", "of a line no more than its own batch is looked at"
    with pytest.raises(UserError, match="cut, damaged or gone"):
        records.example(7)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_cache_is_named_and_never_read(listed, cache, data):
    spec = Manifest(str(listed), "train")
    whole = list(spec.build().examples)
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    file = data.draw(st.sampled_from(files))
    kept = file.read_bytes()
    file.write_bytes(damaged(data, kept))
    try:
        assert list(spec.build().examples) == whole
    except UserError as error:
        assert "is cut, damaged or gone; delete that folder" in str(error) and "\n" not in str(error)
        assert str(error).startswith(str(file.parent))
    finally:
        file.write_bytes(kept)


def test_a_cache_that_is_cut_while_it_is_open(listed, cache):
    records = Manifest(str(listed), "all").build()
    os.truncate(next(cache.rglob(stored.DATA)), 5000)
    for index in (0, LONG - 1):  # what is still there as well
        with pytest.raises(UserError, match="cut, damaged or gone"):
            records.example(index)


def test_a_full_disk_a_place_that_is_none_and_a_file_that_changes(listed, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "store", full)
        with pytest.raises(UserError, match=r"No space left on device; free some of its disk, or set MMJAX_CACHE"):
            Manifest(str(listed)).build()
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]

    def changing(asked, sink):
        found = storing.store(asked, sink)
        listed.write_text(listed.read_text() + "\n")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "store", changing)
        with pytest.raises(UserError, match="changed while it was read"):
            Manifest(str(listed)).build()
    monkeypatch.setenv("MMJAX_CACHE", str(listed))
    with pytest.raises(UserError, match=r"Not a directory; make it writable, or set MMJAX_CACHE"):
        Manifest(str(listed)).build()


def test_processes_that_build_at_once_have_one_result(listed, tmp_path, cache):
    (tmp_path / "records").write_bytes(pickle.dumps(Manifest(str(listed), "all").build()))
    program = f"""
import pickle
from mmjax.data import Manifest
from mmjax.data.sources import manifest
manifest.SMALL = 0
sent = pickle.loads(open({str(tmp_path / "records")!r}, "rb").read())
own = Manifest({str(listed)!r}, "train").build()
print(own.fingerprint(), sent.example(7)["text"], own.examples[-1]["text"])
"""
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0] for process in running}
    own = Manifest(str(listed), "train").build()
    assert said == {f"{own.fingerprint()} picture 7 {own.examples[-1]['text']}\n"}
    assert len([path for path in (cache / "manifest-1").iterdir() if path.is_dir()]) == 1


def test_keys_that_a_first_hash_takes_for_one_are_told_apart():
    rng = np.random.default_rng(0)
    halves_2K = rng.integers(0, 40, (2, 500)).astype(np.uint64)
    pairs = list(zip(*halves_2K.tolist(), strict=True))
    assert groups.firsts(halves_2K).tolist() == [pairs.index(pair) for pair in pairs]
    groups_before = groups.BUCKET
    try:
        groups.BUCKET = 32
        assert groups.firsts(halves_2K).tolist() == [pairs.index(pair) for pair in pairs]
    finally:
        groups.BUCKET = groups_before


def test_lists_of_texts_as_json():
    import pyarrow as pa

    values = [["a", 'b"'], [], None, ["é"], ["plain", "too"]]
    wanted = [None if value is None else json.dumps(value) for value in values]
    assert json_text.listed(pa.array(values)).to_pylist() == wanted
    assert json_text.listed(pa.array(values).slice(1)).to_pylist() == wanted[1:]


def test_a_number_that_no_float_holds_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "n": null}\n{"text": "b", "n": 1' + "0" * 400 + "}\n")
    with pytest.raises(UserError, match=r"Manifest.fields.n: a number of the file is too large"):
        Manifest(str(path), "all", fields={"n": "n"}).build()
