"""Modalities that examples may lack, from a file to a batch."""

import csv
import dataclasses
import functools
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from sounds import encoded, tone

from mmjax.core.errors import UserError
from mmjax.data import (
    Array,
    Audio,
    Data,
    Flip,
    Manifest,
    Mix,
    ModalityDropout,
    Normalise,
    RandomCrop,
    Resize,
    Strings,
    WordPiece,
)
from mmjax.data.inspect import look
from mmjax.data.lacking import LACKS, Lacks, lacks
from mmjax.data.prepare import prepare
from mmjax.data.sources import ArrayRecord, Parquet, Streamed, WebDataset
from mmjax.data.strings import strings

ROWS = 12
HAS = {
    "image": [n % 2 == 1 for n in range(ROWS)],
    "audio": [n % 3 != 0 for n in range(ROWS)],
    "text": [n % 4 != 0 or n == 0 for n in range(ROWS)],
}
KEYS = tuple(HAS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("lacking")
    for n in range(ROWS):
        Image.fromarray(np.full((8 + n % 3, 9, 3), 20 * n + 9, np.uint8)).save(home / f"{n}.png")
        (home / f"{n}.wav").write_bytes(encoded(tone(0.1, 16_000, 200.0 + 30 * n), 16_000))
    rows = []
    for n in range(ROWS):
        row = {
            "label": f"c{n % 2}",
            "text": ["two", "words"] if n == 5 else f"word {n}",
            "image": f"{n}.png",
            "audio": f"{n}.wav",
        }
        rows.append({key: value for key, value in row.items() if key == "label" or HAS[key][n]})
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with open(home / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "audio", "text", "label"])
        writer.writeheader()
        writer.writerows([{key: x[0] if isinstance(x, list) else x for key, x in row.items()} for row in rows])
    return home


def data(source, transforms=(), optional=KEYS, **changes):
    columns = {"audio": Audio(seconds=0.1)}
    given = (Resize((4, 4)), *transforms, Normalise())
    return Data(source, given, columns, batch_size=ROWS, max_length=12, optional=optional, shuffle=False, **changes)


def built(spec):
    return spec.build(WordPiece(100).train(spec.texts()), seed=0)


def read(home, kind):
    """A source of these rows in another format."""
    if kind in ("rows.jsonl", "rows.csv"):
        return Manifest(str(home / kind), split="all")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    table = {key: [row.get(key) for row in rows] for key in ("image", "audio", "label")}
    table["text"] = [None if "text" not in row else str(row["text"]) for row in rows]
    pq.write_table(pa.table(table), home / "rows.parquet")
    return Parquet(str(home / "rows.parquet"), root=str(home), names=("c0", "c1"))


@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_a_batch_says_which_rows_have_what(folder, kind):
    dataset = built(data(read(folder, kind)))
    for batch in (dataset.batch(0), next(iter(dataset.epoch()))):
        for key in KEYS:
            np.testing.assert_array_equal(batch[f"{key}_valid"], HAS[key])
            np.testing.assert_array_equal(batch[key].reshape(ROWS, -1).any(axis=1), HAS[key])
        for key in ("audio", "text"):
            np.testing.assert_array_equal(batch[f"{key}_mask"].any(axis=1), HAS[key])
    assert dataset.spec()["image_valid"] == ((ROWS,), np.dtype(bool)) and not dataset.bad
    assert dataset.lost.silent == dataset.lost.truncated == 0


