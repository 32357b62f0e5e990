"""Muon against PyTorch, optax, a singular value decomposition and formulas written out; which parameters are matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from optax.contrib import MuonDimensionNumbers
from pytorch import torch
from test_optimizer import RAW, STACK, run

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.models import Multimodal, param_shapes
from mmjax.models.heads import Classifier
from mmjax.train import AdamW, Muon
from mmjax.train.muon import dims

ALL = {"matrices": ("*",)}


def normal(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def one_step(optimizer, params, gradient):
    (after,), _ = run(optimizer, params, lambda *_: gradient, 1)
    return {path: np.asarray(x) for path, x in leaves_by_path(after).items()}


def by_hand(gradient, rms=0.2, iterations=5):
    """One step from nothing in float64: U f(S) V^T of a matrix [in, out], f the iteration's quintic."""
    u, s, vt = np.linalg.svd(gradient.astype(np.float64), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return rms * max(gradient.shape) ** 0.5 * (u * s) @ vt


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 7)])
def test_a_step_is_the_iteration_on_the_singular_values(shape):
    g = normal(*shape)
    after = one_step(Muon(learning_rate=0.1, **RAW, **ALL), {"w": np.zeros(shape, np.float32)}, {"w": g})
    np.testing.assert_allclose(after["w"], -0.1 * by_hand(g), rtol=1e-4, atol=1e-6)


def test_the_iteration_brings_all_singular_values_near_one():
    g = normal(16, 12)
    after = one_step(Muon(learning_rate=1.0, rms=0.0, **RAW, **ALL), {"w": np.zeros((16, 12), np.float32)}, {"w": g})
    u, _, vt = np.linalg.svd(g)
    along = np.diag(u.T @ -after["w"] @ vt.T)
    assert (abs(along - 1) < 0.35).all()  # Jordan 2024: f is made for speed, and ends within about 0.3 of 1


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("rms", "adjust"), [(0.2, "match_rms_adamw"), (0.0, "original")])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_steps_equal_torch(monkeypatch, nesterov, rms, adjust, shape):
    """In float32: torch iterates in bfloat16. Its weight is the transpose of ours.

    With Nesterov's look ahead the first step alone: optax, which we use, corrects the means of the next ones, torch does not.
    """
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    start, steps = normal(*shape), 1 if nesterov else 5
    gradients = [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i in range(steps)]
    ours = Muon(learning_rate=0.03, weight_decay=0.1, momentum=0.8, nesterov=nesterov, rms=rms, no_decay=(), **RAW, **ALL)
    seen, _ = run(ours, {"w": jnp.asarray(start)}, lambda _, i: {"w": gradients[i]}, steps)
    w = torch.tensor(start.T.copy(), requires_grad=True)
    theirs = torch.optim.Muon([w], lr=0.03, weight_decay=0.1, momentum=0.8, nesterov=nesterov, adjust_lr_fn=adjust)
    for g, after in zip(gradients, seen, strict=True):
        w.grad = torch.tensor(g.T.copy())
        theirs.step()
        np.testing.assert_allclose(after["w"], w.detach().numpy().T, rtol=1e-5, atol=1e-5)


def test_several_steps_equal_optax():
    params = {"w": normal(6, 4), "v": normal(4, 3)}
    gradients = [{name: np.random.default_rng(i).normal(size=x.shape) for name, x in params.items()} for i in range(5)]
    gradients = jax.tree.map(lambda x: x.astype(np.float32), gradients)
    seen, _ = run(Muon(learning_rate=0.03, **RAW, **ALL), params, lambda _, i: gradients[i], 5)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.contrib.muon(0.03, consistent_rms=0.2)
        state = theirs.init(params)
        for g, after in zip(gradients, seen, strict=True):
            updates, state = theirs.update(g, state, params)
            params = optax.apply_updates(params, updates)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after, params)


