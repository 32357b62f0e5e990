"""Data in a bucket: the batches are those of a disk, the cache folder keeps its bound, and what fails is counted or named."""

import contextlib
import dataclasses
import errno
import fcntl
import io
import json
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from served import Served

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data import ArrayRecord, Arrow, BadRecordError, Coco, Data, Manifest, Mix, Normalise, Parquet, WebDataset, WordPiece
from mmjax.data.files import fetched, remote
from mmjax.data.files.open_files import OpenFiles
from mmjax.data.files.shards import opened
from mmjax.data.order import Draws
from mmjax.data.prepare import prepare
from mmjax.data.sources.array_record import write_array_record

COUNT = 18
TOKENIZER = WordPiece(80).train(f"picture {number}" for number in range(COUNT))


def picture(number):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The same pictures in three shards of each format, as lists and one by one."""
    root = tmp_path_factory.mktemp("bucket")
    patch = pytest.MonkeyPatch()
    patch.setenv("MMJAX_CACHE", str(root / "at_once"))
    pictures, texts = list(map(picture, range(COUNT))), [f"picture {number}" for number in range(COUNT)]
    (root / "images").mkdir()
    for number, data in enumerate(pictures):
        (root / "images" / f"{number:02}.png").write_bytes(data)
    lines = [{"image": f"images/{number:02}.png", "text": text} for number, text in enumerate(texts)]
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "list.csv").write_text("image;text\r\n" + "".join(f"{line['image']};{line['text']}\r\n" for line in lines))
    images = [{"id": n, "file_name": f"{n:02}.png", "height": 6, "width": 5} for n in range(COUNT)]
    captions = [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(texts)]
    (root / "coco.json").write_text(json.dumps({"images": images, "annotations": captions}))
    table = pa.table({"image": pictures, "text": texts})
    for shard in range(3):
        places = range(6 * shard, 6 * shard + 6)
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number in places:
                for name, data in ((f"{number:02}.png", pictures[number]), (f"{number:02}.txt", texts[number].encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        pq.write_table(table.slice(6 * shard, 6), root / f"{shard}.parquet", row_group_size=4)
        with pa.OSFile(str(root / f"{shard}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(6 * shard, 6), max_chunksize=4)
        write_array_record(root / f"{shard}.array_record", ({"image": pictures[n], "text": texts[n]} for n in places))
    prepare(Data(WebDataset(str(root / "*.tar"))), "train", root / "prepared", 2)
    saved = root / "saved"
    saved.mkdir()
    for shard in range(3):
        (saved / f"{shard}.arrow").write_bytes((root / f"{shard}.arrow").read_bytes())
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"{shard}.arrow"} for shard in range(3)]}))
    yield root
    patch.undo()


@pytest.fixture(autouse=True)
def clean(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Served, "root", bucket, raising=False)
    monkeypatch.setattr(Served, "calls", [])
    monkeypatch.setattr(remote, "WAITS", (0, 0))
    monkeypatch.setattr(fetched, "_failed", {})


def sources(at):
    """Name -> a source at a root."""
    return {
        "tar": WebDataset(f"{at}/*.tar"),
        "tar braces": WebDataset(f"{at}/{{0..2}}.tar", split="train"),
        "parquet": Parquet(f"{at}/?.parquet"),
        "parquet split": Parquet(f"{at}/?.parquet", split="train"),
        "parquet pieces": Parquet(f"{at}/0.parquet", cache_mb=1),
        "arrow": Arrow(f"{at}/?.arrow"),
        "arrow folder": Arrow(f"{at}/saved"),
        "array_record": ArrayRecord(f"{at}/*.array_record", split="train"),
        "prepared": ArrayRecord(f"{at}/prepared"),
        "manifest": Manifest(f"{at}/list.jsonl", "all"),
        "csv": Manifest(f"{at}/list.csv", "all"),
        "coco": Coco(f"{at}/coco.json", f"{at}/images"),
    }


def data_of(source, **fields):
    return Data(
        source,
        (Normalise(),),
        batch_size=fields.pop("batch_size", 5),
        max_length=8,
        order=fields.pop("order", "records"),
        **fields,
    )


def batches(data, count=4):
    with data.build(TOKENIZER, 3, "train").batches() as made:
        return [next(made) for _ in range(count)]


def same(a, b):
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("name", sources("x"))
def test_batches_are_those_of_a_disk(bucket, name, monkeypatch):
    here, there = sources(str(bucket))[name], sources("served:/")[name]
    order = "blocks" if hasattr(here.build(), "blocks") else "records"
    same(batches(data_of(here, order=order)), batches(data_of(there, order=order)))
    ours, theirs = here.build(), there.build()
    assert ours.fingerprint() == theirs.fingerprint() and theirs.encoded(1) == ours.encoded(1)
    if hasattr(ours, "described"):
        assert ours.described(3) == theirs.described(3)


def test_each_file_is_fetched_once_and_the_index_is_kept(bucket):
    source = WebDataset("served://*.tar")
    list(source.build().texts())
    assert sorted(path for method, path in Served.calls if method == "cat").count("0.tar") >= 2, "ranges, then the file"
    Served.calls.clear()
    list(source.build().texts())
    assert [call for call in Served.calls if call[0] == "cat"] == []


def test_a_prepared_folder_is_opened_by_what_it_says(bucket):
    records = ArrayRecord("served://prepared").build()
    fetched_then = {path for method, path in Served.calls if method == "cat"}
    assert len(records) == COUNT and "prepared/prepared.json" in fetched_then
    assert not any("00001-of" in path for path in fetched_then), "no shard is fetched to count its records"


def test_batches_from_memory_and_in_worker_processes(bucket):
    storage = fsspec.filesystem("memory")
    for shard in range(3):
        storage.pipe(f"/tars/{shard}.tar", (bucket / f"{shard}.tar").read_bytes())
    expected = batches(data_of(WebDataset(str(bucket / "*.tar")), order="blocks"))
    same(batches(data_of(WebDataset("memory://tars/*.tar"), order="blocks")), expected)
    workers = data_of(WebDataset(f"file://{bucket}/*.tar"), order="blocks", workers=2)  # each has a file system of its own
    same(batches(workers), expected)


def files(root):
    """Address and stamp of five files of 1000 bytes."""
    for number in range(5):
        (root / f"{number}.bin").write_bytes(bytes([number]) * 1000)
    addresses = [f"served://{number}.bin" for number in range(5)]
    return list(zip(addresses, remote.stamps(addresses), strict=True))


def read(file):
    return fetched.used(*file, lambda path: Path(path).read_bytes())


@pytest.fixture
def five(tmp_path, monkeypatch):
    """Five files, of which the cache folder holds three."""
    (tmp_path / "five").mkdir()
    monkeypatch.setattr(Served, "root", tmp_path / "five")
    monkeypatch.setenv("MMJAX_CACHE_GB", "3e-6")
    return files(tmp_path / "five")


def held():
    """The sizes of what lies in the folder, which others may change meanwhile."""
    found = []
    for path in fetched.folder().iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [path.stat().st_size] if path.name != ".lock" else []
    return sorted(found)


def cats():
    return [path[0] for method, path in Served.calls if method == "cat"]


def test_what_was_not_used_for_longest_goes_first(five):
    for number in (0, 1, 2, 0, 3, 0, 1):
        assert read(five[number]) == bytes([number]) * 1000 and sum(held()) <= 3000
    assert "".join(cats()) == "01231", "0 was used again before 3 came, so 1 went"


def test_many_threads_keep_the_bound_and_fetch_nothing_twice_at_once(five, monkeypatch):
    most = []
    # A listing is not of one moment: a file that gets its name meanwhile may be in it twice.
    monkeypatch.setattr(Served, "trouble", staticmethod(lambda *_: most.append(min(sum(held()) for _ in range(5)))))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: read(five[number % 5]), range(100)))
    assert found == [bytes([number % 5]) * 1000 for number in range(100)]
    assert max(most) <= 3000 and len(cats()) < 100
    monkeypatch.setenv("MMJAX_CACHE_GB", "1")
    Served.calls.clear()
    for path in fetched.folder().iterdir():
        path.unlink()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: read(five[number % 5]), range(100)))
    assert sorted(cats()) == list("01234")


OTHER = """
import sys
from pathlib import Path
from mmjax.data.files import remote
from mmjax.data.files import fetched
root, count = sys.argv[1], int(sys.argv[2])
addresses = [f"file://{root}/{number}.bin" for number in range(5)]
files = list(zip(addresses, remote.stamps(addresses), strict=True))
print("ready", flush=True)
sys.stdin.readline()
for turn in range(count):
    number = turn * 3 % 5
    assert fetched.used(*files[number], lambda path: Path(path).read_bytes()) == bytes([number]) * 1000
