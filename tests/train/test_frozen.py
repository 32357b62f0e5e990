"""What is frozen is written once, beside the checkpoints that need it, and read back bit for bit."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import mmjax
from mmjax.core.errors import UserError
from mmjax.core.trees import size_bytes
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.parallel.rules import shardings
from mmjax.train import SGD, Checkpoint, ScheduleFree, checkpoint, train
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.frozen import FOLDER, fingerprint
from mmjax.train.metrics import read_lines
from mmjax.train.setup import set_up

FREEZE = ("encoders_text/*", "encoders_image/*[:2]", "encoders_image/project_patches/*")
OPTIMIZER = SGD(learning_rate=0.05, schedule="constant", clip_norm=0.0, ema=0.9, freeze=FREEZE)
EIGHT = Mesh(data=4, fsdp=2)


def made(**changes):
    return tiny.experiment(
        model=tiny.small_model(depth=3), tasks=tiny.tasks("classify"), optimizer=OPTIMIZER, evaluate={}, **changes
    )


@functools.cache
def prepared(mesh=tiny.ONE):
    return with_optimizer(OPTIMIZER, mesh)


def with_optimizer(optimizer, mesh=tiny.ONE):
    built = mesh.build(jax.devices()[: 1 if mesh == tiny.ONE else 8])
    with use_mesh(built):
        return set_up(dataclasses.replace(made(), optimizer=optimizer), None, built)


@functools.cache
def first(mesh=tiny.ONE):
    return prepared(mesh).init()


def opened(folder, setup=None, said=print, **options):
    setup = setup or prepared()
    return Checkpoints(folder / "checkpoints", Checkpoint(keep=9), said, trained=setup.trained(), **options)


def moved(state, by):
    """A state that has been trained on."""
    trained = prepared().trained()
    own = jax.tree.map(lambda x: x + jnp.asarray(by, x.dtype), trained.of(state.params))
    return dataclasses.replace(state, params=trained.put(state.params, own), ema=jax.tree.map(lambda x: x / 2, own))


def saved(folder, *steps):
    states = {step: moved(first(), step) for step in steps}
    kept = opened(folder)
    for step, state in states.items():
        kept.save(step, state, {}, {"some": "config"}, wait=True)
    kept.close()
    return states


def bytes_in(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_it_comes_back_bit_for_bit_and_on_another_mesh(tmp_path):
    states = saved(tmp_path, 2, 4)
    for mesh in (tiny.ONE, EIGHT):
        setup = prepared(mesh)
        with use_mesh(setup.mesh):
            restored, step, _ = opened(tmp_path, setup, read_only=True).restore(setup.abstract)
        assert step == 4
        tiny.assert_identical(tiny.host(restored), tiny.host(states[4]))
        for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(setup.abstract), strict=True):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim) and leaf.dtype == like.dtype


@pytest.mark.parametrize("mesh", [None, EIGHT], ids=["host", "mesh"])
def test_parameters_alone_are_the_average_of_the_trained_and_the_frozen_ones(tmp_path, mesh):
    states = saved(tmp_path, 2)
    built = mesh and mesh.build(jax.devices())
    params, _ = Checkpoints(tmp_path / "checkpoints", Checkpoint(), read_only=True).params(2, built)
    tiny.assert_identical(tiny.host(params), tiny.host(prepared().evaluated(states[2])))
    if built:
        for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(shardings(params, built)), strict=True):
            assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


@pytest.mark.parametrize("mesh", [None, EIGHT], ids=["host", "mesh"])
def test_of_an_optimizer_that_evaluates_its_own_mean_that_is_read(tmp_path, mesh):
    setup = with_optimizer(ScheduleFree(freeze=FREEZE))
    state = setup.init()
    ahead = jax.tree.map(lambda x: x + 1, state.optimizer.y_minus_x)
    state = dataclasses.replace(state, optimizer=state.optimizer._replace(y_minus_x=ahead))
    kept = opened(tmp_path, setup)
    kept.save(2, state, {}, {}, wait=True)
    kept.close()
    built = mesh and mesh.build(jax.devices())
    params, _ = Checkpoints(tmp_path / "checkpoints", Checkpoint(), read_only=True).params(2, built)
    expected = tiny.host(setup.evaluated(state))
    tiny.assert_identical(tiny.host(params), expected)
    own, taken_at = (setup.trained().of(tree) for tree in (expected, tiny.host(state.params)))
    tiny.assert_identical(own, jax.tree.map(lambda x: x - 1, taken_at))


def test_it_is_written_once(tmp_path):
    saved(tmp_path, 2)
    folder = tmp_path / "checkpoints" / FOLDER
    (frozen,) = folder.iterdir()
    when = frozen.stat().st_mtime_ns
    saved(tmp_path, 4, 6)
    assert list(folder.iterdir()) == [frozen] and frozen.stat().st_mtime_ns == when


def test_another_checkpoint_takes_what_is_trained(tmp_path):
    """1.1 times the trained parameters with their optimizer and EMA state, and 64 KiB."""
    setup = with_optimizer(dataclasses.replace(OPTIMIZER, train=("heads_*",)))
    state, sizes = setup.init(), []
    for step in (2, 4):
        kept = opened(tmp_path, setup)
        kept.save(step, state, {}, {}, wait=True)
        kept.close()
        sizes.append(bytes_in(tmp_path))
    own = size_bytes((setup.trained_shapes(), setup.abstract.optimizer, setup.abstract.ema))
    assert sizes[1] - sizes[0] < 1.1 * own + 65536 and sizes[0] > size_bytes(state.params)


def test_all_trained_needs_no_such_folder(tmp_path):
    state = first()
    kept = Checkpoints(tmp_path, Checkpoint())
    kept.save(2, state, {}, {}, wait=True)
    kept.close()
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("harm", ["lost", "changed", "cut short"])
def test_one_that_is_damaged_is_said(tmp_path, harm):
    saved(tmp_path, 2)
    (frozen,) = (tmp_path / "checkpoints" / FOLDER).iterdir()
    if harm == "lost":
        shutil.rmtree(frozen)
    elif harm == "cut short":
        (frozen / "_METADATA").unlink()
    else:  # of another run
        other = tmp_path / "other"
        kept = opened(other)
        zeros = jax.tree.map(jnp.zeros_like, first())
        kept.save(2, zeros, {}, {}, wait=True)
        kept.close()
        shutil.rmtree(frozen)
        shutil.copytree(next((other / "checkpoints" / FOLDER).iterdir()), frozen)
    said = []
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(tried 2\)"):
        opened(tmp_path, said=said.append).restore(prepared().abstract)
    assert frozen.name in said[0] or "frozen" in said[0]
    if harm != "changed":
        assert not opened(tmp_path, read_only=True).is_whole(2)
        with pytest.raises(UserError, match=r"checkpoint 2 of .* is broken"):
            opened(tmp_path, read_only=True).params(2)


def test_an_older_mmjaxs_run_that_freezes_is_refused_with_the_way_on(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    saved(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"is of an older mmjax, .* give a new run --init_from"):
        opened(tmp_path).restore(prepared().abstract)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]


def test_an_older_run_whose_streams_alternate_goes_on(tmp_path, monkeypatch):
    """Its one mean of all losses is left behind: each group is watched anew."""
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    kept = Checkpoints(tmp_path, Checkpoint())
    state = first()
    kept.save(2, state, {}, {}, wait=True)
    kept.close()
    monkeypatch.undo()
    place = state.watch["good"].sharding
    two = {name: jax.device_put(jnp.zeros(2, dtype), place) for name, dtype in (("mean", jnp.float32), ("seen", jnp.int32))}
    today = dataclasses.replace(state, watch={"good": state.watch["good"], **two})
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), today)
    restored, _, _ = Checkpoints(tmp_path, Checkpoint(), read_only=True).restore(shapes)
    tiny.assert_identical(tiny.host(restored), tiny.host(today))


TREE = {"a": {"kernel": np.arange(12, dtype=np.float32).reshape(4, 3)}, "b": np.ones(5, np.float32), "n": np.arange(3)}


def test_a_fingerprint_is_the_same_on_every_mesh():
    mesh = EIGHT.build(jax.devices())
    params = first().params
    placed = jax.tree.map(jax.device_put, params, shardings(params, mesh))
    assert fingerprint(placed) == fingerprint(params) and len(fingerprint(params)) == 32


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "b": np.nextafter(t["b"], np.float32(2))},
        lambda t: {**t, "b": -t["b"]},
        lambda t: {**t, "a": {"kernel": t["a"]["kernel"][::-1].copy()}},
        lambda t: {**t, "a": {"kernel": t["a"]["kernel"].reshape(3, 4)}},
        lambda t: {**t, "n": t["n"].astype(np.float32)},
        lambda t: {**{k: v for k, v in t.items() if k != "b"}, "c": t["b"]},
        lambda t: {k: v for k, v in t.items() if k != "b"},
    ],
)
def test_a_fingerprint_tells_trees_apart(change):
    assert fingerprint(change(TREE)) != fingerprint(TREE) == fingerprint(jax.tree.map(np.copy, TREE))


def test_a_run_that_freezes_goes_on_bit_for_bit(tmp_path):
    """Stopped after four of six steps, against one that was not; and every figure is the same."""
    train(made(), tmp_path / "whole")
    short = dataclasses.replace(made(), hooks={"stop": StopAt(4)})
    train(short, tmp_path / "broken")
    train(made(), tmp_path / "broken")
    ends = [mmjax.load(tmp_path / name)[1] for name in ("whole", "broken")]
    tiny.assert_identical(*map(tiny.host, ends))
    lines = [
        [
            {k: v for k, v in line.items() if "per_second" not in k and "used" not in k}
            for line in read_lines(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "broken")
    ]
    assert json.dumps(lines[0]) == json.dumps(lines[1])


@dataclasses.dataclass(frozen=True)
class StopAt:
    step: int = 4

    def start(self, name, training):
        return Stopping(self.step)


class Stopping(mmjax.train.Hook):
    def __init__(self, step):
        self.step = step

    def at_boundary(self, step, training):
        if step == self.step:
            training.interrupt("for a test")
