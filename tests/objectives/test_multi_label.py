"""Several labels an example: against PyTorch's binary cross entropy and the formulas of the papers in float64."""

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
from mmjax.objectives import OBJECTIVES, MultiLabel

WEIGHTS = (0.5, 2.0, 1.0)
KINDS = {
    "bce": MultiLabel(),
    "bce_weighted": MultiLabel(positive_weights=(3.0, 0.5, 1.0), class_weights=WEIGHTS, label_smoothing=0.1),
    "focal": MultiLabel(loss="focal"),
    "focal_balanced": MultiLabel(loss="focal", gamma=0.5, alpha=0.25, class_weights=WEIGHTS),
    "asymmetric": MultiLabel(loss="asymmetric"),
    "asymmetric_unshifted": MultiLabel(loss="asymmetric", gamma_positive=1.0, gamma_negative=2.0, shift=0.0),
}
every = pytest.mark.parametrize("name", KINDS)


def batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (size, 3)).astype(np.float32)
    labels[1], labels[2, 0], labels[4, 2] = -1.0, np.nan, -1.0
    return {"logits": rng.normal(scale=2.0, size=(size, 3)).astype(np.float32), "labels": labels}


def reference(o, logits, labels):
    """The sum of the loss over known labels as the papers and PyTorch write it, in float64; differentiable."""
    known = torch.tensor(labels >= 0)
    y = torch.tensor(np.where(labels >= 0, labels, 0.0).astype(np.float64))
    weights = torch.tensor(o.class_weights or (1.0,) * 3, dtype=torch.float64)
    p = torch.sigmoid(logits)
    if o.loss == "bce":
        positive = torch.tensor(o.positive_weights or (1.0,) * 3, dtype=torch.float64)
        smooth = y * (1 - o.label_smoothing) + o.label_smoothing / 2
        losses = torch.nn.BCEWithLogitsLoss(weights, reduction="none", pos_weight=positive)(logits, smooth)
    elif o.loss == "focal":  # Lin 2017, eq. 5
        p_t = torch.where(y == 1, p, 1 - p)
        alpha_t = torch.where(y == 1, o.alpha, 1 - o.alpha) if o.alpha else torch.ones_like(y)
        losses = -weights * alpha_t * (1 - p_t) ** o.gamma * torch.log(p_t)
    else:  # Ridnik 2021, eq. 5 to 7
        p_m = torch.clamp(p - o.shift, min=0)
        there, not_there = (1 - p) ** o.gamma_positive * torch.log(p), p_m**o.gamma_negative * torch.log(1 - p_m)
        losses = -weights * torch.where(y == 1, there, not_there)
    return torch.sum(losses[known]), int(known.sum())


@every
def test_the_loss_and_its_gradient_are_those_of_the_papers_over_known_labels(name):
    own = batch()
    logits = torch.tensor(own["logits"].astype(np.float64), requires_grad=True)
    expected, count = reference(KINDS[name], logits, own["labels"])
    expected.backward()
    found, gradient = jax.value_and_grad(lambda x: run(KINDS[name], own | {"logits": x}).sum)(jnp.asarray(own["logits"]))
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logits.grad, rtol=2e-5, atol=1e-6)
    assert run(KINDS[name], own).count == count == 8 * 3 - 5
    assert not np.any(np.asarray(gradient)[~(own["labels"] >= 0)])


def test_the_mean_is_pytorchs():
    own = batch()
    own["labels"] = np.abs(np.nan_to_num(own["labels"]))
    loss = run(MultiLabel(positive_weights=WEIGHTS, class_weights=WEIGHTS), own)
    weight = torch.tensor(WEIGHTS)
    theirs = torch.nn.BCEWithLogitsLoss(weight, pos_weight=weight)(torch.tensor(own["logits"]), torch.tensor(own["labels"]))
    np.testing.assert_allclose(loss.sum / loss.count, theirs, rtol=1e-6)


def test_without_a_focus_the_others_are_binary_cross_entropy():
    plain = run(MultiLabel(), batch()).sum
    for other in (
        MultiLabel(loss="focal", gamma=0.0),
        MultiLabel(loss="asymmetric", gamma_positive=0.0, gamma_negative=0.0, shift=0.0),
    ):
        np.testing.assert_allclose(run(other, batch()).sum, plain, rtol=1e-6)


