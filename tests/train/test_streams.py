"""A run on data that can only be read onward goes on where it was, and is the run that was never stopped."""

import gzip
import json
from types import SimpleNamespace

import pytest
import tiny

from mmjax.data import BPE, Data, Streamed
from mmjax.data.sources.streamed import StreamedRecords
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.objectives import CausalLM
from mmjax.train import SGD, Checkpoint, Experiment, Log, Task, train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.run import Run
from mmjax.train.streams import go_on, keep_positions

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture
def opened(monkeypatch):
    """The positions that files were read from, by every run."""
    found, read = [], StreamedRecords.read
    monkeypatch.setattr(StreamedRecords, "read", lambda self, position: found.append(position) or read(self, position))
    tiny.single_device(monkeypatch)
    return found


@pytest.fixture
def made(tmp_path):
    """The experiment, of so many steps on three files."""
    for shard in range(3):
        lines = (json.dumps({"text": f"the {['red', 'blue', 'green'][n % 3]} one of {shard}"}) for n in range(20))
        (tmp_path / f"{shard}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))

    def experiment(steps, **changes):
        source = Streamed(f"{tmp_path}/*.jsonl.gz", **{"records": 60, "shuffle_window": 5, **changes})
        lm = CausalLM("lm", context=())
        size = {"vocab_size": 300, "max_length": 12, "width": 8, "depth": 1, "heads": 2}
        return Experiment(
            model=Multimodal(encoders={}, decoders={"lm": TextDecoder(**size, context=())}),
            tokenizer=BPE(300),
            data={"train": Data(source, batch_size=4, max_length=12, prefetch=1, threads=1)},
            tasks={"lm": Task(lm)},
            evaluate={},
            steps=steps,
            optimizer=SGD(learning_rate=0.1, schedule="constant"),
            checkpoint=Checkpoint(every=3),
            log=Log(every=1, tensorboard=False, progress=False),
        )

    return experiment


def params(workdir, step):
    return tiny.host(Checkpoints(workdir / "checkpoints", Checkpoint(), read_only=True).params(step)[0])


def test_it_goes_on_at_a_position_and_without_one_all_is_read_again(made, tmp_path, opened):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(made(22), whole)  # into the second turn through the files
    train(made(9), parts)
    kept = json.loads((parts / "streams.json").read_text())["train"]
    assert [0 < one[0] < 60 for one in kept["positions"]] and kept["positions"][0][1] == [0, 5]
    opened.clear()
    train(made(15), parts)  # step 9 begins in the second file
    at = [position for position in opened if position is not None]
    assert at and all(position[0] == 1 for position in at), opened
    (parts / "streams.json").unlink()
    train(made(22), parts)
    tiny.assert_identical(params(parts, 22), params(whole, 22))


def test_positions_of_other_data_are_not_taken(made, tmp_path, opened, monkeypatch):
    train(made(9), tmp_path / "run")
    (tmp_path / "0.jsonl.gz").write_bytes(gzip.compress(b'{"text": "other words"}\n' * 20))
    taken = []
    monkeypatch.setattr(StreamedRecords, "go_on", lambda self, positions: taken.extend(positions))
    train(made(10), tmp_path / "run")
    assert not taken


@pytest.mark.parametrize(
    "kept", ['{"train": {"fin', '{"train": 3}', '{"train": {"fingerprint": "a", "positions": [[1, 2], "x"]}}', "[]"]
)
def test_a_file_that_is_damaged_says_nothing(tmp_path, kept):
    (tmp_path / "streams.json").write_text(kept)
    taken = []
    dataset = SimpleNamespace(onward=SimpleNamespace(go_on=taken.extend), fingerprint="a")
    go_on(SimpleNamespace(datasets={"train": dataset}), Run(tmp_path))
    assert not taken


def test_one_position_is_kept_of_each_save_before(tmp_path):
    """The checkpoint that can be read may be an older one."""
    records = SimpleNamespace(positions=lambda: now)
    setup = SimpleNamespace(
        datasets={"train": SimpleNamespace(onward=records, fingerprint="a")},
        experiment=SimpleNamespace(task_data=lambda: ("train",)),
    )
    run, taken = Run(tmp_path), []
    records.go_on = taken.extend
    for save in range(40):
        now = [[10 * save + n, "place", n] for n in range(12)]
        keep_positions(setup, run)
    go_on(setup, run)
    assert [one[0] for one in taken] == [*range(70, 390, 10), *range(390, 402)]