"""


def test_two_processes_share_the_folder(five, tmp_path):
    root = tmp_path / "five"
    command = [sys.executable, "-W", "ignore", "-c", OTHER, str(root), "60"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        addresses = [f"file://{root}/{number}.bin" for number in range(5)]
        mine = list(zip(addresses, remote.stamps(addresses), strict=True))
        for turn in range(60):
            assert read(mine[turn * 2 % 5]) == bytes([turn * 2 % 5]) * 1000 and sum(held()) <= 3000
    assert other.returncode == 0 and not list(fetched.folder().glob("*.part"))


def test_what_a_killed_process_left_is_swept_and_what_another_fetches_is_not(five, monkeypatch):
    fetched.folder().mkdir(parents=True)
    dead, alive = fetched.folder() / "dead.part", fetched.folder() / "alive.part"
    dead.write_bytes(bytes(3000))
    alive.write_bytes(bytes(2000))
    with alive.open() as held_open:
        fcntl.flock(held_open, fcntl.LOCK_EX)
        read(five[0])
        assert not dead.exists() and alive.exists() and held() == [1000, 2000]
        seen = []
        monkeypatch.setattr(Served, "trouble", staticmethod(lambda *_: seen.append(held())))
        read(five[1])
        assert held() == [1000, 2000] and seen[0] == [1000, 2000], "what is being fetched counts, from its first byte on"


def test_what_is_open_is_read_though_it_went(five, bucket, monkeypatch):
    with fetched.used(*five[0], lambda path: open(path, "rb", buffering=0)) as file:
        for one in five[1:4]:
            read(one)
        assert not fetched.is_kept(*five[0]) and os.pread(file.fileno(), 1000, 0) == bytes(1000)
    monkeypatch.setattr(Served, "root", bucket)
    size = max((bucket / f"{shard}.tar").stat().st_size for shard in range(3))
    monkeypatch.setenv("MMJAX_CACHE_GB", str(1.5 * size / 1e9))  # one shard
    records = WebDataset("served://*.tar").build()
    expected = WebDataset(str(bucket / "*.tar")).build()
    for index in (0, 7, 13, 1, 2, 8):
        same([records[index]], [expected[index]])
        assert len(records.shards.files._files) == 1, "files that went are not held open"
    for name in ("arrow", "array_record", "parquet"):
        size = max((bucket / f"{shard}.{name}").stat().st_size for shard in range(3))
        monkeypatch.setenv("MMJAX_CACHE_GB", str(1.5 * size / 1e9))
        here = sources(str(bucket))[name].build()
        there = sources("served:/")[name].build()
        for index in (0, len(here) - 1, 1, len(here) // 2):
            same([there[index]], [here[index]])
            assert sum(held()) <= 1.5 * size


def trouble(monkeypatch, error, path, times=10**9, method="cat"):
    left = [times]

    def answer(asked, at):
        if asked == method and path in at and left[0]:
            left[0] -= 1
            raise error

    monkeypatch.setattr(Served, "trouble", staticmethod(answer))


def test_a_fetch_that_breaks_off_is_tried_again(bucket, monkeypatch):
    source = WebDataset("served://*.tar")
    records = source.build()
    trouble(monkeypatch, OSError("reset"), "1.tar", times=2)
    Served.calls.clear()
    same([records[7]], [WebDataset(str(bucket / "*.tar")).build()[7]])
    assert cats() == ["1", "1", "1"]


@pytest.mark.parametrize("name", ["tar", "parquet", "array_record", "arrow"])
def test_records_of_a_shard_that_cannot_be_fetched_are_replaced(bucket, name, monkeypatch):
    source = dataclasses.replace(sources("served:/")[name], split="all")
    dataset = data_of(source, order="blocks", bad_record_limit=1.0).build(TOKENIZER, 3, "train")
    for path in fetched.folder().glob("*"):
        path.unlink()
    dataset._reader.records = source.build()  # with nothing open
    for path in fetched.folder().glob("*"):
        path.unlink()
    trouble(monkeypatch, OSError("reset\nby peer"), "1." + name)
    Served.calls.clear()
    index = int(np.flatnonzero(np.repeat(range(3), 6) == 1)[0])
    error = dataset._reader.unreadable_at(index)
    assert error is not None and "reset by peer (OSError)" in error.reason and f"served://1.{name}" in error.path
    record, bad, replaced = dataset._reader._record(index, 0, Draws(0, "train"))
    assert replaced and record["text"] != f"picture {index}" and all(f"1.{name}" in path for path in bad)
    if name == "tar":
        assert cats().count("1") == 3, "what has failed is not asked for again at once"


@pytest.mark.parametrize("name", ["tar", "parquet", "array_record", "arrow", "manifest"])
def test_storage_that_is_away_ends_the_run_rather_than_replace_its_records(bucket, name, monkeypatch):
    source = sources("served:/")[name]
    dataset = data_of(source, bad_record_limit=1.0, threads=0, batch_size=4, cache_mb=0).build(TOKENIZER, 3, "train")
    dataset._reader.records = source.build()  # with nothing open
    for path in fetched.folder().glob("*"):
        path.unlink()
    trouble(monkeypatch, OSError("reset\nby peer"), "")
    Served.calls.clear()
    with pytest.raises(
        UnreachableError, match=r"^data\.train: source: 3 files in a row cannot be fetched; the last: served:/.*peer"
    ):
        dataset.batch(0)
    assert len(cats()) == 9, "three files, three attempts each"
    if name in ("tar", "manifest"):
        with pytest.raises(UnreachableError, match="cannot be read: reset by peer"):  # what is prepared would say it for ever
            prepare(data_of(dataclasses.replace(source, split="train")), "train", fetched.folder().parent / "out", 1)


def test_an_index_that_cannot_be_made_is_one_line(monkeypatch):
    trouble(monkeypatch, OSError("reset\nby peer"), "1.")
    for name in ("tar", "parquet", "arrow", "array_record"):
        with pytest.raises(UnreachableError, match=rf"^served:/+1\.{name} cannot be read: reset by peer \(OSError\)$"):
            sources("served:/")[name].build()
    trouble(monkeypatch, OSError("reset\nby peer"), "list.jsonl")
    with pytest.raises(UnreachableError, match=r"list.jsonl cannot be read: reset by peer"):
        Manifest("served://list.jsonl").build()
    trouble(monkeypatch, OSError("reset\nby peer"), "coco.json")
    with pytest.raises(UnreachableError, match=r"coco.json cannot be read: reset by peer"):
        Coco("served://coco.json").build()


def test_an_image_that_cannot_be_had_is_a_bad_record(monkeypatch):
    records = Manifest("served://list.jsonl", "all").build()
    trouble(monkeypatch, FileNotFoundError("x"), "03.png")
    with pytest.raises(BadRecordError, match=r"served://images/03.png: no such file$"):
        records[3]
    trouble(monkeypatch, OSError("reset"), "03.png")
    with pytest.raises(BadRecordError, match=r"served://images/03.png cannot be read: reset"):
        records[3]
    assert records[4]["image"].shape == (6, 5, 3)


def test_an_object_that_changed_is_named(five, tmp_path):
    place = tmp_path / "five" / "0.bin"
    os.utime(place, ns=(1, 1))
    with pytest.raises(UserError, match=r"^served://0.bin has changed since the run looked at it \(its etag or time"):
        read(five[0])
    place.write_bytes(b"short")
    with pytest.raises(UserError, match=r"it has 5 bytes and had 1000\): start again"):
        read(five[0])
    place.unlink()
    with pytest.raises(BadRecordError, match=r"^served://0.bin: no such file$"):
        read(five[0])
    assert held() == []


def test_a_run_whose_shard_changed_ends_and_the_next_one_reads_it_anew(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(Served, "root", tmp_path)
    (tmp_path / "a.tar").write_bytes((bucket / "0.tar").read_bytes())
    records = WebDataset("served://a.tar").build()
    for path in fetched.folder().glob("*"):
        path.unlink()
    (tmp_path / "a.tar").write_bytes((bucket / "1.tar").read_bytes())
    records.shards.files._files.clear()
    with pytest.raises(UserError, match=r"^served://a\.tar has changed since the run looked at it"):
        records[0]
    assert WebDataset("served://a.tar").build()[0]["text"] == "picture 6"


def test_bounds_and_disks(five, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE_GB", "9e-7")
    with pytest.raises(UserError, match=r"^served://0.bin has 1e-06 GB, .* holds 9e-07: set MMJAX_CACHE_GB higher"):
        read(five[0])
    for wrong in ("0", "-1", "many", "nan", "inf"):
        monkeypatch.setenv("MMJAX_CACHE_GB", wrong)
        with pytest.raises(UserError, match=f"^MMJAX_CACHE_GB='{wrong}': give a number of gigabytes above 0$"):
            fetched.limit()
    monkeypatch.delenv("MMJAX_CACHE_GB")
    assert fetched.limit() == 50 * 10**9

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match=r"fetched: No space left on device; free some of its disk, or set MMJAX_CACHE_"):
            read(five[0])
    assert held() == [] and read(five[0]) == bytes(1000)


def test_a_machine_without_locks_is_said(five, monkeypatch):
    monkeypatch.setattr(fetched, "fcntl", None)
    with pytest.raises(UserError, match=r"^served:/+0\.bin: files at an address are fetched on Linux and macOS alone"):
        read(five[0])


def test_a_shard_above_the_bound_is_refused_before_anything_is_fetched(monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE_GB", "1e-6")
    for name in ("tar", "parquet", "arrow", "array_record"):
        with pytest.raises(UserError, match=rf"served:/+0.{name} has .* GB, and files are fetched whole"):
            sources("served:/")[name].build()
    assert not set(cats()) & set("012")


def test_headers_of_large_members_are_read_by_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(Served, "root", tmp_path)
    monkeypatch.setattr(fetched, "SKIPPED", 1 << 16)
    for size, name in ((1 << 17, "large"), (1 << 10, "small")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number in range(20 if name == "large" else 600):
                info = tarfile.TarInfo(f"{number:03}.txt")
                info.size = size
                tar.addfile(info, io.BytesIO(bytes(size)))
    assert fetched.Sparing("served://large.tar", remote.stamps(["served://large.tar"])[0])(512, 3) == bytes(3)
    assert len(opened(OpenFiles(["served://large.tar"]))) == 20 and not list(fetched.folder().glob("*"))
    Served.calls.clear()
    assert len(opened(OpenFiles(["served://small.tar"]))) == 600 and len(held()) == 1
    assert len(cats()) <= fetched.TRIED + 1


def test_nothing_listed_and_other_mistakes():
    for source, said in (
        (WebDataset("served://*.zip"), r"^WebDataset.path='served://\*.zip': no such file$"),
        (WebDataset("served://{0..3}.tar"), r"^served://3.tar: no such file$"),
        (WebDataset("served://{0,0}.tar"), "names served://0.tar more than once"),
        (WebDataset("served://images"), "served://images is a folder: name the files in it"),
        (ArrayRecord("served://*.nothing"), "ArrayRecord.path='served://.*': no such file"),
        (Parquet("served://images"), "Parquet.path='served://images': no file; give a .parquet file"),
        (Arrow("served://absent/"), "Arrow.path='served://absent': no file"),
        (Manifest("served://absent.jsonl"), "Manifest.path='served://absent.jsonl': no such file"),
        (Manifest("served://list.txt"), "write .csv, .tsv or .jsonl, not .txt"),
        (Coco("served://absent.json"), "served://absent.json: no such file"),
        (WebDataset("https://host/*.tar"), "nothing can be listed at such an address"),
    ):
        with pytest.raises(UserError, match=said):
            source.build()


def test_an_order_that_fetches_a_file_for_each_record_is_said_once(bucket, caplog):
    source = WebDataset("served://{0..1}.tar")
    for data in (data_of(source), data_of(Mix({"a": source, "b": Manifest("served://list.jsonl", "all")}))):
        data.build(TOKENIZER, 3)
    said = [one.getMessage() for one in caplog.records if "order=" in one.getMessage()]
    assert said == [f"{source.path}: each record may fetch a file of its own; order='blocks' reads one file after the other"]
    caplog.clear()
    data_of(WebDataset("served://{0..2}.tar"), order="blocks").build(TOKENIZER, 3)
    data_of(WebDataset(str(bucket / "*.tar"))).build(TOKENIZER, 3)
    assert "order=" not in caplog.text
