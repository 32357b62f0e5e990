"""Batch normalisation in real steps: PyTorch's losses and statistics, on any mesh, resumed, frozen, refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
import torch
import transformers
from jax.sharding import PartitionSpec as P

from mmjax.convert import save_hf
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.models import Multimodal
from mmjax.models.encoders import ResNet
from mmjax.models.heads import Classifier
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import SGD, AdamW, Checkpoint, Task
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.trained import check_whole_batches

STEPS, RATE = 20, 5e-3
PLAIN = {"learning_rate": RATE, "schedule": "constant", "clip_norm": 0.0, "no_decay": ()}
OPTIMIZERS = {
    "sgd": (SGD(momentum=0.9, **PLAIN), lambda p: torch.optim.SGD(p, RATE, momentum=0.9)),
    "adamw": (AdamW(weight_decay=0.1, warmup_steps=0, **PLAIN), lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.1)),
}
EIGHT = Mesh(data=4, fsdp=2)


def made(**changes):
    """Two tasks that read one encoder, half a loss each."""
    image = ResNet(widths=(8, 12), depths=(2, 1), block="basic", stem_width=8)
    model = Multimodal(encoders={"image": image}, heads={"classes": Classifier(classes=10)})
    half = Task(tiny.OBJECTIVES["classify"], weight=0.5)
    chosen = {"model": model, "tasks": {"one": half, "other": half}, "evaluate": {}, "optimizer": OPTIMIZERS["sgd"][0]}
    return tiny.experiment(**{**chosen, **changes})


@functools.cache
def prepared(name="sgd", mesh=tiny.ONE):
    return tiny.prepared(made(optimizer=OPTIMIZERS[name][0]), mesh)


@functools.cache
def ran(name="sgd", mesh=tiny.ONE, steps=STEPS):
    """The first state and the last on the host, and the losses."""
    setup, step = prepared(name, mesh)
    with use_mesh(setup.mesh):
        first = setup.init()
        return tiny.host(first), *gone_on(setup, step, first, range(steps))


def gone_on(setup, step, state, numbers):
    state, losses = jax.tree.map(lambda x: x.copy(), state), []
    for i in numbers:
        state, figures = step(state, {"train": setup.place(setup.datasets["train"].batch(i))})
        losses.append(float(figures["loss"]))
    return tiny.host(state), np.array(losses)


def written(state, folder):
    """The state's model in HuggingFace's hands."""
    save_hf(made().model, {**state.params, "variables": state.variables["model"]}, folder)
    return transformers.ResNetForImageClassification.from_pretrained(folder)


@pytest.mark.parametrize("name", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_losses_and_statistics_are_torchs_after_twenty_steps(name, tmp_path):
    first, last, losses = ran(name)
    theirs = written(first, tmp_path / "first").train()
    optimizer = OPTIMIZERS[name][1](theirs.parameters())
    expected = []
    for i in range(STEPS):
        batch = prepared(name)[0].datasets["train"].batch(i)
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(batch["image"]), -1, 1)))
        loss = torch.nn.functional.cross_entropy(theirs(pixels).logits, torch.tensor(np.asarray(batch["label"])).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    found = written(last, tmp_path / "last").state_dict()
    for key, value in theirs.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert found[key] == value == STEPS  # once a step, for two tasks
        else:
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), err_msg=key)


def test_eight_devices_keep_the_statistics_of_the_whole_batch():
    (_, one, losses), (_, eight, others) = ran(), ran(mesh=EIGHT)
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    for path, value in leaves_by_path(one.variables).items():
        np.testing.assert_allclose(leaves_by_path(eight.variables)[path], value, rtol=1e-5, atol=1e-5, err_msg=path)
    kernel = "params/encoders_image/stage_0/layers/conv_1/convolve/kernel"
    layout = {path: x.sharding.spec for path, x in leaves_by_path(dataclasses.asdict(prepared(mesh=EIGHT)[0].abstract)).items()}
    assert layout["variables/model/statistics/encoders_image/stage_0/layers/conv_1/norm/mean"] == P(None, None)
    assert layout[kernel] == P(None, None, None, None, "fsdp")


def test_a_run_that_is_resumed_is_the_same_to_the_bit(tmp_path):
    setup, step = prepared()
    with use_mesh(setup.mesh):
        half, _ = gone_on(setup, step, setup.init(), range(STEPS // 2))
        kept = Checkpoints(tmp_path / "checkpoints", Checkpoint(), trained=setup.trained())
        kept.save(STEPS // 2, jax.device_put(half, jax.tree.map(lambda x: x.sharding, setup.abstract)), {}, {}, wait=True)
        state, at, _ = kept.restore(setup.abstract)
        kept.close()
        last, losses = gone_on(setup, step, state, range(at, STEPS))
    tiny.assert_identical(last, ran()[1])
    np.testing.assert_array_equal(losses, ran()[2][STEPS // 2 :])


@pytest.mark.parametrize(
    ("freeze", "moves"),
    [(("encoders_image/*",), False), (("encoders_image/stage_0/*[:1]", "encoders_image/stem/*"), True)],
)
def test_a_frozen_tower_keeps_its_statistics(freeze, moves):
    """Of one that is frozen in part, those of its frozen layers too move on, as PyTorch's do in training."""
    setup, step = tiny.prepared(made(optimizer=dataclasses.replace(OPTIMIZERS["sgd"][0], freeze=freeze)))
    first = tiny.host(setup.init())
    last, losses = gone_on(setup, step, setup.init(), range(2))
    for path, value in leaves_by_path(first.variables).items():
        assert np.array_equal(leaves_by_path(last.variables)[path], value) != moves, path
    own = first.params["encoders_image"]["stage_0"]["layers"]["conv_1"]["convolve"]["kernel"]
    after = last.params["encoders_image"]["stage_0"]["layers"]["conv_1"]["convolve"]["kernel"]
    np.testing.assert_array_equal(after[0], own[0])
    assert np.array_equal(after[1], own[1]) != moves
    # Normalised by what is kept (mean 0, variance 1), or by the batch as where all is trained: before any step has changed it.
    assert (abs(losses[0] - ran()[2][0]) < 1e-5) == moves


def test_micro_batches_are_refused_where_they_would_be_normalised_apart():
    twice = dataclasses.replace(OPTIMIZERS["sgd"][0], accumulate=2)
    with pytest.raises(UserError, match=r"optimizer.accumulate=2 and model.encoders.image.norm='batch': each micro-batch"):
        tiny.prepared(made(optimizer=twice))
    check_whole_batches(made().model, frozenset({"encoders_image"}), 2)  # nothing of it is trained
