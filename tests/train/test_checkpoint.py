"""What is kept, what is passed over, and what is refused; on a state of a few numbers."""

import dataclasses
import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.rules import shardings
from mmjax.train import Checkpoint, checkpoint
from mmjax.train.checkpoint import Checkpoints, load_matching
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


@pytest.mark.parametrize("harm", [truncate, lose_the_state, lose_the_about])
def test_a_broken_checkpoint_is_passed_over_and_said_so(folder, harm):
    folder.save(2, 4)
    harm(folder.path / "4")
    restored, step, _ = folder.restore()
    tiny.assert_identical(restored, state(2))
    assert step == 2
    assert [line.split("(")[0] for line in folder.said] == ["checkpoint 4 cannot be read ", "using checkpoint 2"]
    assert "trying the one before it" in folder.said[0] and "\n" not in folder.said[0]
    folder.save(4)  # the broken one is out of the way
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


def test_another_error_of_the_disk_keeps_its_own_name(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)
    with pytest.raises(PermissionError):
        folder.open().save(4, state(4), {}, {})


def test_a_newer_format_is_refused(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    folder.save(2)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"checkpoint 2 has format 2, newer than this mmjax reads \(1\): upgrade mmjax"):
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
    monkeypatch.setattr(checkpoint, "RENAMED", ((1, "attention", "self_attention"), (0, "kernel", "weight")))
    params, _ = folder.open(read_only=True).params(3)
    layers = params["encoders_image"]["stack"]["layers"]
    np.testing.assert_array_equal(
        layers["self_attention"]["q"]["kernel"],
        tiny.host(state(3).ema)["encoders_image"]["stack"]["layers"]["attention"]["q"]["kernel"],
    )
    assert "attention" not in layers


def test_a_run_of_an_older_format_goes_on(folder, monkeypatch):
    folder.save(3)
    table = ((1, "attention", "self_attention"), (1, "q", "query"), (0, "kernel", "weight"))
    monkeypatch.setattr(checkpoint, "RENAMED", table)
    today = State(**checkpoint.rename({f.name: getattr(state(3), f.name) for f in dataclasses.fields(State)}, 1))
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
    assert json.loads(text) == {"format": 1, "step": 2, "metrics": {"a/b": 0.5}, "config": {"some": "config"}}


TARGET = {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "head": {"kernel": np.zeros((3, 4))}}
SOURCE = {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "old": {"kernel": np.ones((3, 5))}}


def test_matching_sorts_arrays_into_loaded_new_and_left_over():
    loaded, new, left = load_matching(TARGET, SOURCE, ())
    assert loaded.keys() == {"a/kernel", "a/bias"} and loaded["a/kernel"] is SOURCE["a"]["kernel"]
    assert (new, left) == (["head/kernel"], ["old/kernel"])


def test_fresh_parameters_are_not_loaded():
    loaded, new, left = load_matching(TARGET, SOURCE, ("*/bias",))
    assert loaded.keys() == {"a/kernel"}
    assert (new, left) == (["a/bias", "head/kernel"], ["a/bias", "old/kernel"])


def test_another_shape_is_refused_unless_it_is_fresh():
    source = SOURCE | {"head": {"kernel": np.ones((3, 5))}}
    said = r"init_from: head/kernel has shape \(3, 5\) there and \(3, 4\) here; .* --init_fresh 'head/kernel'"
    with pytest.raises(UserError, match=said):
        load_matching(TARGET, source, ())
    assert load_matching(TARGET, source, ("head/*",))[1] == ["head/kernel"]
    with pytest.raises(UserError, match="no parameter in common"):
        load_matching(TARGET, {"x": np.ones(3)}, ())
