import dataclasses
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from videos import SIZE, encoded, numbered, numbers

from mmjax.core.errors import UserError
from mmjax.data import (
    CenterCrop,
    Clip,
    ColourJitter,
    Data,
    Flip,
    Folder,
    GaussianBlur,
    Manifest,
    Normalise,
    Parquet,
    RandAugment,
    RandomCrop,
    RandomErasing,
    Resize,
    ResizeShortest,
    Rotate,
    Video,
    WebDataset,
)
from mmjax.data.prepare import prepare
from mmjax.data.sources.array_record import ArrayRecord

pytest.importorskip("av", reason="videos are read by it: pip install 'mmjax[video]'")
PLAIN = Normalise((0.0,) * 3, (1.0,) * 3, field="video")
SPEC = Video(frames=4)


@dataclasses.dataclass(frozen=True)
class Videos:
    """Records whose video is what is given here."""

    values: tuple = ()
    classes = ()

    def build(self):
        return self

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return {"video": self.values[index], "label": index}

    def texts(self):
        return iter(())

    def fingerprint(self):
        return "x"


def build(source, spec=SPEC, transforms=(PLAIN,), **options):
    options = {"batch_size": 4, "threads": 0, "shuffle": False, **options}
    return Data(source, transforms, {"video": spec}, **options).build(None, 3)


