import dataclasses
import json

import numpy as np
import pytest
from sounds import encoded, tone

from mmjax.core.errors import UserError
from mmjax.data import Audio, Data, Folder, Manifest, Recording, WebDataset
from mmjax.data.prepare import prepare
from mmjax.data.sources.array_record import ArrayRecord

pytest.importorskip("soundfile", reason="sounds are read by it: pip install 'mmjax[audio]'")
SPEC = Audio(rate=8_000, seconds=0.1)
N = 800


@dataclasses.dataclass(frozen=True)
class Sounds:
    """Records whose sound is what is given here."""

    values: tuple = ()
    classes = ()

    def build(self):
        return self

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return {"audio": self.values[index], "label": index}

    def texts(self):
        return iter(())

    def fingerprint(self):
        return "x"


def samples(*seconds):
    """Rising numbers, so that where a part begins can be read off it."""
    return tuple(Recording(np.arange(round(8_000 * one)) / 65536, f"sound {n}", 8_000) for n, one in enumerate(seconds))


def build(source, spec=SPEC, transforms=(), **options):
    options = {"batch_size": 4, "threads": 0, "shuffle": False, **options}
    return Data(source, transforms, {"audio": spec}, **options).build(None, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sounds")
    for kind, hertz in (("dog", 300), ("cat", 600)):
        (root / kind).mkdir()
        for n in range(4):
            (root / kind / f"{n}.flac").write_bytes(encoded(tone(0.05 * (n + 1), 16_000, hertz), 16_000, "FLAC"))
    return root


def test_rows_are_filled_up_and_cut_and_that_is_counted():
    dataset = build(Sounds((*samples(0.05, 0.1, 0.3), Recording(np.zeros(800), "", 8_000))))
    (batch,) = dataset.epoch()
    assert {key: (x.shape, x.dtype.name) for key, x in batch.items() if "audio" in key} == {
        "audio": ((4, N), "float32"),
        "audio_mask": ((4, N), "bool"),
    }
    assert batch["audio_mask"].sum(1).tolist() == [400, 800, 800, 800]
    assert not batch["audio"][0, 400:].any() and batch["audio_mask"][0, :400].all()
    np.testing.assert_array_equal(batch["audio"][2] * 65536, np.arange(N))
    assert (dataset.lost.cut_sounds, dataset.lost.silent, dataset.lost.clipped) == (1, 1, 0)
    assert dataset.lost.cut_seconds == pytest.approx(0.2)
    assert dataset.spec()["audio"] == ((4, N), np.float32)


def test_training_begins_anywhere_and_a_pass_at_the_start():
    dataset = build(Sounds(samples(*[2.0] * 4)), cache_mb=1)
    starts = [np.rint(dataset.batch(step)["audio"][:, 0] * 65536).tolist() for step in range(3)]
    assert len({one for row in starts for one in row}) == 12 and max(map(max, starts)) <= 16_000 - N
    assert starts[1] == np.rint(dataset.batch(1)["audio"][:, 0] * 65536).tolist()
    (batch,) = dataset.epoch()
    assert not batch["audio"][:, 0].any()
    first = build(Sounds(samples(*[2.0] * 4)), dataclasses.replace(SPEC, start="first"), cache_mb=1)
    assert not first.batch(0)["audio"][:, 0].any() and len(first._reader._kept) == 4, "what is always the same is kept"


def test_batches_are_the_same_in_workers_and_rows(folder):
    source, spec = Folder(str(folder), split="all"), Audio(rate=8_000, seconds=0.03)
    whole = build(source, spec, shuffle=True).batch(5)
    with build(source, spec, shuffle=True, workers=1).batches(5) as batches:
        worked = next(batches)
    part = build(source, spec, shuffle=True).batch(5, rows=[1, 3])
    for key, value in whole.items():
        np.testing.assert_array_equal(worked[key], value)
        np.testing.assert_array_equal(part[key], value[[1, 3]])


def test_a_folder_of_sounds_has_classes(folder):
    dataset = build(Folder(str(folder), split="all"), batch_size=8)
    (batch,) = dataset.epoch()
    assert dataset.classes == ("cat", "dog") and batch["label"].tolist() == [0] * 4 + [1] * 4
    assert batch["audio_mask"].sum(1).tolist() == [400, 800, 800, 800] * 2
    crossings = (np.diff(np.sign(batch["audio"][:, 10:390])) != 0).sum(1)
    assert (crossings > 43).tolist() == [True] * 4 + [False] * 4, "600 Hz and 300 Hz for 0.0475 s"


def test_a_folder_takes_images_or_sounds(folder, write_image, tmp_path):
    with pytest.raises(UserError, match=r"Folder\.extensions=.* not both"):
        Folder(str(folder), extensions=(".wav", ".png")).build()
    assert len(Folder(str(folder), extensions=(".flac",), split="all").build()) == 8
    with pytest.raises(UserError, match=r"no images in class folders \(extensions \.png\)"):
        Folder(str(folder), extensions=(".png",)).build()
    write_image(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "1.wav").write_bytes(b"")
    assert "image" in Folder(str(tmp_path), split="all").build()[0], "as ever"


def test_a_manifest_of_sounds_and_texts(folder):
    lines = [{"audio": f"{kind}/{n}.flac", "label": kind} for n in (1, 3) for kind in ("dog", "cat")]
    for name, own in (("a.jsonl", lines), ("b.jsonl", [{"clip": one["audio"], "label": one["label"]} for one in lines])):
        (folder / name).write_text("".join(json.dumps(one) + "\n" for one in own))
    (folder / "c.csv").write_text("audio,label\n" + "".join(f"{one['audio']},{one['label']}\n" for one in lines))
    sources = [Manifest(str(folder / "a.jsonl"), split="all"), Manifest(str(folder / "c.csv"), split="all")]
    sources.append(Manifest(str(folder / "b.jsonl"), split="all", audio_field="clip"))
    batches = [next(iter(build(source).epoch())) for source in sources]
    for batch in batches:
        assert batch["label"].tolist() == [1, 0, 1, 0] and batch["audio_mask"].all() and batch["audio"].any(1).all()
        np.testing.assert_array_equal(batch["audio"], batches[0]["audio"])
    (folder / "d.jsonl").write_text("".join(json.dumps({"audio": f"dog/{n}.flac", "text": "a"}) + "\n" for n in (1, 1)))
    records = Manifest(str(folder / "d.jsonl"), split="all", text_field="").build()
    assert records[0]["group"] == records[1]["group"], "lines of one sound are each other's positives"


def test_a_manifest_of_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:1: no 'audio'; it has x$"):
        Manifest(str(tmp_path / "a.jsonl"), image_field="", text_field="").build()


def test_parquet_as_huggingface_writes_it_and_what_prepare_makes_of_it(tmp_path, folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mmjax.data import Parquet

    content = [(folder / "dog" / f"{n}.flac").read_bytes() for n in range(4)]
    rows = [{"bytes": one, "path": "gone.flac"} for one in content[:3]] + [{"bytes": None, "path": "dog/3.flac"}]
    pq.write_table(pa.table({"audio": pa.array(rows), "label": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    data = Data(Parquet(str(tmp_path / "a.parquet"), root=str(folder)), columns={"audio": SPEC}, batch_size=4, threads=0)
    (batch,) = data.build(None, 0).epoch()
    assert batch["audio_mask"].sum(1).tolist() == [400, 800, 800, 800] and batch["label"].tolist() == [0, 1, 0, 1]
    prepare(data, "train", tmp_path / "out", shards=1)
    again = dataclasses.replace(data, source=ArrayRecord(str(tmp_path / "out"))).build(None, 0)
    np.testing.assert_array_equal(next(iter(again.epoch()))["audio"], batch["audio"])


def test_members_of_a_tar(tmp_path, folder, monkeypatch):
    import io
    import tarfile

    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(2):
            for name, content in ((f"{n}.flac", (folder / "cat" / f"{n}.flac").read_bytes()), (f"{n}.cls", b"%d" % n)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (batch,) = build(WebDataset(str(tmp_path / "a.tar")), batch_size=2).epoch()
    assert batch["audio_mask"].sum(1).tolist() == [400, 800] and batch["label"].tolist() == [0, 1]


def test_one_that_cannot_be_read_is_counted_and_another_takes_its_place():
    dataset = build(Sounds((*samples(0.1, 0.1, 0.1), Recording(b"no sound", "bad.wav"))), bad_record_limit=0.5)
    (batch,) = dataset.epoch()
    assert batch["valid"].tolist() == [True, True, True, False] and [*dataset.bad] == ["bad.wav"]
    assert [*build(Sounds((*samples(0.1), b"none", 7)), bad_record_limit=1.0).unreadable(9)] == [
        "record 1 audio",
        "record 2 audio",
    ]


def test_sounds_that_are_not_read_yet_count_in_the_cache():
    content = encoded(tone(1.0, 8_000), 8_000)
    few = build(Sounds((content,) * 100), dataclasses.replace(SPEC, start="first"), cache_mb=1)
    kept = build(Sounds((Recording(content, "a"),) * 100), cache_mb=1)
    assert len(few._reader._kept) == 1, "800 samples each fit"
    assert not kept._reader._kept, "1.6 MB of files do not"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (Audio(rate=0), "columns.audio: rate=0: use a number from 1"),
        (Audio(seconds=0.0), "columns.audio: seconds=0.0: use a number above 0"),
        (Audio(channel=-1), "columns.audio: channel=-1: use a number from 0"),
        (Audio(start="middle"), "columns.audio: start='middle': use one of random, first"),
        (Audio(seconds=1e-5), "columns.audio: seconds=1e-05: at rate=16000 that is no sample; use 6.25e-05 or more"),
    ],
)
def test_settings_that_are_none(spec, said):
    with pytest.raises(UserError) as error:
        build(Sounds(samples(0.1)), spec)
    assert said in str(error.value)


def test_a_sound_without_a_column_is_refused(folder):
    with pytest.raises(UserError, match=r"'audio' is a sound, and no column says its rate and length: add 'audio': Audio\("):
        Data(Folder(str(folder)), batch_size=2).build(None, 0)
    with pytest.raises(UserError, match=r"columns\.speech: no record has 'speech'"):
        Data(Folder(str(folder)), columns={"audio": SPEC, "speech": SPEC}, batch_size=2).build(None, 0)
