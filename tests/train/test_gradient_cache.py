"""Micro-batches of objectives that compare the examples of a batch: exact, and without the activations of the whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mmjax.core.random import fold_name
from mmjax.core.trees import leaves_by_path
from mmjax.models.forward import BoundForward
from mmjax.models.multimodal import init_params
from mmjax.nn.augment import ImageAugment
from mmjax.objectives import Alignment, Contrastive, Triplet
from mmjax.parallel.mesh import Mesh
from mmjax.train import SGD, Task
from mmjax.train.step import accumulated

COMPARING = {
    "sigmoid": Task(Contrastive("sigmoid", exchange="ring", tile=3)),
    "softmax": Task(Contrastive()),
    "alignment": Task(Alignment()),
    "triplet": Task(Triplet(mining="all")),
}


def made(accumulate):
    model = tiny.small_model().clone(augment={"image": ImageAugment(noise=0.1)})
    optimizer = SGD(learning_rate=0.1, schedule="constant", clip_norm=0.0, accumulate=accumulate)
    return tiny.experiment(model=model, tasks={**COMPARING, **tiny.tasks("classify")}, optimizer=optimizer, evaluate={})


def one_step(accumulate, mesh):
    experiment = made(accumulate)
    experiment.check()
    setup, step = tiny.prepared(experiment, mesh)
    start = setup.init()
    before = leaves_by_path(tiny.host(start.params))
    state, figures = step(start, {"train": setup.place(setup.datasets["train"].batch(0))})
    return {path: leaf - before[path] for path, leaf in leaves_by_path(tiny.host(state.params)).items()}, tiny.host(figures)


@pytest.fixture(scope="module")
def whole():
    return one_step(1, tiny.ONE)


@pytest.mark.parametrize(("accumulate", "mesh"), [(4, tiny.ONE), (2, Mesh(data=8))], ids=["4 parts", "2 parts on 8 devices"])
def test_micro_batches_equal_the_large_batch(whole, accumulate, mesh):
    updates, figures = one_step(accumulate, mesh)
    for path, update in whole[0].items():
        # Sums of float32 in another order, so relative to the largest of them: updates here are up to 6, and the large batch on
        # eight devices is as far from itself on one (6e-7). The floor is the rounding of the parameters that they are added to.
        near = 2e-6 * np.abs(update).max() + 1e-7
        np.testing.assert_allclose(updates[path], update, rtol=0, atol=near, err_msg=path)
    assert figures.keys() == whole[1].keys()
    for name, value in whole[1].items():
        np.testing.assert_allclose(
            figures[name], value, rtol=1e-5 if name == "gradient_norm" else 2e-6, atol=1e-6, err_msg=name
        )


def tasks_and_batch(size):
    experiment = tiny.experiment(model=tiny.small_model(dropout=0.3, depth=2), evaluate={})
    tokenizer = experiment.tokenizer.train(experiment.data["train"].texts())
    data = dataclasses.replace(experiment.data["train"], batch_size=size)
    return experiment.model, jax.tree.map(jnp.asarray, data.build(tokenizer, 0).batch(0))


def test_each_part_has_its_own_dropout_the_same_in_both_passes():
    """Against embeddings of each micro-batch that are kept, so that nothing is computed again."""
    model, batch = tasks_and_batch(8)
    rng = jax.random.key(3, impl="unsafe_rbg")  # compiles ten times faster than the default
    task, key, parts = {"pairs": Task(Contrastive("sigmoid"))}, fold_name(rng, "data/train"), 2

    def cached(params):
        return accumulated(model, task, params, {"train": batch}, rng, parts)[0]["pairs"].sum

    def kept(params):
        found = {}
        for name in ("image", "text"):
            rows = [
                BoundForward(model, params, {k: x[i::parts] for k, x in batch.items()}, key, jnp.int32(i)).embed(name)
                for i in range(parts)
            ]
            found["dual", name] = jnp.stack(rows, axis=1).reshape(8, -1)
        forward = BoundForward(model, params, batch, key, embedded=found)
        return task["pairs"].objective(forward, batch, rng).sum, found["dual", "image"]

    params = jax.jit(functools.partial(init_params, model))(rng)
    value, gradient = jax.jit(jax.value_and_grad(cached))(params)
    (expected, image_BE), slopes = jax.jit(jax.value_and_grad(kept, has_aux=True))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for path, leaf in leaves_by_path(slopes).items():
        np.testing.assert_allclose(leaves_by_path(gradient)[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path)

    alike = {name: jnp.repeat(x[:1], 4, axis=0) for name, x in batch.items()}
    embed = jax.jit(lambda params, part: BoundForward(model, params, alike, key, part).embed("image"))
    embedded = [embed(params, jnp.int32(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(embedded[0], embedded[1])
    assert np.all(np.any(np.asarray(embedded[0]) != np.asarray(embedded[2]), axis=1))
    assert np.isfinite(image_BE).all()


def test_activations_of_one_part_at_a_time():
    model, batch = tasks_and_batch(256)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    def temporaries(parts):
        def loss(params, batch):
            made = accumulated(model, tiny.tasks("contrastive"), params, {"train": batch}, jax.random.key(0), parts)
            return made[0]["contrastive"].sum

        return jax.jit(jax.grad(loss)).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    whole, eighth = temporaries(1), temporaries(8)
    assert eighth < whole / 3, (whole, eighth)
