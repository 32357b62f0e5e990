"""HuggingFace's folders and Arrow files, record by record against what was written."""

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.data import Array, Arrow, BadRecordError, Data, Normalise, Subset, WordPiece


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))


def png(level, size=(6, 5)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "image": {"_type": "Image"},
    "text": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "label": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"},
}
FIELDS = {"vector": "vector", "image_boxes": "objects.bbox"}


def pets(rows):
    columns = {
        "image": pa.array([{"bytes": png(i), "path": None} for i in rows], IMAGE),
        "text": pa.array([[f"a pet {i}", f"pet é {i}"] for i in rows]),
        "label": pa.array([i % 3 for i in rows], pa.int64()),
        "vector": pa.array([[i, i + 1, i + 2] for i in rows], pa.list_(pa.int32(), 3)),
        "objects": pa.array(
            [{"bbox": [[i, 1, 2, 3]] * (i % 3)} for i in rows], pa.struct([("bbox", pa.list_(pa.list_(pa.float32(), 4)))])
        ),
    }
    return pa.table(columns)


def stream(path, table, rows=4):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def saved(folder, tables, indices=None):
    """A folder as `save_to_disk` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(tables):05}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        stream(folder / name, table)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    if indices is not None:
        stream(folder / "indices.arrow", pa.table({"indices": pa.array(indices, pa.uint64())}))
        state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES, "splits": {"train": {"num_examples": 99}}}))
    return folder


def check(record, i):
    assert (record["image"] == i).all() and record["image"].shape == (6, 5, 3)
    assert record["text"] == (f"a pet {i}", f"pet é {i}")
    assert record["label"] == i % 3 and record["name"] == ("cat", "dog", "emu")[i % 3]
    assert record["vector"].dtype == np.int32 and record["vector"].tolist() == [i, i + 1, i + 2]
    assert record["image_boxes"].dtype == np.float32 and record["image_boxes"].shape == (i % 3, 4)
    assert record["image_boxes"].tolist() == [[i, 1, 2, 3]] * (i % 3)


def test_every_record_is_what_was_written(tmp_path):
    folder = saved(tmp_path / "pets", [pets(range(10)), pets(range(10, 17))])
    records = Arrow(str(folder), fields=FIELDS).build()
    assert len(records) == 17 and records.classes == ("cat", "dog", "emu")
    assert records.held.rows.tolist() == [4, 4, 2, 4, 3]
    records = pickle.loads(pickle.dumps(records))
    for i in np.random.default_rng(0).permutation(17).tolist():
        check(records[i], i)
    check(records[-2], 15)
    with pytest.raises(IndexError):
        records[-18]
    assert list(records.texts()) == [text for i in range(17) for text in (f"a pet {i}", f"pet é {i}")]
    assert records.described(12) == ("data-00001-of-00002.arrow:2", 0, ("a pet 12", "pet é 12"))


def test_indices_say_which_rows_and_in_what_order(tmp_path):
    order = [9, 3, 3, 16, 0]
    folder = saved(tmp_path / "pets", [pets(range(10)), pets(range(10, 17))], order)
    records = Arrow(str(folder), fields=FIELDS).build()
    assert len(records) == 5
    for place, i in enumerate(order):
        check(records[place], i)
    identities = [records.described(place)[0] for place in range(5)]
    assert len(set(identities)) == 5, "also of a row that stands there twice"
    parts = [Arrow(str(folder), split=split, fractions=(0.4, 0.3, 0.3)) for split in ("train", "validation", "test")]
    found = []
    for spec in parts:
        try:
            found.append(spec.build().places.tolist())
        except UserError as error:
            assert "none of the 5 rows" in str(error)
    assert sorted(row for rows in found for row in rows) == sorted(order)
    assert not any(set(one) & set(other) for one in found for other in found if one is not other)
    for wrong in ([0, 17], [0, 2**63]):
        broken = saved(tmp_path / str(wrong[1]), [pets(range(10)), pets(range(10, 17))], wrong)
        with pytest.raises(UserError, match="indices beyond the 17 rows"):
            Arrow(str(broken)).build()


def test_the_splits_of_a_dataset_dict(tmp_path):
    saved(tmp_path / "all" / "train", [pets(range(8))])
    saved(tmp_path / "all" / "dev", [pets(range(8, 11))])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "dev"]}')
    train, dev = (Arrow(str(tmp_path / "all"), split=split, fields=FIELDS).build() for split in ("train", "dev"))
    assert len(train) == 8 and len(dev) == 3 and train.fingerprint() != dev.fingerprint()
    check(dev[1], 9)
    for split in ("all", "test"):
        with pytest.raises(UserError, match=rf"Arrow.split='{split}' is not a split.*one of 'train', 'dev'"):
            Arrow(str(tmp_path / "all"), split=split).build()
    hashed = Arrow(str(tmp_path / "all" / "train"), split="train", fractions=(0.5, 0.5, 0)).build()
    assert 0 < len(hashed) < 8
    (tmp_path / "all" / "dev" / "state.json").unlink()
    with pytest.raises(UserError, match=r"its split 'dev' has no state\.json"):
        Arrow(str(tmp_path / "all"), split="dev").build()


def test_single_files_in_both_formats(tmp_path):
    table = pets(range(9)).append_column("kind", pa.array([f"kind {i % 2}" for i in range(9)]).dictionary_encode())
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    records = Arrow(str(tmp_path / "file.arrow"), label_field="kind", fields=FIELDS).build()
    assert records.classes == ("kind 0", "kind 1")
    for i in (8, 0, 5, 4):
        check({**records[i], "label": i % 3, "name": ("cat", "dog", "emu")[i % 3]}, i)
        assert records[i]["name"] == f"kind {i % 2}"
    with pa.OSFile(str(tmp_path / "small.arrow"), "wb") as sink:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, table.drop(["kind"]).schema, options=options) as writer:
            writer.write_table(table.drop(["kind"]), max_chunksize=4)
    records = Arrow(str(tmp_path / "small.arrow"), fields=FIELDS, names=("cat", "dog", "emu")).build()
    for i in range(9):
        check(records[i], i)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    with pytest.raises(UserError, match=r"a stream with dictionaries; write it with pyarrow\.ipc\.new_file"):
        Arrow(str(tmp_path / "file.arrow")).build()


def test_batches_are_the_same_with_workers_and_after_pickling(tmp_path):
    folder = saved(tmp_path / "pets", [pets(range(10)), pets(range(10, 17))], [*range(16, 0, -1), 3])
    source = Arrow(str(folder), fields=FIELDS, split="train")
    tokenizer = WordPiece(100).train(source.build().texts())
    found = []
    for workers in (0, 2):
        data = Data(source, (Normalise(),), {"image_boxes": Array(rows=2)}, batch_size=8, workers=workers)
        dataset = data.build(tokenizer, seed=3)
        dataset = pickle.loads(pickle.dumps(dataset)) if workers else dataset
        with dataset.batches() as batches:
            found.append([next(batches) for _ in range(4)])
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys() and {"image", "text", "label", "image_boxes"} <= one.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_chosen_classes(tmp_path):
    records = Subset(Arrow(str(saved(tmp_path / "pets", [pets(range(9))]))), only=("emu",)).build()
    assert [records[i]["text"][0] for i in range(3)] == ["a pet 2", "a pet 5", "a pet 8"] and len(records) == 3


def test_mistakes(tmp_path):
    folder = saved(tmp_path / "pets", [pets(range(5)), pets(range(5, 9)).drop(["vector"])])

    def check(message, **spec):
        with pytest.raises(UserError, match=message) as raised:
            Arrow(str(spec.pop("path", folder)), **spec).build()
        assert "\n" not in str(raised.value)

    check(r"data-00001-of-00002\.arrow has no column 'vector', which .*00000-of-00002\.arrow has", fields=FIELDS)
    check("Arrow.text_field='caption' is no field of the data", text_field="caption")
    check("Arrow.split='tset' is not a split", split="tset")
    check("no file; give a .arrow file", path=tmp_path / "none")
    (folder / "data-00001-of-00002.arrow").unlink()
    check(r"data-00001-of-00002\.arrow: No such file")
    state = folder / "state.json"
    state.write_text("[]")
    check(r"state\.json: a list, and should be an object")
    state.write_text("{")
    check(r"state\.json: Expecting")
    state.write_text('{"_data_files": [{"filename": 3}]}')
    check(r"'_data_files' is no list of file names")
    state.write_text('{"_data_files": [{"filename": "a.arrow", "skip": 3}]}')
    check("only parts of its files are meant")
    state.write_text('{"_data_files": []}')
    check("has no files, and so no rows")
    stream(folder / "a.arrow", pets(range(0)))
    state.write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    check("have no rows")
    (folder / "dataset_dict.json").write_text('{"splits": "train"}')
    check("'splits' is 'train', and should be a list of names")


def test_a_stream_that_was_cut_between_two_batches_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    stream(path, pets(range(12)))
    whole = path.read_bytes()
    records = Arrow(str(path)).build()
    offset = int(records.held.layout[2, 1])
    for cut in (whole[:offset], whole[:-8], whole[:-4]):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=r"a\.arrow is cut or no Arrow file"):
            Arrow(str(path)).build()
    path.write_bytes(whole)
    assert len(Arrow(str(path)).build()) == 12


def test_a_file_that_goes_or_changes_while_it_is_mapped(tmp_path):
    path = tmp_path / "a.arrow"
    stream(path, pets(range(12)))
    records = Arrow(str(path)).build()
    assert records[0]["label"] == 0
    os.truncate(path, 100)
    with pytest.raises(BadRecordError, match=r"a\.arrow row 1: the file was changed"):
        records[1]
    path.unlink()
    with pytest.raises(BadRecordError, match=r"a\.arrow row 1: no such file"):
        records[1]


@pytest.fixture(scope="module", params=["stream", "file"])
def encoded(request):
    sink, table = io.BytesIO(), pets(range(12))
    with (pa.ipc.new_stream if request.param == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return sink.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_ends_in_an_error_by_name(data, encoded, tmp_path):
    broken, path = damaged(data, encoded), tmp_path / "damaged.arrow"
    path.write_bytes(broken)
    try:
        records = Arrow(str(path), fields=FIELDS).build()
    except UserError as error:
        assert "\n" not in str(error)
        return
    for index in range(min(len(records), 12)):
        try:
            records[index]
        except BadRecordError as error:
            assert f"damaged.arrow row {index}" in str(error)
    list(records.texts())


def test_what_datasets_itself_writes(tmp_path):
    datasets = pytest.importorskip("datasets", reason="HuggingFace's datasets is not installed")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Sequence(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["cat", "dog", "emu"]),
        }
    )
    rows = {"image": [png(i) for i in range(40)], "text": [[f"{i}"] for i in range(40)], "label": [i % 3 for i in range(40)]}
    chosen = datasets.Dataset.from_dict(rows, features).shuffle(seed=1).select(range(20)).filter(lambda row: row["label"] != 1)
    chosen.save_to_disk(str(tmp_path / "saved"))
    records = Arrow(str(Path(tmp_path / "saved"))).build()
    assert len(records) == len(chosen)
    for i in range(len(chosen)):
        assert records[i]["text"] == tuple(chosen[i]["text"]) and records[i]["label"] == chosen[i]["label"]
        np.testing.assert_array_equal(records[i]["image"], np.asarray(chosen[i]["image"]))