def test_layers_and_joined_dims_are_matrices_of_their_own():
    """[L, D, H, K] moves as L matrices D x H K, [L, H, K, D] as H K x D."""
    path = "encoders_image/stack/layers/attention"
    shapes = {"q": (3, 6, 2, 4), "out": (3, 2, 4, 6)}
    tree = {"q": {"kernel": normal(3, 6, 2, 4)}, "out": {"kernel": normal(3, 2, 4, 6)}}
    gradient = {"encoders_image": {"stack": {"layers": {"attention": tree}}}}
    after = one_step(Muon(learning_rate=0.1, **RAW), jax.tree.map(np.zeros_like, gradient), gradient)
    for name, side in (("q", (6, 8)), ("out", (8, 6))):
        for layer in range(3):
            wanted = -0.1 * by_hand(tree[name]["kernel"][layer].reshape(side))
            found = after[f"{path}/{name}/kernel"][layer].reshape(side)
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6, err_msg=str(shapes[name]))


@pytest.mark.parametrize(
    ("path", "ndim", "contracted", "output"),
    [
        ("encoders_image/stack/layers/attention/q/kernel", 4, (1,), (2, 3)),
        ("encoders_image/stack/layers/first/cross_attention/v/kernel", 4, (1,), (2, 3)),
        ("encoders_image/stack/layers/attention/out/kernel", 4, (1, 2), (3,)),
        ("encoders_image/stack/layers/mlp/up/kernel", 3, (1,), (2,)),
        ("heads_classes/pool/attention/k/kernel", 3, (0,), (1, 2)),
        ("heads_classes/pool/attention/out/kernel", 3, (0, 1), (2,)),
        ("encoders_mine/convolution/kernel", 4, (0, 1, 2), (3,)),
        ("heads_attention/own/kernel", 2, (0,), (1,)),
    ],
)
def test_which_dims_are_contracted(path, ndim, contracted, output):
    assert dims(path, ndim) == MuonDimensionNumbers(contracted, output)


def test_only_matrices_of_layers_and_poolings_move_by_it():
    """All else moves exactly as by AdamW."""
    model = Multimodal(
        encoders={"image": tiny.vit(cls_token=True)}, heads={"classes": Classifier(classes=3, pool="attention", heads=2)}
    )
    params = jax.tree.map(lambda x: normal(*x.shape), param_shapes(model))
    gradient = jax.tree.map(lambda x: np.float32(0.1) * x, params)
    ours, adams = (one_step(o(learning_rate=0.1, weight_decay=0.1, **RAW), params, gradient) for o in (Muon, AdamW))
    other = {path for path in ours if not np.allclose(ours[path], adams[path], rtol=1e-6, atol=1e-7)}
    inside = ("attention/q", "attention/k", "attention/v", "attention/out", "mlp/up", "mlp/down")
    assert other == {path for path in ours if path.endswith(tuple(f"{name}/kernel" for name in inside))}
    assert {path.split("/")[0] for path in other} == {"encoders_image", "heads_classes"}


def test_it_keeps_no_second_moment_of_matrices():
    shapes = param_shapes(tiny.model())
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(jax.eval_shape(kind(**RAW).build(shapes, 5).init, shapes)))
        for name, kind in (("muon", Muon), ("adamw", AdamW))
    }
    matrices = sum(x.size for path, x in leaves_by_path(shapes).items() if Muon()._kind(path, x) == "matrix")
    assert sizes["adamw"] - sizes["muon"] == matrices - 4 > 0  # a counter more, and three coefficients of the iteration


def test_a_gradient_of_zero_moves_nothing():
    after = one_step(Muon(learning_rate=0.1, **RAW, **ALL), {"w": normal(4, 3)}, {"w": np.zeros((4, 3), np.float32)})
    np.testing.assert_array_equal(after["w"], normal(4, 3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"matrices": ("*/mpl/*",)}, r"optimizer\.matrices: '\*/mpl/\*' matches no matrix; one parameter is 'encoders_image/"),
        ({"matrices": ("*/bias",)}, r"optimizer\.matrices: '\*/bias' matches no matrix"),
        ({"matrices": ()}, ""),
        ({"momentum": 1.0}, r"optimizer\.momentum=1\.0: use a number from 0 and below 1"),
        ({"iterations": 0}, r"optimizer\.iterations=0: use a number from 1"),
    ],
)
def test_what_it_refuses(changes, said):
    if not said:
        Muon(**changes).build(STACK, 1)
        return
    with pytest.raises(UserError, match=said):
        Muon(**changes).build(STACK, 1)


def test_a_model_without_its_matrices_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.matrices: .* matches no matrix; one parameter is 'w'"):
        Muon().build({"w": np.ones((2, 2), np.float32)}, 1)
