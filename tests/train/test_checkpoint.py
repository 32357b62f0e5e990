"""What is kept, what is passed over, and what is refused; on a state of a few numbers."""

import dataclasses
import errno
import json
import math
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny
from jax.experimental import multihost_utils

from mmjax.core.errors import UnreachableError, UserError
from mmjax.core.trees import leaves_by_path
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.rules import shardings
from mmjax.train import Checkpoint, checkpoint, formats, reading
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.state import State

PATH = ("encoders_image", "stack", "layers", "attention", "q", "kernel")


def state(step: int, mesh=None, ema=True) -> State:
    """A state whose numbers tell its step, on a mesh or on one device."""
    params = jnp.arange(16.0).reshape(1, 4, 2, 2) + step
    for name in reversed(PATH):
        params = {name: params}
    made = State(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        optimizer=optax.sgd(0.1, 0.9).init(params),
        weighting={"caption": jnp.asarray(0.5, jnp.float32)},
        ema=jax.tree.map(lambda x: x / 2, params) if ema else {},
        key=jnp.asarray([1, step], jnp.uint32),
        watch={"mean": jnp.asarray(0.25, jnp.float32), "good": jnp.asarray(step, jnp.int32)},
    )
    mesh = mesh or Mesh(1).build(jax.devices()[:1])
    return jax.device_put(made, shardings(made, mesh))


def abstract(made: State) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), made)


class Folder:
    """Checkpoints opened anew each time, as by another process, and what they said."""

    def __init__(self, path, **spec):
        self.path, self.spec, self.said = path, Checkpoint(**spec), []

    def open(self, **options):
        return Checkpoints(self.path, self.spec, self.said.append, **options)

    def save(self, *steps, metrics=None, made=state):
        checkpoints = self.open()
        for step in steps:
            checkpoints.save(step, made(step), (metrics or {}).get(step, {}), {"some": "config"})
        checkpoints.wait()
        checkpoints.close()

    def restore(self, target=None, **options):
        checkpoints = self.open(**options)
        found = checkpoints.restore(abstract(target or state(0)))
        checkpoints.close()
        return found


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "checkpoints")


def test_what_is_saved_comes_back_bit_for_bit(folder):
    folder.save(3, metrics={3: {"prompted/accuracy": 0.1 + 0.2}})
    restored, step, metrics = folder.restore()
    tiny.assert_identical(restored, state(3))
    assert step == 3 and metrics == {"prompted/accuracy": 0.1 + 0.2}
    assert folder.said == []


def test_an_empty_folder_has_nothing(folder):
    assert folder.restore() is None
    assert folder.open().best_step() is None


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_onto_another_mesh(folder, shape):
    folder.save(3, made=lambda step: state(step, Mesh(1, 4, 2).build()))
    target = state(0, Mesh(*shape).build())
    restored, _, _ = folder.restore(target)
    tiny.assert_identical(tiny.host(restored), tiny.host(state(3)))
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, target)


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 4)])
def test_the_latest_and_the_best_are_kept(tmp_path, mode, best):
    folder = Folder(tmp_path, keep=2, best="a/b", mode=mode)
    values = {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.1, 5: 0.4, 6: 0.5}
    folder.save(*values, 7, metrics={step: {"a/b": value} for step, value in values.items()})
    checkpoints = folder.open(read_only=True)
    assert checkpoints.steps() == [best, 6, 7]
    assert checkpoints.best_step() == best


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_outlives_what_is_no_number_and_a_new_process(tmp_path, odd, mode):
    folder = Folder(tmp_path, keep=1, best="a/b", mode=mode)
    sign = 1 if mode == "max" else -1
    for step, value in {1: odd, 2: 0.9 * sign, 3: odd, 4: 0.8 * sign, 5: odd}.items():
        folder.save(step, metrics={step: {"a/b": value}})
    checkpoints = folder.open(read_only=True)
    assert checkpoints.steps() == [2, 5] and checkpoints.best_step() == 2
    assert folder.restore()[2] == {"a/b": None}


