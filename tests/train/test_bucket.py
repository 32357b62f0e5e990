"""A run folder in a bucket, with a bucket in memory under the same address."""

import gc
import json

import pytest
import tiny
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from mmjax.convert import load, load_model
from mmjax.core.errors import UnreachableError, UserError
from mmjax.train import reading
from mmjax.train.bucket import Bucket, in_bucket
from mmjax.train.run import Run


class Memory(MemoryFileSystem):
    """Stands for Google's storage, whose names have no leading slash and whose folders need no making."""

    protocol = "gs"
    store = {}  # noqa: RUF012 (shared by design, as in the class it comes from)
    pseudo_dirs = [""]  # noqa: RUF012


@pytest.fixture
def gs(monkeypatch):
    monkeypatch.setattr(Memory, "store", {})
    monkeypatch.setattr(Memory, "pseudo_dirs", [""])
    monkeypatch.setattr(epath.backend.fsspec_backend, "_get_filesystem", lambda name: Memory(skip_instance_cache=True))
    return "gs://bucket/run"


def names(address):
    """What the next process finds."""
    bucket = Bucket(address)
    return sorted(path.name for path in bucket.copy.rglob("*"))


def test_what_is_an_address():
    assert in_bucket("gs://b/x") and in_bucket("s3://b/x")
    assert not in_bucket("runs/digits") and not in_bucket("/mnt/gs/x")


def test_what_is_sent_is_there_for_the_next(gs):
    first = Bucket(gs)
    (first.copy / "metrics.jsonl").write_text("one\n")
    (first.copy / "tokenizer").mkdir()
    (first.copy / "tokenizer" / "words.json").write_text("{}")
    first.send()
    (epath.Path(gs) / "checkpoints" / "10").mkdir(parents=True)
    (epath.Path(gs) / "checkpoints" / "10" / "large").write_text("x")
    with (first.copy / "metrics.jsonl").open("a") as file:
        file.write("two\n")
    first.send()
    second = Bucket(gs)
    assert second.copy != first.copy and second.copy.name == "run"
    assert (second.copy / "metrics.jsonl").read_text() == "one\ntwo\n"
    assert (second.copy / "tokenizer" / "words.json").read_text() == "{}"
    assert not (second.copy / "checkpoints").exists()


def test_only_what_has_changed_is_sent(gs, monkeypatch):
    bucket = Bucket(gs)
    for name in ("a", "b"):
        (bucket.copy / name).write_text(name)
    bucket.send()
    again = Bucket(gs)
    sent = []
    place = type(again.home)
    original = place.write_bytes
    monkeypatch.setattr(place, "write_bytes", lambda path, data: (sent.append(path.name), original(path, data))[1])
    (again.copy / "b").write_text("changed")
    again.send()
    assert sent == ["b"]


def test_an_address_that_cannot_be_opened_is_one_line(monkeypatch):
    def refuse(*_):
        raise ImportError("no gcsfs")

    monkeypatch.setattr(epath.backend.fsspec_backend, "_get_filesystem", refuse)
    with pytest.raises(UserError, match=r"gs://bucket/run: opening it needs gcsfs"):
        Bucket("gs://bucket/run")

    def broken(*_):
        raise OSError("no\ncredentials")

    monkeypatch.setattr(epath.backend.fsspec_backend, "_get_filesystem", broken)
    with pytest.raises(UserError, match=r"gs://bucket/run cannot be opened: no credentials"):
        Bucket("gs://bucket/run")


def test_a_run_in_a_bucket_keeps_its_small_files_there(gs):
    run = Run(gs)
    run.open(tiny.experiment())
    run.metrics.write_text('{"step": 1}\n')
    run.send()
    assert json.loads((epath.Path(gs) / "config.json").read_text())
    assert str(run.checkpoints) == f"{gs}/checkpoints"
    again = Run(gs)
    assert again.experiment() == tiny.experiment()
    assert again.metrics.read_text() == '{"step": 1}\n'
    with pytest.raises(UserError, match="gs://bucket/other is not a run"):
        Run("gs://bucket/other").experiment()