def test_a_focus_without_gradient_is_the_public_codes():
    """The same loss; the power is a constant to the derivative, as `torch.set_grad_enabled(False)` makes it there."""
    own = batch()
    objective = MultiLabel(loss="asymmetric", gamma_positive=1.0, focus_gradient=False)
    logits, y = torch.tensor(own["logits"], requires_grad=True), torch.tensor(own["labels"])
    p = torch.sigmoid(logits)
    no = torch.clamp(1 - p + 0.05, max=1)
    there = (y == 1).float()
    loss = -(there * torch.log(p) + (1 - there) * torch.log(no))
    focus = ((1 - p * there - no * (1 - there)) ** (1.0 * there + 4.0 * (1 - there))).detach()
    torch.sum((loss * focus)[y >= 0]).backward()
    value, gradient = jax.value_and_grad(lambda x: run(objective, own | {"logits": x}).sum)(jnp.asarray(own["logits"]))
    np.testing.assert_allclose(gradient, logits.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, run(MultiLabel(loss="asymmetric", gamma_positive=1.0), own).sum, rtol=1e-6)


@every
def test_certain_logits_have_a_finite_loss_and_gradient(name):
    own = batch() | {"logits": np.where(np.arange(24).reshape(8, 3) % 2, 200.0, -200.0).astype(np.float32)}
    gradient = jax.grad(lambda x: run(KINDS[name], own | {"logits": x}).sum)(jnp.asarray(own["logits"]))
    assert np.isfinite(gradient).all() and np.isfinite(run(KINDS[name], own).sum)


@every
def test_parts_and_devices_add_up_to_the_whole(name):
    own, objective = batch(), KINDS[name]
    whole = run(objective, own)
    first = np.arange(8) < 3
    parts = [run(objective, own | {"valid": rows}) for rows in (first, ~first)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = run(objective, jax.device_put(own, NamedSharding(mesh, PartitionSpec("data"))))
    for other in (jax.tree.map(lambda a, b: a + b, *parts), split):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), other, whole)
    alone = run(objective, {key: value[first] for key, value in own.items()})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), alone, parts[0])


@given(valid=st.lists(st.booleans(), min_size=8, max_size=8))
def test_the_figures_are_those_of_the_known_labels(valid):
    own = batch()
    known = (own["labels"] >= 0) & np.array(valid)[:, None]
    has, said = own["labels"][known] == 1, own["logits"][known] > 0
    metrics = run(MultiLabel(), own | {"valid": np.array(valid)}).metrics
    assert tuple(map(float, metrics["accuracy"])) == ((has == said).sum(), known.sum())
    assert tuple(map(float, metrics["precision"])) == ((has & said).sum(), said.sum())
    assert tuple(map(float, metrics["recall"])) == ((has & said).sum(), has.sum())


def test_labels_may_be_whole_numbers_or_bools():
    own = batch()
    own["labels"] = np.abs(np.nan_to_num(own["labels"]))
    for dtype in (np.int32, bool):
        np.testing.assert_array_equal(
            run(MultiLabel(), own | {"labels": own["labels"].astype(dtype)}).sum, run(MultiLabel(), own).sum
        )


def test_mistakes_are_one_line():
    assert OBJECTIVES["multi_label"] is MultiLabel and MultiLabel(label="tags").needs == ("tags",)
    for settings, said in (
        ({"loss": "bec"}, r"multi_label\.loss='bec': use one of bce, focal, asymmetric \(did you mean 'bce'"),
        ({"gamma": -1.0}, r"multi_label\.gamma=-1\.0: use a number of at least 0"),
        ({"gamma_negative": -2.0}, r"multi_label\.gamma_negative=-2\.0"),
        ({"shift": 1.0}, r"multi_label\.shift=1\.0: use a number from 0 up to"),
        ({"alpha": 0.25}, r"multi_label\.alpha=0\.25 with loss='bce': alpha is of loss='focal' alone"),
        ({"loss": "focal", "label_smoothing": 0.1}, r"label_smoothing=0\.1 with loss='focal': .* loss='bce' alone"),
        ({"loss": "asymmetric", "positive_weights": (1.0,)}, r"positive_weights=\(1\.0,\) with loss='asymmetric'"),
        ({"class_weights": (-1.0, 2.0)}, r"multi_label\.class_weights=\(-1\.0, 2\.0\): use finite numbers from 0 up"),
        ({"positive_weights": (float("nan"),)}, r"multi_label\.positive_weights=\(nan,\)"),
    ):
        with pytest.raises(UserError, match=said) as error:
            MultiLabel(**settings)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="class_weights has 2 weights, the head has 3 classes: give one a class"):
        run(MultiLabel(class_weights=(1.0, 2.0)), batch())
    for labels, said in ((np.zeros(8, np.int32), "one an example"), (np.zeros((8, 4), np.float32), "4")):
        with pytest.raises(
            UserError, match=f"head='classes' gives logits for 3, and the labels of 'labels' are {said}: several"
        ):
            run(MultiLabel(), batch() | {"labels": labels})
