"""Classification by prompts: the loss and its gradient against PyTorch, how prompts come to ids, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from fake_forward import FakeForward, fake_batch, fake_params

from mmjax.core.errors import UserError
from mmjax.evaluate import ZeroShot
from mmjax.objectives import Prompted
from mmjax.objectives.class_prompts import mean_vectors, prompts
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import Task
from mmjax.train.setup import set_up
from mmjax.train.step import task_losses
from mmjax.train.validate import validated

CLASSES = ("a", "b", "c")
TEMPLATES = ("one {}", "{} two")


def encode(texts, modality):
    """Ids by the place of a text, three a text, of which the last is padding in every other."""
    ids = np.array([[1, 3 + row, 9] for row in range(len(texts))], np.int32)
    mask = np.array([[True, True, row % 2 == 0] for row in range(len(texts))])
    return {modality: ids, f"{modality}_mask": mask}, ["said"]


def bound(**changes):
    return Prompted(TEMPLATES, **changes).bound(CLASSES, "train", encode)


def reference(params, batch, smoothing):
    """The same by PyTorch: the loss and its gradient by the table of words and by the projection of images."""
    p = {name: torch.tensor(np.array(x), requires_grad=True) for name, x in params.items()}

    def unit(x):
        return torch.nn.functional.normalize(x, dim=-1)

    def text(ids, mask):
        weight = torch.tensor(mask, dtype=torch.float32)
        embedded = p["encoders_text"][torch.tensor(ids).long()]
        return unit((embedded * weight[..., None]).sum(1) / weight.sum(1, keepdim=True) @ p["dual_text"])

    inputs, _ = encode(prompts(CLASSES, TEMPLATES), "text")
    vectors = unit(text(inputs["text"], inputs["text_mask"]).reshape(3, 2, -1).mean(1))
    pixels = torch.tensor(np.array(batch["image"]))
    patches = pixels.reshape(len(pixels), 4, 12)
    image = unit((patches @ p["encoders_image"]).mean(1) @ p["dual_image"])
    logits = p["scale"].exp() * image @ vectors.T
    label = torch.tensor(np.array(batch["label"])).long()
    loss = torch.nn.functional.cross_entropy(logits, label, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    loss.backward()
    return loss.item(), {name: p[name].grad.numpy() for name in ("encoders_text", "dual_image", "scale")}, logits


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_pytorchs(smoothing):
    params, batch = fake_params(), fake_batch()
    batch["label"] = batch["label"].at[2].set(-1)
    objective = bound(label_smoothing=smoothing)

    def loss(params):
        found = objective(FakeForward(batch, params), batch, jax.random.key(0))
        return found.sum, found

    (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    expected, gradients, logits = reference(params, batch, smoothing)
    np.testing.assert_allclose(value, expected, rtol=2e-5)
    assert float(found.count) == 7
    for name, own in gradients.items():
        np.testing.assert_allclose(gradient[name], own, rtol=2e-4, atol=2e-5, err_msg=name)
    right = (logits.argmax(1).numpy() == np.array(batch["label"]))[np.array(batch["label"]) >= 0]
    assert float(found.metrics["accuracy"][0]) == right.sum()


def test_rows_that_are_padding_do_not_count():
    params, batch = fake_params(), fake_batch()
    valid = np.arange(8) < 5
    padded = bound()(FakeForward(batch, params), batch | {"valid": jnp.asarray(valid)}, jax.random.key(0))
    rows = {name: x[:5] for name, x in batch.items()}
    short = bound()(FakeForward(rows, params), rows, jax.random.key(0))
    np.testing.assert_allclose((padded.sum, padded.count), (short.sum, short.count), rtol=1e-6)


def test_names_are_matched_to_the_datas_and_others_go_by_place():
    assert bound(classes=("c", "z", "a", "b")).places == (2, 3, 0)
    assert bound(classes=("x", "y", "z")).places == (0, 1, 2) and bound().notes == ("said",)


def test_the_order_of_the_given_classes_changes_no_loss():
    """Texts by their names here, so that a class has the same ids wherever it stands."""

    def by_text(texts, modality):
        ids = np.array([[1, 3 + sum(map(ord, text)) % 8, 9] for text in texts], np.int32)
        return {modality: ids, f"{modality}_mask": np.ones(ids.shape, bool)}, []

    batch = fake_batch()
    forward = FakeForward(batch, fake_params())
    losses = [
        Prompted(("{}",), classes).bound(CLASSES, "train", by_text)(
            FakeForward(batch, forward.params), batch, jax.random.key(0)
        )
        for classes in ((), ("c", "a", "b"))
    ]
    np.testing.assert_allclose(losses[0].sum, losses[1].sum, rtol=1e-6)
    assert float(losses[0].metrics["accuracy"][0]) == float(losses[1].metrics["accuracy"][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prompted(()), r"prompted.templates=\(\): give at least one"),
        (lambda: Prompted(("a photo",)), r"prompted.templates has 'a photo', which lacks the \{\}"),
        (lambda: Prompted(classes=("a", "a")), r"prompted.classes=\('a', 'a'\): name each class once"),
        (lambda: Prompted(label_smoothing=1.0), "prompted.label_smoothing=1.0"),
        (lambda: Prompted().bound((), "train", encode), r"classes=\(\): data.train says no names of its 'label'"),
        (lambda: bound(classes=("a", "b", "x")), "data.train has the class 'c', which is not one of them"),
        (lambda: bound(classes=("x", "y")), "data.train has 3 classes"),
        (lambda: Prompted().bound(("a",), "train", encode), "one class is always right"),
        (lambda: Prompted()(None, {}, None), "Prompted has no token ids yet"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def made(**changes):
    tasks = {"prompted": Task(Prompted(tiny.TEMPLATES, **changes.pop("objective", {})))}
    return tiny.experiment(tasks=tasks, **changes)


def test_a_run_has_the_ids_that_the_evaluator_has_and_its_loss_is_that_of_its_scores():
    """Through the real set-up: the accuracy of the loss is the evaluator's on the same records."""
    data = {"train": tiny.data(batch_size=32, shuffle=False), "validation": tiny.data(batch_size=32)}
    mesh = Mesh(data=1).build(jax.devices()[:1])
    with use_mesh(mesh):
        setup = validated(set_up(made(data=data), None, mesh))
        params = setup.init().params
        batch = setup.place(next(iter(setup.datasets["validation"].epoch())))
        losses = task_losses(setup.experiment.model, setup.tasks, params, {"train": batch}, jax.random.key(0), train=False)
        evaluation = setup.evaluation()
        examples = evaluation.kept = []
        ZeroShot(tiny.TEMPLATES)(evaluation, params)
    right = sum(one["label"] == one["predicted"] for one in examples[:32])
    total, count = losses["prompted"].metrics["accuracy"]
    assert (float(total), float(count)) == (right, 32.0) and 0 < right < 32