def test_equal_values_are_won_by_the_latest(tmp_path):
    folder = Folder(tmp_path, keep=1, best="a/b")
    folder.save(1, 2, 3, metrics={1: {"a/b": 0.5}, 2: {"a/b": 0.5}, 3: {"a/b": 0.1}})
    checkpoints = folder.open(read_only=True)
    assert checkpoints.steps() == [2, 3] and checkpoints.best_step() == 2


def test_one_whose_metrics_cannot_be_read_is_not_deleted(tmp_path):
    folder = Folder(tmp_path, keep=1, best="a/b")
    folder.save(1, metrics={1: {"a/b": 0.5}})
    next((tmp_path / "1" / "about").rglob("metadata")).write_text("{")
    folder.save(2, 3, metrics={2: {"a/b": 0.1}, 3: {"a/b": 0.2}})
    assert folder.open(read_only=True).steps() == [1, 3]
    assert folder.open(read_only=True).best_step() == 3
    assert folder.said == ["checkpoint 1 does not say what was measured (it is damaged); it is not taken for the best"]


def test_without_a_metric_the_latest_is_the_best(tmp_path):
    folder = Folder(tmp_path, keep=3)
    folder.save(1, 2, 3, 4)
    checkpoints = folder.open(read_only=True)
    assert checkpoints.steps() == [2, 3, 4]
    assert checkpoints.best_step() == 4


def files_of(step_folder):
    return sorted(path for path in (step_folder / "state").rglob("*") if path.is_file())


