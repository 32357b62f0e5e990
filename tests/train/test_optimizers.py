"""What holds for every optimizer of the table: on a mesh, through a checkpoint, and with what a run can say of it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny

from mmjax.core.trees import leaves_by_path
from mmjax.parallel.mesh import Mesh
from mmjax.train import OPTIMIZERS, Checkpoint, Muon, ScheduleFree
from mmjax.train.checkpoint import Checkpoints

STEPS = 8
# Those whose state or updates are more than sums and products of each entry's own.
OURS = {
    "muon": Muon(learning_rate=0.01, weight_decay=0.1, schedule="wsd", warmup_steps=2),
    "schedule_free": ScheduleFree(learning_rate=0.01, weight_decay=0.1, warmup_steps=3),
}
UP = "encoders_image/stack/layers/mlp/up/kernel"


def made(name):
    """Without biases: Adam turns the rounding of a gradient that is 0 (that of a key's bias) into steps of full size."""
    model = tiny.small_model(norm="rmsnorm", activation="relu", bias=False, qkv_bias=False)
    return tiny.experiment(optimizer=OURS[name], model=model, steps=STEPS)


@functools.cache
def begun(name):
    """What runs on one device, and the state before the first step, on the host."""
    setup, step = tiny.prepared(made(name))
    return setup, step, tiny.host(setup.init())


def place(state, setup):
    return jax.tree.map(lambda x, leaf: jax.device_put(np.array(x), leaf.sharding), state, setup.abstract)


def go_on(state, setup, step, first, last):
    losses = []
    for i in range(first, last):
        state, figures = step(state, {"train": setup.place(setup.datasets["train"].batch(i))})
        losses.append(float(figures["loss"]))
    return state, losses


@functools.cache
def whole(name):
    setup, step, first = begun(name)
    state, losses = go_on(place(first, setup), setup, step, 0, STEPS)
    return tiny.host(state), losses


@pytest.mark.parametrize("name", OURS)
def test_its_losses_are_the_same_on_a_mesh_and_its_state_is_split_like_the_parameters(name):
    setup, step = tiny.prepared(made(name), Mesh(data=1, fsdp=4, tensor=2))
    _, losses = go_on(place(begun(name)[2], setup), setup, step, 0, STEPS)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, whole(name)[1], rtol=1e-5)
    wanted = leaves_by_path(setup.abstract.params)[UP].sharding.spec
    found = {path: x.sharding.spec for path, x in leaves_by_path(setup.abstract.optimizer).items() if path.endswith(UP)}
    assert found and set(found.values()) == {wanted} and any(wanted), found


@pytest.mark.parametrize("name", OURS)
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(name, tmp_path):
    setup, step, first = begun(name)
    state, _ = go_on(place(first, setup), setup, step, 0, STEPS // 2)
    checkpoints = Checkpoints(tmp_path, Checkpoint())
    checkpoints.save(STEPS // 2, state, {}, {}, wait=True)
    state, at, _ = checkpoints.restore(setup.abstract)
    checkpoints.close()
    assert at == STEPS // 2
    state, _ = go_on(state, setup, step, at, STEPS)
    tiny.assert_identical(tiny.host(state), whole(name)[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_can_be_named_and_has_its_fields_described(name):
    kind = OPTIMIZERS[name]
    for field in dataclasses.fields(kind):
        assert f"{field.name}:" in "".join(cls.__doc__ or "" for cls in kind.__mro__), field.name
