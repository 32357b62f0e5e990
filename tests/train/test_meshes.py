"""The same losses on any mesh, for every weighting; what fsdp splits; bfloat16 beside float32.

Plain SGD, because AdamW divides by the root of the second moment: where a gradient is mathematically zero (the bias of
attention's keys) it turns the rounding of a sum, which differs from mesh to mesh, into updates of full size.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny

from mmjax.core.trees import leaves_by_path
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import SGD, AdamW
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.weighting import DynamicWeightAverage, Fixed, GradNorm, PCGrad, Uncertainty

STEPS = 30
OPTIMIZER = SGD(learning_rate=0.03, schedule="constant")
MESHES = (Mesh(data=8), Mesh(data=1, fsdp=4, tensor=2))
THREE_AXES = Mesh(data=2, fsdp=2, tensor=2)
TOKENS_SPLIT = Mesh(data=2, sequence=2, slice=2)
WEIGHTINGS = {
    "fixed": Fixed(),
    "uncertainty": Uncertainty(),
    "dynamic": DynamicWeightAverage(window=5),
    "gradnorm": GradNorm(),
    "pcgrad": PCGrad(),
}


def two(**changes):
    """Two tasks on the plainest layer there is, which compiles in two thirds of the time."""
    model = tiny.small_model(norm="rmsnorm", activation="relu", bias=False, qkv_bias=False)
    return tiny.experiment(**{"model": model, "optimizer": OPTIMIZER} | changes)


@functools.cache
def start(four):
    """The first state but for its weighting's part, on the host: initialising is slow to compile, and the same on any mesh."""
    made = tiny.four(optimizer=OPTIMIZER) if four else two()
    mesh = tiny.ONE.build(jax.devices()[:1])
    with use_mesh(mesh):
        return tiny.host(set_up(made, Run("nowhere"), mesh).init())


def curve(made, mesh=tiny.ONE, steps=STEPS):
    """Every figure of every step: name -> [steps]."""
    setup, step = tiny.prepared(made, mesh)
    first = start("caption" in made.tasks)
    weights = {name: task.weight for name, task in made.tasks.items()}
    first = dataclasses.replace(first, weighting=made.weighting.init(tuple(made.tasks), weights))
    state = jax.tree.map(lambda x, leaf: jax.device_put(np.array(x), leaf.sharding), first, setup.abstract)
    figures = []
    for i in range(steps):
        state, now = step(state, {"train": setup.place(setup.datasets["train"].batch(i))})
        figures.append(now)
    return {name: np.array([float(now[name]) for now in figures]) for name in figures[0]}


@functools.cache
def alone(weighting):
    """The curve of the two tasks on one device."""
    return curve(two(weighting=WEIGHTINGS[weighting]))


def check_meshes(made, one, acts, meshes=MESHES):
    assert one["loss"][-5:].mean() < one["loss"][:5].mean()
    assert acts(one)
    for mesh in meshes:
        other = curve(made, mesh)
        for name in ("loss", *(f"loss/{task}" for task in made.tasks)):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=0, err_msg=f"{name} on {mesh}")


def test_losses_are_the_same_with_tokens_split_over_devices():
    check_meshes(two(), alone("fixed"), lambda figures: True, (TOKENS_SPLIT,))


RARE = ("uncertainty", "dynamic")  # their weights are made of losses alone; the others' of gradients


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in WEIGHTINGS])
def test_losses_over_30_steps_are_the_same_on_every_mesh(name):
    made, meshes = two(weighting=WEIGHTINGS[name]), MESHES if name == "fixed" else (THREE_AXES,)
    if name == "pcgrad":
        check_meshes(made, alone(name), lambda figures: figures["conflicts"].any(), meshes)
    else:
        check_meshes(made, alone(name), lambda figures: (np.ptp(figures["weight/classify"]) > 0) == (name != "fixed"), meshes)


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_losses_of_all_four_objectives_are_the_same_on_every_mesh(name):
    made = tiny.four(weighting=WEIGHTINGS[name], optimizer=OPTIMIZER)
    check_meshes(made, curve(made), lambda figures: True, (*MESHES, THREE_AXES, TOKENS_SPLIT))


def test_fsdp_splits_parameters_optimizer_state_and_average():
    mesh = MESHES[1].build()
    with use_mesh(mesh):
        setup = set_up(tiny.experiment(optimizer=AdamW(ema=0.9)), Run("nowhere"), mesh)
        state = setup.init()
    found = {path: leaf for path, leaf in leaves_by_path(state).items() if path.endswith("attention/q/kernel")}
    kinds = {path.split("/")[0] for path in found}
    assert kinds == {"params", "optimizer", "ema"} and len(found) == 4  # AdamW keeps two moments
    for leaf in found.values():
        assert leaf.shape == (1, 16, 2, 8)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(1, 4, 1, 8)}
        assert len({str(shard.index) for shard in leaf.addressable_shards}) == 8


def test_parameters_start_the_same_on_every_mesh():
    starts = []
    for mesh in (tiny.ONE, MESHES[1]):
        built = mesh.build(jax.devices()[:1] if mesh == tiny.ONE else None)
        with use_mesh(built):
            starts.append(tiny.host(set_up(tiny.experiment(), Run("nowhere"), built).init().params))
    tiny.assert_identical(*starts)


def test_bfloat16_stays_within_2_percent_of_float32():
    """Over 30 steps from the same start, each task's loss."""
    made = two()
    low = dataclasses.replace(made, model=made.model.clone(dtype="bfloat16"))
    full, half = alone("fixed"), curve(low)
    for name in ("loss", "loss/contrastive", "loss/classify"):
        assert (full[name] != half[name]).any()
        assert np.abs(half[name] / full[name] - 1).max() < 0.02, name
