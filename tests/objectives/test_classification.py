import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import FakeForward, calls, fake_batch, fake_params, fused, run
from jax.test_util import check_grads
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.objectives.classification import Classification, focal_loss
from mmjax.objectives.losses import cross_entropy

LOGITS = np.random.default_rng(0).normal(scale=2, size=(8, 3))
LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 1], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_on_known_labels(smoothing):
    batch, params = fake_batch() | {"label": jnp.array([0, -1, 2, 1, 0, -1, 2, 2], jnp.int32)}, fake_params()
    loss = run(Classification(label_smoothing=smoothing), batch)
    image = np.asarray(batch["image"], np.float64).reshape(8, 4, 12) @ np.asarray(params["encoders_image"], np.float64)
    logits = torch.tensor(image.mean(1) @ np.asarray(params["classes"], np.float64))
    labels = torch.tensor([0, -100, 2, 1, 0, -100, 2, 2])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert loss.count == 6 and loss.metrics["accuracy"] == ((logits.argmax(1) == labels).sum().item(), 6)


def test_fused_modalities_are_classified_together():
    for said in ({}, {"fusion": "cross"}, {"fusion": "cross", "modality": "text", "context": ("image",)}):
        objective = Classification("both", **said)
        assert set(fused(objective, fake_batch())) == {"text", "image"}
        assert calls(objective, fake_batch())[-2:] == [("fuse cross", (8, 9, 4)), ("head both", (8, 9, 4))]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"modality": "text"}, "modality='text': model.heads.classes has input='image', which feeds it"),
        ({"fusion": "cross"}, "fusion='cross': model.heads.classes has input='image', which feeds it"),
        ({"head": "both", "modality": "image"}, "modality='image': model.heads.both has input='cross', which feeds it"),
        ({"head": "both", "fusion": "cross", "modality": "audio"}, "modality='audio': fusion 'cross' joins text, image"),
        (
            {"head": "both", "fusion": "cross", "modality": "text", "context": ("audio",)},
            r"context=\('audio',\): beside 'text' fusion 'cross' joins image",
        ),
    ],
)
def test_another_way_than_the_heads_is_refused(said, message):
    with pytest.raises(UserError, match=message):
        calls(Classification(**said), fake_batch())


def test_weighted_classes_are_torchs():
    weights, smoothing = (1.0, 2.0, 4.0), 0.1
    for rate in (0.0, smoothing):
        batch = fake_batch() | {"label": jnp.array([0, 0, 1, -1, 2, 2, 1, 0], jnp.int32)}
        loss = run(Classification(class_weights=weights, label_smoothing=rate), batch)
        logits = torch.tensor(np.asarray(_logits(batch)))
        labels = torch.tensor(np.asarray(batch["label"])).long()
        theirs = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=-1, label_smoothing=rate)
        np.testing.assert_allclose(loss.sum / loss.count, theirs, rtol=1e-5)
    for wrong in ((1.0, 2.0), (1.0, 2.0, 3.0, 4.0)):
        with pytest.raises(UserError, match=f"class_weights has {len(wrong)} weights, the head has 3 classes"):
            run(Classification(class_weights=wrong), fake_batch())
    for wrong in ((-1.0, 1.0, 1.0), (0.0, 0.0, 0.0)):
        with pytest.raises(UserError, match="class_weights"):
            Classification(class_weights=wrong)
    with pytest.raises(UserError, match="the focal loss has alpha instead"):
        Classification(loss="focal", class_weights=weights)


def _logits(batch):
    return FakeForward(batch, fake_params()).head("classes")


def test_labels_of_many_places():
    """One a token: the head gives logits for each, and the labels are as many."""
    batch = fake_batch()
    labels = jnp.where(batch["text_mask"], batch["text"], -1)
    dense = batch | {"tags": labels}
    loss = run(Classification("masked_lm", label="tags"), dense)
    logits = FakeForward(batch, fake_params()).head("masked_lm")
    expected = cross_entropy(logits, labels)[np.asarray(labels) >= 0]
    assert float(loss.count) == int((labels >= 0).sum())
    np.testing.assert_allclose(loss.sum, expected.sum(), rtol=1e-5)
    with pytest.raises(UserError, match="head='masked_lm' gives logits for 5, and the labels of 'label' are one an example"):
        run(Classification("masked_lm"), batch)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [(), (0.2, 0.3, 0.5)])
def test_focal_loss_is_the_papers(gamma, alpha):
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = [
        -(alpha[label] if alpha else 1) * (1 - p[i, label]) ** gamma * np.log(p[i, label]) for i, label in enumerate(LABELS)
    ]
    found = focal_loss(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS), gamma, alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, labels = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    np.testing.assert_allclose(focal_loss(logits, labels, 0.0), cross_entropy(logits, labels), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradients(gamma):
    focal = jax.jit(lambda logits: focal_loss(logits, jnp.asarray(LABELS), gamma))
    check_grads(focal, (jnp.asarray(LOGITS, jnp.float32),), order=1, modes=["rev"])
    certain = jnp.zeros((8, 3)).at[:, 0].set(200.0)
    gradient = jax.jit(jax.grad(lambda logits: focal(logits).sum()))(certain)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[LABELS == 0])


def test_a_weight_for_each_class_is_asked_for():
    with pytest.raises(UserError, match=r"classification\.alpha has 2 weights, the head has 3 classes: give one a class"):
        run(Classification(loss="focal", alpha=(0.5, 0.5)), fake_batch())