def test_rows_that_have_all_are_those_of_a_file_that_lacks_nothing(folder):
    some = built(data(Manifest(str(folder / "rows.jsonl"), split="all"), (RandomCrop((3, 3)), Flip()))).batch(0)
    lines = (folder / "rows.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in lines]
    filled = [{"image": f"{n}.png", "audio": f"{n}.wav", "text": "other", **row} for n, row in enumerate(whole)]
    (folder / "filled.jsonl").write_text("\n".join(map(json.dumps, filled)))
    spec = data(Manifest(str(folder / "filled.jsonl"), split="all"), (RandomCrop((3, 3)), Flip()), optional=())
    all_of_it = spec.build(WordPiece(100).train([*spec.texts(), "word"]), seed=0).batch(0)
    assert "image_valid" not in all_of_it
    for key in ("image", "audio"):
        rows = np.array(HAS[key])
        np.testing.assert_array_equal(some[key][rows], all_of_it[key][rows])


def test_texts_to_compare_with_are_the_rows_own(folder):
    spec = data(read(folder, "rows.jsonl"))
    spec = dataclasses.replace(spec, columns={**spec.columns, "references": Strings(of="text")})
    texts = strings(built(spec).batch(0)["references"])
    assert [bool(own) for own in texts] == HAS["text"] and texts[5] == ("two", "words") and texts[1] == ("word 1",)


def test_groups_of_rows_without_a_text_are_their_own(folder):
    spec = data(read(folder, "rows.parquet"))
    group = built(spec).batch(0)["group"]
    assert len(np.unique(group, axis=0)) == ROWS


def test_what_a_record_may_not_lack_is_refused(folder):
    with pytest.raises(UserError, match="audio is there, and the first line has none"):
        Manifest(str(folder / "rows.jsonl"), split="all").build()
    with pytest.raises(UserError, match="none of the records that were looked at has 'video'"):
        built(data(Manifest(str(folder / "rows.jsonl"), split="all"), optional=(*KEYS, "video")))
    with pytest.raises(UserError, match=r"optional=\('image', 'image'\): give a tuple of keys, each once"):
        built(data(Manifest(str(folder / "rows.jsonl"), split="all", optional=KEYS), optional=("image", "image")))
    dataset = built(data(read(folder, "rows.parquet"), optional=("audio", "text"), bad_record_limit=1.0))
    assert not dataset.batch(0).keys() & {"image_valid"} and len(dataset.bad) >= 5  # another record stands in, which is counted


def test_what_is_left_out_is_drawn_for_each_row(folder):
    rates = {"image": 0.5, "audio": 0.5, "text": 0.9}
    drop = ModalityDropout(rates)
    own = Manifest(str(folder / "rows.jsonl"), split="all")
    dataset = built(data(own, (drop,)))
    one, again, other = dataset.batch(0), dataset.batch(0), dataset.batch(1)
    has = {key: np.stack([batch[f"{key}_valid"] for batch in (one, other)]) for key in KEYS}
    for key in KEYS:
        np.testing.assert_array_equal(one[f"{key}_valid"], again[f"{key}_valid"])
        assert not np.any(has[key] & ~np.array(HAS[key])) and has[key].sum() < 2 * sum(HAS[key])
    assert np.all(has["image"] | has["audio"] | has["text"])  # one is kept of each row
    assert any(not np.array_equal(*has[key]) for key in KEYS)
    parts = [dataset._stream(ROWS, rows, once=False)[1].batch for rows in (range(5), range(5, ROWS))]
    np.testing.assert_array_equal(np.concatenate([part["image_valid"] for part in parts]), other["image_valid"])


def test_rates_are_met():
    record = {"image": 1, "text": "a", "audio": 2, LACKS: Lacks(KEYS, frozenset())}
    rng = np.random.default_rng(0)
    gone = [lacks(ModalityDropout({"image": 0.3, "text": 0.1}, keep=1)(record, rng, None)) for _ in range(4000)]
    assert (
        abs(np.mean(["image" in own for own in gone]) - 0.3) < 0.03
        and abs(np.mean(["text" in own for own in gone]) - 0.1) < 0.02
    )
    gone = [lacks(ModalityDropout(dict.fromkeys(KEYS, 1.0), keep=2)(record, rng, None)) for _ in range(60)]
    assert {len(own) for own in gone} == {1} and {key for own in gone for key in own} == {*KEYS}


def test_dropping_what_is_not_optional_is_refused(folder):
    with pytest.raises(UserError, match=r"rates.text: name it in data.optional, which has \('image', 'audio'\)"):
        filled = folder / "texts.jsonl"
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        filled.write_text("\n".join(json.dumps({**row, "text": "a"}) for row in rows))
        built(data(Manifest(str(filled), split="all"), (ModalityDropout({"text": 0.5}),), optional=("image", "audio")))
    with pytest.raises(UserError, match="give the rate of a key"):
        ModalityDropout()
    with pytest.raises(UserError, match=r"rates\.image=1\.5"):
        ModalityDropout({"image": 1.5})


def test_sources_of_different_modalities_are_mixed(folder):
    for key in ("image", "audio"):
        rows = [{key: f"{n}.{'png' if key == 'image' else 'wav'}", "text": f"word {n}"} for n in range(4)]
        (folder / f"{key}s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mixed = Mix({key: Manifest(str(folder / f"{key}s.jsonl"), split="all") for key in ("image", "audio")})
    with pytest.raises(UserError, match="has 'image' and audio has not"):
        mixed.build()
    batch = next(iter(built(data(mixed, optional=("image", "audio"))).epoch()))
    np.testing.assert_array_equal(batch["image_valid"], [True] * 4 + [False] * 8)
    np.testing.assert_array_equal(batch["audio_valid"][:8], [False] * 4 + [True] * 4)


def test_prepared_records_lack_the_same(folder, tmp_path):
    spec = data(Manifest(str(folder / "rows.jsonl"), split="all"))
    prepare(spec, "train", tmp_path / "out")
    one, other = built(spec).batch(0), built(data(ArrayRecord(str(tmp_path / "out")))).batch(0)
    for key in KEYS:
        np.testing.assert_array_equal(one[f"{key}_valid"], other[f"{key}_valid"])


@pytest.mark.parametrize("kind", [WebDataset, functools.partial(Streamed, records=5)], ids=["indexed", "streamed"])
def test_a_field_that_few_have_is_read_where_it_may_be_lacking(folder, tmp_path, kind, caplog):
    file = str(tmp_path / "few.tar")
    with tarfile.open(file, "w") as tar:
        for n in range(5):
            members = {"txt": f"word {n}".encode(), **({"png": (folder / "1.png").read_bytes()} if n == 3 else {})}
            for end, content in members.items():
                about = tarfile.TarInfo(f"{n}.{end}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    spec = Data(kind(file), (Resize((4, 4)), Normalise()), batch_size=5, max_length=6, optional=("image",), shuffle=False)
    with caplog.at_level("WARNING"):
        batch = spec.build(WordPiece(60).train(["word 0 1 2 3 4"]), seed=0).batch(0)
    np.testing.assert_array_equal(batch["image_valid"], [n == 3 for n in range(5)])
    assert "the others lack it" in caplog.text


def test_a_sound_that_cannot_be_read_stands_in_for_none(folder, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF and no more")
    sounds = [str(tmp_path / "broken.wav"), *[str(folder / f"{n}.wav") for n in range(9)]]
    lines = [one for sound in sounds for one in ({"audio": sound, "text": "a"}, {"text": "b"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    spec = data(Manifest(str(tmp_path / "rows.jsonl"), split="all"), optional=("audio",), bad_record_limit=0.1)
    dataset = built(dataclasses.replace(spec, transforms=()))
    rows = [dataset.batch(step) for step in (0, 1)]
    assert len(dataset.bad) == 1 and sum(int((~one["audio_valid"]).sum()) for one in rows) > 9


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("label", [1, None], "'label' is no modality"),
        ("weight", [0.5, None], "'weight' is no modality"),
        ("image_boxes", [[[0, 0, 1, 1]], None], "'image_boxes' is laid over image"),
    ],
)
def test_what_is_no_modality_is_not_lacking(folder, tmp_path, key, values, said):
    lines = [{"image": str(folder / "1.png"), key: value} for value in values]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    fields = {} if key == "label" else {"fields": {key: key}}
    columns = {key: Array("float32", rows=1)} if key == "image_boxes" else {}
    source = Manifest(str(tmp_path / "rows.jsonl"), split="all", **fields)
    spec = Data(source, (Normalise(),), columns, batch_size=2, optional=(key,))
    with pytest.raises(UserError, match=said) as error:
        spec.build(None, 0)
    assert "\n" not in str(error.value)


def test_rows_of_one_text_are_positives_where_it_was_left_out(folder):
    lines = [{"image": f"{n}.png", "audio": f"{n}.wav", "text": "dog" if n % 2 else "cat", "label": n} for n in range(ROWS)]
    (folder / "dogs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = Parquet(str(_as_table(folder, lines)), root=str(folder))
    batch = built(data(source, (ModalityDropout({"text": 0.5}),))).batch(0)
    assert 0 < batch["text_valid"].sum() < ROWS and len(np.unique(batch["group"], axis=0)) == 2


def _as_table(home, lines):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(lines), home / "dogs.parquet")
    return home / "dogs.parquet"


def test_a_look_counts_what_is_there(folder):
    found = look(built(data(Manifest(str(folder / "rows.jsonl"), split="all"))))
    assert len(found.heard["audio"]) == sum(HAS["audio"]) and len(found.lengths["text"].tokens) == sum(HAS["text"])
