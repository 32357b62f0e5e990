"""Ordered classes: the loss of CORAL in float64, and what its questions say together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given_logits import run
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.objectives import OBJECTIVES, Ordinal

LABELS = np.array([0, 3, 1, -1, 2, 2, 3, 0], np.int32)


def batch(seed=0):
    return {"logits": np.random.default_rng(seed).normal(scale=2.0, size=(8, 3)).astype(np.float32), "label": LABELS}


@pytest.mark.parametrize("weights", [(), (0.5, 2.0, 1.0)])
def test_the_loss_and_its_gradient_are_corals(weights):
    """Cao 2020, eq. 4: of each question the binary cross entropy, of which a fourth row knows nothing."""
    own = batch()
    logits = torch.tensor(own["logits"].astype(np.float64), requires_grad=True)
    levels = torch.tensor([[float(label > k) for k in range(3)] for label in LABELS], dtype=torch.float64)
    known = torch.tensor(LABELS >= 0)
    weight = torch.tensor(weights or (1.0,) * 3, dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[known], levels[known], weight=weight.expand(7, 3), reduction="sum"
    )
    expected.backward()
    objective = Ordinal(task_weights=weights)
    found, gradient = jax.value_and_grad(lambda x: run(objective, own | {"logits": x}).sum)(jnp.asarray(own["logits"]))
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logits.grad, rtol=1e-5, atol=1e-7)
    assert run(objective, own).count == 7


@given(valid=st.lists(st.booleans(), min_size=8, max_size=8))
def test_an_examples_class_is_how_many_questions_say_yes(valid):
    own = batch()
    counts = np.array(valid) & (LABELS >= 0)
    metrics = run(Ordinal(), own | {"valid": np.array(valid)}).metrics
    off = np.abs((own["logits"] > 0).sum(axis=1) - LABELS)[counts]
    assert tuple(map(float, metrics["accuracy"])) == ((off == 0).sum(), counts.sum())
    assert tuple(map(float, metrics["absolute_error"])) == (off.sum(), counts.sum())


def test_parts_and_devices_add_up_to_the_whole():
    own, objective, first = batch(), Ordinal(), np.arange(8) < 3
    whole, parts = run(objective, own), [run(objective, own | {"valid": rows}) for rows in (first, ~first)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = run(objective, jax.device_put(own, NamedSharding(mesh, PartitionSpec("data"))))
    for other in (jax.tree.map(lambda a, b: a + b, *parts), split):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), other, whole)


def test_mistakes_are_one_line():
    assert OBJECTIVES["ordinal"] is Ordinal and Ordinal(label="grade").needs == ("grade",)
    for settings, said in (
        ({"order": ("low", "low")}, r"ordinal\.order=\('low', 'low'\): name two classes or more, each once"),
        ({"order": "low"}, r"ordinal\.order='low'"),
        ({"order": ("low",)}, r"ordinal\.order=\('low',\)"),
        ({"task_weights": (1.0, -1.0)}, r"ordinal\.task_weights=\(1\.0, -1\.0\): use finite numbers from 0 up"),
        ({"task_weights": (0.0, 0.0)}, r"ordinal\.task_weights=\(0\.0, 0\.0\)"),
    ):
        with pytest.raises(UserError, match=said):
            Ordinal(**settings)
    with pytest.raises(UserError, match="task_weights has 2 weights, the head gives 3 logits: give one a logit"):
        run(Ordinal(task_weights=(1.0, 1.0)), batch())
    for label, said in ((np.zeros((8, 3), np.float32), "3, float32"), (np.zeros(8, np.float32), "one an example, float32")):
        with pytest.raises(
            UserError, match=f"head='classes' gives logits for 3, and the labels of 'label' are {said}: ordered"
        ):
            run(Ordinal(), batch() | {"label": label})