def truncate(step_folder):
    for path in files_of(step_folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_the_state(step_folder):
    shutil.rmtree(step_folder / "state")


def lose_the_about(step_folder):
    shutil.rmtree(step_folder / "about")


def lose_the_names(step_folder):
    (step_folder / "state" / "_METADATA").unlink()


def garble_the_arrays(step_folder):
    for path in (step_folder / "state" / "d").iterdir():
        path.write_bytes(bytes(path.stat().st_size))


# Tensorstore goes on reading other arrays after orbax has given up, and complains of it.
NOISY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize(
    "harm", [truncate, lose_the_state, lose_the_about, lose_the_names, pytest.param(garble_the_arrays, marks=NOISY)]
)
def test_a_broken_checkpoint_is_set_aside_and_said_so(folder, harm):
    folder.save(2, 4)
    harm(folder.path / "4")
    left = sorted(path.relative_to(folder.path / "4") for path in (folder.path / "4").rglob("*"))
    restored, step, _ = folder.restore()
    tiny.assert_identical(restored, state(2))
    assert step == 2
    assert [line.split("(")[0].split(":")[0] for line in folder.said] == [
        "checkpoint 4 cannot be read ",
        "using checkpoint 2",
        "checkpoint 4 was set aside",
    ]
    assert "trying the one before it" in folder.said[0] and "\n" not in folder.said[0]
    aside = folder.path / "set_aside" / "4.0"
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == left
    folder.save(4)  # the broken one is out of the way
    assert folder.restore()[1] == 4
    harm(folder.path / "4")
    assert folder.restore()[1] == 2
    assert sorted(path.name for path in (folder.path / "set_aside").iterdir()) == ["4.0", "4.1"]


TROUBLES = [
    OSError(errno.ETIMEDOUT, "Connection timed out"),
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied"),
    TimeoutError("the read operation timed out"),
    ValueError("UNAVAILABLE: Error reading local file"),
    RuntimeError("503 Service Unavailable"),
    MemoryError("cannot allocate"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
]


def failing(monkeypatch, trouble, times):
    """Orbax's reads fail that many times."""
    read, failed = ocp.CheckpointManager.restore, []

    def restore(self, step=None, *args, **kwargs):
        if len(failed) < times:
            failed.append(step)
            raise trouble
        return read(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    return failed


def contents(path):
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("times", [1, 2, 99])
def test_a_read_that_fails_for_a_while_is_tried_again_and_nothing_is_changed(folder, monkeypatch, trouble, times):
    folder.save(2, 4)
    before = contents(folder.path)
    with monkeypatch.context() as patch:
        failed = failing(patch, trouble, times)
        if times > len(reading.WAITS):
            with pytest.raises(UnreachableError, match=r"^checkpoint 4 of .*: it cannot be read just now .*start again later$"):
                folder.restore()
            with pytest.raises(UnreachableError, match=r"checkpoint 4 of .* cannot be reached just now"):
                folder.open(read_only=True).params(4)
        else:
            assert folder.restore()[1] == 4
        assert len(failed) >= min(times, 1 + len(reading.WAITS))
    assert contents(folder.path) == before and folder.said == []
    assert folder.restore()[1] == 4


def test_a_best_that_cannot_be_reached_is_no_reason_to_take_another(tmp_path, monkeypatch):
    folder = Folder(tmp_path, keep=2, best="a/b")
    folder.save(1, 2, metrics={1: {"a/b": 0.9}, 2: {"a/b": 0.1}})
    checkpoints = folder.open(read_only=True)
    failing(monkeypatch, TROUBLES[0], 1)
    assert checkpoints.best_step() == 1
    failing(monkeypatch, TROUBLES[0], 99)
    with pytest.raises(UnreachableError):
        checkpoints.best_step()
    with pytest.raises(UnreachableError):
        folder.open()  # what to keep depends on it


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(folder, monkeypatch):
    folder.save(2)
    monkeypatch.setattr(ocp.CheckpointManager, "all_steps", lambda *_: [])
    with pytest.raises(UnreachableError, match="its checkpoints cannot be listed just now"):
        folder.open()


def test_a_broken_one_asked_for_by_its_step_is_one_line(folder):
    folder.save(2, 4)
    truncate(folder.path / "4")
    with pytest.raises(UserError, match=r"^checkpoint 4 of .* is broken \(.*\); other checkpoints: 2; going on with the run"):
        folder.open(read_only=True).params(4)


@pytest.mark.parametrize("times", [1, 2, 99])
def test_a_write_that_fails_for_a_while_is_tried_again(folder, monkeypatch, times):
    folder.save(2)
    write, failed = ocp.CheckpointManager.save, []

    def save(self, step, *args, **kwargs):
        if len(failed) < times:
            failed.append(step)
            raise OSError(errno.EIO, "Input/output error")
        return write(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    checkpoints = folder.open()
    if times == 99:
        said = r"could not take a checkpoint \(Input/output error\); still good: 2; the same command goes on from there"
        with pytest.raises(UnreachableError, match=said):
            checkpoints.save(4, state(4), {}, {})
    else:
        checkpoints.save(4, state(4), {}, {}, wait=True)
        assert folder.restore()[1] == 4
        assert folder.said == ["a checkpoint could not be written (Input/output error); trying again to save step 4"] * times


def test_a_write_that_fails_in_the_background_is_told_at_the_next_one(folder, monkeypatch):
    checkpoints, finish = folder.open(), ocp.AsyncCheckpointer.wait_until_finished
    failed = []

    def once(self):
        if not failed and threading.current_thread() is not threading.main_thread():
            failed.append(1)
            raise OSError(errno.EIO, "Input/output error")
        return finish(self)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", once)
    checkpoints.save(2, state(2), {}, {})
    checkpoints.save(4, state(4), {}, {}, wait=True)
    assert folder.said == ["a checkpoint could not be written (Input/output error); trying again to save step 4"]
    assert folder.restore()[1] == 4


def test_one_that_was_being_written_is_never_taken(folder):
    folder.save(2, 4)
    shutil.copytree(folder.path / "4", folder.path / "6.orbax-checkpoint-tmp-7")
    assert folder.restore()[1] == 4
    assert folder.said == ["checkpoint 6 was cut short while it was written; it is not used"]


def test_when_none_can_be_read_nothing_is_thrown_away(folder):
    folder.save(2, 4)
    truncate(folder.path / "2")
    truncate(folder.path / "4")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(tried 4, 2\)"):
        folder.restore()
    assert folder.open(read_only=True).steps() == [2, 4]


def test_saving_does_not_ask_the_preemption_service(folder, monkeypatch):
    """It would be asked about an older step than the one that the loop has come to."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    monkeypatch.setattr(ocp.CheckpointManager, "reached_preemption", lambda self, step: asked.append(step))
    folder.save(2, 4)
    assert asked == []


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_and_loses_nothing(folder, monkeypatch):
    folder.save(2)
    checkpoints = folder.open()
    monkeypatch.setattr(ocp.CheckpointManager, "save", full_disk)
    with pytest.raises(UserError, match=r"the disk is full: .*checkpoints could not take a checkpoint; still good: 2$"):
        checkpoints.save(4, state(4), {}, {})
    monkeypatch.undo()
    tiny.assert_identical(folder.restore()[0], state(2))


def test_a_disk_that_fills_up_in_the_background(folder, monkeypatch):
    checkpoints = folder.open()
    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", full_disk)
    with pytest.raises(UserError, match=r"the disk is full: .* still good: none"):
        checkpoints.wait()


def test_an_error_of_ours_keeps_its_name_and_is_not_tried_again(folder, monkeypatch):
    tried = []

    def refuse(*args, **kwargs):
        tried.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)
    with pytest.raises(ZeroDivisionError):
        folder.open().save(4, state(4), {}, {})
    assert tried == [1]


def test_a_newer_format_is_refused(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    folder.save(2)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"checkpoint 2 has format 3, newer than this mmjax reads \(2\): upgrade mmjax"):
        folder.restore()


def test_parameters_alone_are_the_moving_average_where_there_is_one(tmp_path):
    with_ema, without = Folder(tmp_path / "a"), Folder(tmp_path / "b")
    with_ema.save(3)
    without.save(3, made=lambda step: state(step, ema=False))
    for folder, expected in ((with_ema, state(3).ema), (without, state(3).params)):
        params, about = folder.open(read_only=True).params(3)
        tiny.assert_identical(params, tiny.host(expected))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
        assert about["step"] == 3 and about["config"] == {"some": "config"}


def test_renamed_parameters_of_an_older_format(folder, monkeypatch):
    folder.save(3)
    monkeypatch.setattr(formats, "RENAMED", ((2, "attention", "self_attention"), (1, "kernel", "weight")))
    params, _ = folder.open(read_only=True).params(3)
    layers = params["encoders_image"]["stack"]["layers"]
    np.testing.assert_array_equal(
        layers["self_attention"]["q"]["kernel"],
        tiny.host(state(3).ema)["encoders_image"]["stack"]["layers"]["attention"]["q"]["kernel"],
    )
    assert "attention" not in layers


def test_a_run_of_an_older_format_goes_on(folder, monkeypatch):
    folder.save(3)
    table = ((2, "attention", "self_attention"), (2, "q", "query"), (1, "kernel", "weight"))
    monkeypatch.setattr(formats, "RENAMED", table)
    today = State(**formats.rename({f.name: getattr(state(3), f.name) for f in dataclasses.fields(State)}, 2))
    assert list(leaves_by_path(today.params)) == ["encoders_image/stack/layers/self_attention/query/kernel"]
    restored, step, _ = folder.open().restore(abstract(today))
    assert step == 3
    assert jax.tree.structure(restored) == jax.tree.structure(today)
    tiny.assert_identical(restored, today)


def test_reading_changes_nothing_on_disk(folder):
    folder.save(2, 4)
    truncate(folder.path / "4")
    before = sorted(map(str, folder.path.rglob("*")))
    assert folder.restore(read_only=True)[1] == 2
    assert sorted(map(str, folder.path.rglob("*"))) == before


def test_what_a_checkpoint_says_of_itself(folder):
    folder.save(2, metrics={2: {"a/b": 0.5}})
    text = next((folder.path / "2" / "about").rglob("*metadata*")).read_text()
    assert json.loads(text) == {"format": 2, "step": 2, "metrics": {"a/b": 0.5}, "config": {"some": "config"}}