def test_the_copy_goes_with_what_made_it_and_a_failed_write_is_one_line(gs, monkeypatch):
    bucket = Bucket(gs)
    (bucket.copy / "a").write_text("a")

    def refuse(*_):
        raise OSError("no\nspace")

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket.home), "write_bytes", refuse)
        with pytest.raises(UserError, match="gs://bucket/run cannot be written: no space"):
            bucket.send()
    place = bucket.copy.parent
    del bucket
    gc.collect()
    assert not place.exists()


def test_from_python_a_run_in_a_bucket_is_a_run(gs):
    made = tiny.experiment()
    Run(gs).open(made)
    assert load_model(gs) == made.model
    with pytest.raises(UserError, match="gs://bucket/run: the run has no checkpoint yet"):
        load(gs)


def test_what_is_gone_here_goes_there_and_checkpoints_stay(gs):
    first = Bucket(gs)
    for name in ("tokenizer/a", "tokenizer/b", "c"):
        (first.copy / name).parent.mkdir(exist_ok=True)
        (first.copy / name).write_text(name)
    first.send()
    (epath.Path(gs) / "checkpoints" / "10").mkdir(parents=True)
    (epath.Path(gs) / "checkpoints" / "10" / "large").write_text("x")
    second = Bucket(gs)
    (first.copy / "tokenizer" / "b").unlink()
    (first.copy / "c").unlink()
    first.send()
    assert names(gs) == ["a", "tokenizer"]
    assert (epath.Path(gs) / "checkpoints" / "10" / "large").read_text() == "x"
    second.fetch()
    assert sorted(p.name for p in second.copy.rglob("*")) == ["a", "tokenizer"]
    second.send()  # and does not bring back what the other took away
    assert names(gs) == ["a", "tokenizer"]


def test_the_identity_is_the_same_for_the_next_process(gs):
    first = Run(gs)
    first.open(tiny.experiment())
    name = first.identity()
    assert Run(gs).identity() == name
    other = Run("gs://bucket/copy")
    (other.path / "identity").write_text((first.path / "identity").read_text())
    other.send()
    assert Run("gs://bucket/copy").identity() != name


def test_the_one_who_came_first_ends_and_writes_no_more(gs):
    first, second = Run(gs), Run(gs)
    with first.writing():
        first.metrics.write_text("first\n")
        first.send()
        with second.writing():
            second.metrics.write_text("second\n")
            second.send()
            first.metrics.write_text("first again\n")
            with pytest.raises(
                UserError, match=r"gs://bucket/run: another process is training there now \(.*host.*\), so this"
            ):
                first.send()
    assert Run(gs).metrics.read_text() == "second\n"
    with first.writing():  # started again, after the other has ended
        first.send()


@pytest.mark.parametrize("times", [1, 2, 99])
@pytest.mark.parametrize("name", ["write_bytes", "read_bytes", "iterdir"])
def test_a_bucket_that_does_not_answer_for_a_while(gs, monkeypatch, times, name):
    bucket = Bucket(gs)
    (bucket.copy / "a").write_text("a")
    bucket.send()
    place, failed = type(bucket.home), []
    original = getattr(place, name)

    def fail(*args):
        if len(failed) < times:
            failed.append(1)
            raise ConnectionError("503 Service Unavailable")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        (bucket.copy / "b").write_text("b")
        act = bucket.send if name == "write_bytes" else lambda: Bucket(gs)
        if times > len(reading.WAITS):
            with pytest.raises(UnreachableError, match=r"gs://bucket/run cannot be (written|opened): 503 Service Unavailable"):
                act()
        else:
            act()
    bucket.send()
    assert names(gs) == ["a", "b"]