def read(batch):
    """The numbers of each row's frames."""
    return [numbers(np.rint(x * 255)) for x in batch["video"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for kind, first in (("run", 0), ("jump", 100)):
        (root / kind).mkdir()
        for n in range(3):
            (root / kind / f"{n}.mp4").write_bytes(encoded(numbered(200)[first : first + 3 + 20 * n], codec="libx264"))
    return root


def test_rows_are_filled_up_and_that_is_counted():
    dataset = build(Videos(tuple(numbered(n) for n in (3, 4, 8, 40))))
    (batch,) = dataset.epoch()
    assert {key: (x.shape, x.dtype.name) for key, x in batch.items() if "video" in key} == {
        "video": ((4, 4, *SIZE, 3), "float32"),
        "video_mask": ((4, 4), "bool"),
    }
    assert read(batch) == [[0, 1, 2, 2], [0, 1, 2, 3], [1, 3, 5, 7], [5, 15, 25, 35]]
    assert batch["video_mask"].sum(1).tolist() == [3, 4, 4, 4] and dataset.lost.short_videos == 1
    assert dataset.spec()["video"] == ((4, 4, *SIZE, 3), np.float32)


def test_training_draws_and_a_pass_does_not():
    source = encoded(numbered(200), keyframes=10)
    for spec, fixed in (
        (Video(frames=4, sample="parts"), [25, 75, 125, 175]),
        (Video(frames=4, sample="random", every=0.2), [90, 95, 100, 105]),
    ):
        dataset = build(Videos((source,) * 4), spec, cache_mb=1)
        drawn = [read(dataset.batch(step)) for step in range(2)]
        assert len({tuple(row) for rows in drawn for row in rows}) > 5 and drawn[1] == read(dataset.batch(1))
        (batch,) = dataset.epoch()
        assert read(batch) == [fixed] * 4
        for row in drawn[0]:
            if spec.every:
                assert np.diff(row).tolist() == [5, 5, 5]
            else:
                assert [n // 50 for n in row] == [0, 1, 2, 3], "one of each part"
                assert len({n % 50 for n in row}) > 1, "each where it likes"
        assert dataset.lost.cut_videos == (16 if spec.every else 0)
    first = build(Videos((source,) * 4), Video(frames=3, sample="first", every=0.4), cache_mb=1)
    assert read(first.batch(0)) == [[0, 10, 20]] * 4 and len(first._reader._kept) == 4, "what is always the same is kept"
    assert read(build(Videos((source,) * 4), Video(frames=2, sample="middle", every=0.4)).batch(0))[0] == [90, 100]


def test_batches_are_the_same_row_by_row(folder):
    source, spec = Folder(str(folder), split="all"), Video(frames=4, sample="parts")
    transforms = (RandomCrop((16, 16), field="video"), PLAIN)
    whole = build(source, spec, transforms, shuffle=True).batch(5)
    with build(source, spec, transforms, shuffle=True, threads=2).batches(5) as batches:
        read = next(batches)
    part = build(source, spec, transforms, shuffle=True).batch(5, rows=[1, 3])
    for key, value in whole.items():
        np.testing.assert_array_equal(read[key], value)
        np.testing.assert_array_equal(part[key], value[[1, 3]])


@pytest.mark.parametrize(
    "transform",
    [
        Resize((20, 24)),
        ResizeShortest(20),
        CenterCrop((16, 16)),
        RandomCrop((16, 20)),
        Flip(1.0),
        Rotate(30.0),
        GaussianBlur(1.0),
        RandAugment(),
        RandomErasing(1.0, fill=(1, 2, 3)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_transform_treats_every_frame_as_it_would_an_image(transform):
    """By one draw: each frame is what the image alone becomes from the same random numbers."""
    x = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    moved = dataclasses.replace(transform, field="video")({"video": x}, np.random.default_rng(7), ())["video"]
    alone = [transform({"image": one}, np.random.default_rng(7), ())["image"] for one in x]
    np.testing.assert_array_equal(moved, np.stack(alone))


def test_colours_of_a_video_are_changed_by_one_draw():
    x = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    jitter = ColourJitter(0.5, 0.0, 0.5)
    moved = dataclasses.replace(jitter, field="video")({"video": x}, np.random.default_rng(7), ())["video"]
    alone = [jitter({"image": one}, np.random.default_rng(7), ())["image"] for one in x]
    np.testing.assert_array_equal(moved, np.stack(alone))
    # The contrast of a clip is about the mean of the whole.
    low, high = np.full((1, 4, 4, 3), 50, np.uint8), np.full((1, 4, 4, 3), 150, np.uint8)
    both = np.concatenate([low, high])
    contrast = ColourJitter(contrast=0.5, field="video")({"video": both}, np.random.default_rng(1), ())["video"]
    assert np.ptp(contrast[0]) == 0 and contrast[0, 0, 0, 0] != 50 and contrast.mean() == pytest.approx(100, abs=1)
    found = Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), field="video")({"video": x}, None, ())["video"]
    np.testing.assert_allclose(found, (x / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4], atol=1e-6)


def test_a_mask_over_a_video_is_refused():
    record = {"video": numbered(3), "video_map": np.zeros((3, *SIZE), np.int32)}
    with pytest.raises(UserError, match="video_map: Flip moves no masks, maps, boxes or points with the video 'video'"):
        Flip(1.0, field="video")(record, np.random.default_rng(0), ())


def test_a_folder_of_videos_has_classes(folder, tmp_path, write_image):
    dataset = build(Folder(str(folder), split="all"), batch_size=6)
    (batch,) = dataset.epoch()
    assert dataset.classes == ("jump", "run") and batch["label"].tolist() == [0] * 3 + [1] * 3
    assert read(batch)[0] == [100, 101, 102, 102] and read(batch)[5] == [5, 16, 26, 37]
    with pytest.raises(UserError, match=r"Folder\.extensions=.* not both"):
        Folder(str(folder), extensions=(".mp4", ".png")).build()
    write_image(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "1.mp4").write_bytes(b"")
    assert "image" in Folder(str(tmp_path), split="all").build()[0], "as ever"


def test_manifests_tables_tars_and_prepared_folders_hold_videos(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    lines = [{"video": f"{kind}/{n}.mp4", "label": kind} for n in (1, 2) for kind in ("run", "jump")]
    (folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (folder / "b.csv").write_text("clip,label\n" + "".join(f"{one['video']},{one['label']}\n" for one in lines))
    manifest = Manifest(str(folder / "a.jsonl"), split="all")
    whole = next(iter(build(manifest).epoch()))
    assert whole["label"].tolist() == [1, 0, 1, 0] and read(whole)[1] == [102, 108, 114, 120]
    other = next(iter(build(Manifest(str(folder / "b.csv"), split="all", video_field="clip")).epoch()))
    np.testing.assert_array_equal(other["video"], whole["video"])
    assert manifest.build()[0]["group"] == manifest.build()[2]["group"] != manifest.build()[1]["group"]
    pq.write_table(pa.table({key: [one[key] for one in lines] for key in ("video",)}), tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n, one in enumerate(lines):
            tar.add(folder / one["video"], f"{n}.mp4")
    data = Data(manifest, (PLAIN,), {"video": SPEC}, batch_size=4, threads=0, shuffle=False)
    prepare(data, "train", tmp_path / "out", shards=1)
    for source in (
        Parquet(str(tmp_path / "a.parquet"), root=str(folder)),
        WebDataset(str(tmp_path / "a.tar")),
        ArrayRecord(str(tmp_path / "out")),
    ):
        np.testing.assert_array_equal(next(iter(build(source).epoch()))["video"], whole["video"])


def test_unreadable_videos_are_counted_and_replaced(folder):
    broken = Clip(b"nothing", "b.mp4")
    dataset = build(Videos((numbered(4), broken, numbered(8), numbered(9))), bad_record_limit=0.5)
    (batch,) = dataset.epoch()
    assert batch["valid"].tolist() == [True, False, True, True] and list(dataset.bad) == ["b.mp4"]
    assert "no video that can be read" in dataset.bad["b.mp4"]


def test_mistakes_are_named():
    clip = Videos((numbered(4),) * 4)
    for spec, said in (
        (Video(frames=0), r"columns\.video: frames=0"),
        (Video(sample="all"), r"columns\.video: sample='all': use one of uniform, parts"),
        (Video(every=0.1), r"every=0\.1: sample='uniform' spreads frames over the whole video"),
        (Video(sample="first"), "every=0: sample='first' needs the seconds"),
        (Video(every=-1.0), r"every=-1\.0"),
    ):
        with pytest.raises(UserError, match=said):
            build(clip, spec)
    with pytest.raises(UserError, match=r"the video is still uint8 at the end; add Normalise\(field='video'\)"):
        build(clip, transforms=())
    with pytest.raises(UserError, match="'video' is a video, and no column says its frames: add 'video': Video"):
        Data(Videos((Clip(b"", "x"),)), batch_size=1).build(None, 0)
    mixed = build(Videos((numbered(4), numbered(4, (40, 48)))), batch_size=2)
    with pytest.raises(UserError, match=r"columns\.video: video: frames of 40 x 48 and of 32 x 48 pixels .* add Resize"):
        next(iter(mixed.epoch()))