def test_prompts_that_are_lost_are_said_and_a_run_without_words_is_refused():
    mesh = Mesh(data=1).build(jax.devices()[:1])
    data = {name: dataclasses.replace(own, max_length=4) for name, own in tiny.experiment().data.items()}
    with use_mesh(mesh):
        setup = validated(set_up(made(data=data), None, mesh))
        assert any(note.startswith("tasks.prompted: 20 of 20 prompts are longer than 4 tokens") for note in setup.notes)
        with pytest.raises(
            UserError, match=r"tasks.prompted.objective: classes=\('zero', 'nought'\): data.train has 10 classes"
        ):
            validated(set_up(made(objective={"classes": ("zero", "nought")}), None, mesh))
        with pytest.raises(UserError, match=r"tasks.prompted needs 'label' in the batch|says no names of its 'kind'"):
            validated(set_up(made(objective={"label": "kind"}), None, mesh))


def test_the_step_is_the_same_on_every_mesh_and_trains_the_text_tower():
    steps = []
    for mesh in (Mesh(data=1), Mesh(data=4, tensor=2), Mesh(data=2, fsdp=4)):
        setup, step = tiny.prepared(made(), mesh if mesh.data > 1 else tiny.ONE)
        with use_mesh(setup.mesh):
            state = setup.init()
            before = tiny.host(state.params)
            batch = {"train": setup.place(setup.datasets["train"].batch(0))}
            state, figures = step(state, batch)
            steps.append((float(figures["loss"]), tiny.host(state.params)))
    assert not np.array_equal(before["encoders_text"]["words"]["table"], steps[0][1]["encoders_text"]["words"]["table"])
    for loss, params in steps[1:]:
        np.testing.assert_allclose(loss, steps[0][0], rtol=1e-5)
        for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(steps[0][1]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_mean_of_prompts_is_the_same_of_numpy_and_jax_and_cancels_without_nan():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mean = x.reshape(3, 2, 4).mean(1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(mean_vectors(x, 3), expected, rtol=1e-6)
    np.testing.assert_allclose(mean_vectors(jnp.asarray(x), 3), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: mean_vectors(x, 1).sum())(jnp.asarray([[1.0, 0.0], [-1.0, 0.0]]))
    assert np.isfinite(gradient).all()
