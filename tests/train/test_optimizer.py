"""Optimizers against torch and against formulas written out; schedules, decay, clipping, rates and freezing by path."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from pytorch import torch

import mmjax
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, match_any
from mmjax.models import Multimodal
from mmjax.models.decoders import PixelDecoder
from mmjax.models.encoders import ViT
from mmjax.models.fusion import Dual, SingleStream
from mmjax.models.heads import Classifier
from mmjax.models.multimodal import param_shapes
from mmjax.train import OPTIMIZERS, SGD, Adafactor, AdamW, Lion
from mmjax.train.optimizer import NO_DECAY, Optimizer, rate_factors

STEPS = 6
OWN = {"muon": {"matrices": ("*",)}}  # what an optimizer needs to be told of the small trees here
RAW = {"schedule": "constant", "clip_norm": 0.0}
START = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
TARGET = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
SCALE = np.linspace(0.2, 3.0, 12, dtype=np.float32).reshape(3, 4)


def gradient(w):
    """Of a quadratic bowl, steeper in some directions than in others."""
    return SCALE * (w - TARGET)


def run(optimizer: Optimizer, params, gradients, steps=STEPS):
    """The parameters after each step, and the optimizer's state."""
    tx, trained = optimizer.build(params, steps), optimizer.trained(params)

    @jax.jit
    def step(params, state, gradient):
        own = trained.of(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(trained.of(gradient), state, own)
        return trained.put(params, jax.tree.map(jnp.add, own, updates)), state

    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(trained.of(params))
    seen = []
    for i in range(steps):
        params, state = step(params, state, gradients(params, i))
        seen.append(params)
    return seen, state


def descend(optimizer: Optimizer, steps=STEPS) -> list[np.ndarray]:
    """The path down the bowl of a parameter that is decayed."""
    seen, _ = run(optimizer, {"w": jnp.asarray(START)}, lambda p, _: {"w": gradient(p["w"])}, steps)
    return [np.asarray(p["w"]) for p in seen]


def by_hand(update) -> list[np.ndarray]:
    """The same path in float64: `update(w, gradient, step)` gives the next w."""
    w, seen = START.astype(np.float64), []
    for i in range(STEPS):
        w = update(w, gradient(w), i)
        seen.append(w)
    return seen


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            AdamW(learning_rate=0.03, weight_decay=0.1, b1=0.8, b2=0.95, **RAW),
            lambda w: torch.optim.AdamW([w], lr=0.03, weight_decay=0.1, betas=(0.8, 0.95)),
        ),
        (SGD(learning_rate=0.03, momentum=0.9, **RAW), lambda w: torch.optim.SGD([w], lr=0.03, momentum=0.9)),
        (
            SGD(learning_rate=0.03, nesterov=True, **RAW),
            lambda w: torch.optim.SGD([w], lr=0.03, momentum=0.9, nesterov=True),
        ),
        (SGD(learning_rate=0.03, momentum=0.0, **RAW), lambda w: torch.optim.SGD([w], lr=0.03)),
    ],
    ids=["adamw", "momentum", "nesterov", "plain"],
)
def test_adamw_and_sgd_equal_torch(ours, theirs):
    w = torch.tensor(START, requires_grad=True)
    optimizer = theirs(w)
    for seen in descend(ours):
        w.grad = torch.tensor(SCALE) * (w.detach() - torch.tensor(TARGET))
        optimizer.step()
        np.testing.assert_allclose(seen, w.detach().numpy(), rtol=2e-6, atol=1e-6)


def test_lion_is_algorithm_2_of_its_paper():
    m = np.zeros_like(START, np.float64)

    def update(w, g, _):
        nonlocal m
        direction = np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
        return w - 0.01 * (direction + 0.1 * w)

    ours = descend(Lion(learning_rate=0.01, weight_decay=0.1, **RAW))
    np.testing.assert_allclose(ours, by_hand(update), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factored", [False, True])
def test_adafactor_is_algorithms_2_and_4_of_its_paper(factored):
    v, row, column = np.zeros((3, 4)), np.zeros((3, 1)), np.zeros((1, 4))

    def update(w, g, i):
        nonlocal v, row, column
        decay, square = 1 - (i + 1) ** -0.8, g**2 + 1e-30
        v = decay * v + (1 - decay) * square
        row = decay * row + (1 - decay) * square.mean(1, keepdims=True)
        column = decay * column + (1 - decay) * square.mean(0, keepdims=True)
        u = g / np.sqrt(row @ column / row.mean() if factored else v)
        return w - 0.03 * u / max(1.0, np.sqrt(np.mean(u**2)))

    ours = descend(Adafactor(learning_rate=0.03, min_dim=2 if factored else 128, **RAW))
    np.testing.assert_allclose(ours, by_hand(update), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_down(name):
    """From the defaults, clipping and cosine included."""
    rate = {"lion": 0.05, "muon": 0.5}.get(name, 0.1)
    last = descend(OPTIMIZERS[name](learning_rate=rate, **OWN.get(name, {})), steps=60)[-1]
    assert np.sum(SCALE * (last - TARGET) ** 2) < 0.05 * np.sum(SCALE * (START - TARGET) ** 2)


def test_the_base_class_is_no_optimizer():
    with pytest.raises(TypeError, match="is no optimizer"):
        Optimizer().build({"w": START}, 1)


@pytest.mark.parametrize(
    ("schedule", "count", "factor"),
    [
        ("cosine", 0, 0.0),
        ("cosine", 5, 0.5),
        ("cosine", 10, 1.0),
        ("cosine", 60, 0.1 + 0.9 * 0.5),
        ("cosine", 35, 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 4))),
        ("cosine", 110, 0.1),
        ("linear", 60, 0.55),
        ("linear", 110, 0.1),
        ("linear", 500, 0.1),
        ("constant", 9, 0.9),
        ("constant", 110, 1.0),
    ],
)
def test_schedules_at_given_counts(schedule, count, factor):
    rate = AdamW(learning_rate=0.02, schedule=schedule, warmup_steps=10, end_factor=0.1).rate(110)
    with jax.numpy_dtype_promotion("standard"):
        assert float(rate(jnp.int32(count))) == pytest.approx(0.02 * factor, rel=1e-5, abs=1e-9)


def test_clipping_is_of_the_global_norm():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    plain = SGD(learning_rate=1.0, momentum=0.0, schedule="constant", clip_norm=2.0)
    (clipped,), _ = run(plain, params, lambda *_: gradients, 1)
    np.testing.assert_allclose([*clipped["a"], *clipped["b"]], [-1.2, 0.0, -1.6], rtol=1e-6)


def test_only_kernels_and_tables_are_decayed():
    """Layers are stacked, so the biases of a stack have two dims, and a rule by dims would take them for kernels."""
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), param_shapes(tiny.model()))
    optimizer = SGD(learning_rate=0.5, weight_decay=0.1, **RAW)
    zeros = jax.tree.map(np.zeros_like, params)
    (after,), _ = run(optimizer, params, lambda *_: zeros, 1)
    decayed = {path for path, leaf in leaves_by_path(after).items() if (np.asarray(leaf) != 1).any()}
    assert {path.rsplit("/")[-1] for path in decayed} == {"kernel", "table"}
    assert decayed == {path for path in leaves_by_path(params) if path.endswith(("kernel", "table"))}
    assert params["encoders_image"]["stack"]["layers"]["mlp"]["up"]["bias"].ndim == 2
    for path in decayed:
        np.testing.assert_allclose(leaves_by_path(after)[path], 0.95, rtol=1e-6)


def spared(params) -> set[str]:
    """The paths that weight decay leaves alone."""
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), params)
    tx = SGD(learning_rate=0.5, momentum=0.0, weight_decay=0.1, **RAW).build(ones, 1)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(jax.tree.map(np.zeros_like, ones), tx.init(ones), ones)
    return {path for path, update in leaves_by_path(updates).items() if (np.asarray(update) == 0).all()}


def test_the_name_of_a_part_spares_nothing():
    size = {"width": 16, "depth": 1, "heads": 2}
    names = ("classes", "abnormality", "mixture", "clsification", "x_type", "bias", "norm", "fixed_position")
    model = Multimodal(
        encoders={name: ViT(image_size=(8, 8), patch=(4, 4), **size) for name in names},
        fusions={"dual": Dual(width=8, pool=dict.fromkeys(names, "mean"), project=names)},
        heads={name: Classifier(classes=3, input=name) for name in names},
    )
    shapes = param_shapes(model)
    ends = {path.rsplit("/")[-1] for path in leaves_by_path(shapes).keys() - spared(shapes)}
    assert ends == {"kernel", "table"}
    assert not [path for path in spared(shapes) if path.endswith(("/kernel", "/table"))]


def test_every_learned_token_is_spared():
    size = {"width": 8, "depth": 1, "heads": 2}
    image = {"image_size": (8, 8), "patch": (4, 4), "cls_token": True, "extra_tokens": 1, "mask_token": True}
    model = Multimodal(
        encoders={"image": ViT(**image, **size)},
        fusions={
            "dual": Dual(width=8, pool={"image": "attention"}, heads=2),
            "single": SingleStream(modalities=("image",), **size),
        },
        decoders={"pixels": PixelDecoder(image_size=(8, 8), patch=(4, 4), firsts=2, **size)},
        heads={"classes": Classifier(classes=3, pool="attention", heads=2)},
    )
    ends = {path.rsplit("/")[-1] for path in spared(param_shapes(model))}
    assert {"cls", "extra", "mask_token", "probe", "image_type"} <= ends


def test_what_is_no_kernel_and_no_table_is_spared_in_every_module():
    """Whatever a module of ours calls a parameter (`self.param("NAME", ...)`): a new one is no oversight."""
    rooms = [Path(mmjax.__file__).parent / room for room in ("nn", "models")]
    sources = [path.read_text() for room in rooms for path in room.rglob("*.py")]
    names = {name for source in sources for name in re.findall(r"self\.param\(f?\"([^\"]+)\"", source)}
    assert {"kernel", "table", "probe", "mask_token", "{name}_layer_scale"} <= names
    decayed = {name for name in names if not match_any(NO_DECAY, f"part/{name}")}
    assert decayed == {"kernel", "table"}


STACK = {
    "encoders_image": {
        "project_patches": {"kernel": np.ones((2, 2), np.float32)},
        "stack": {
            "layers": {"mlp": {"kernel": np.ones((3, 2, 2), np.float32), "bias": np.ones((3, 2), np.float32)}},
            "final_norm": {"scale": np.ones(2, np.float32)},
        },
    },
    "heads_classes": {"logits": {"kernel": np.ones((2, 2), np.float32)}},
}
LAYERS = "encoders_image/stack/layers/mlp"


def test_layer_decay_by_formula():
    """Layer l of L = 3 has decay ** (L - l), embeddings decay ** (L + 1), what follows the layers the full rate."""
    factors = leaves_by_path(rate_factors(AdamW(layer_decay=0.5), STACK))
    np.testing.assert_allclose(factors[f"{LAYERS}/kernel"].ravel(), [0.5**3, 0.5**2, 0.5])
    np.testing.assert_allclose(factors[f"{LAYERS}/bias"].ravel(), [0.5**3, 0.5**2, 0.5])
    assert factors["encoders_image/project_patches/kernel"] == 0.5**4
    assert factors["encoders_image/stack/final_norm/scale"] == 1.0
    assert factors["heads_classes/logits/kernel"] == 1.0


def test_rates_multiply():
    optimizer = AdamW(layer_decay=0.5, rates={"encoders_*": 0.1, "*/bias": 2.0})
    factors = leaves_by_path(rate_factors(optimizer, STACK))
    np.testing.assert_allclose(factors[f"{LAYERS}/kernel"].ravel(), [0.0125, 0.025, 0.05], rtol=1e-6)
    np.testing.assert_allclose(factors[f"{LAYERS}/bias"].ravel(), [0.025, 0.05, 0.1], rtol=1e-6)
    assert factors["heads_classes/logits/kernel"] == 1.0


def test_layers_that_are_trained_keep_their_own_rates():
    """Frozen layers below them are left out of the tree, and not of the count of layers."""
    one = jax.tree.map(np.ones_like, STACK)
    optimizer = SGD(momentum=0.0, layer_decay=0.5, learning_rate=1.0, freeze=("encoders_image/*[:1]",), **RAW)
    (moved,), _ = run(optimizer, STACK, lambda *_: one, 1)
    np.testing.assert_allclose(leaves_by_path(moved)[f"{LAYERS}/bias"][:, 0], [1.0, 1 - 0.25, 1 - 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_frozen_stays_bit_for_bit(name):
    """Decay included, whatever the gradient; a part of a stack by its slice."""
    freeze = ("heads_*", "encoders_image/*[:2]")
    optimizer = OPTIMIZERS[name](learning_rate=0.1, weight_decay=0.1, freeze=freeze, **OWN.get(name, {}))
    params = jax.tree.map(lambda x: np.asarray(np.random.default_rng(2).normal(size=x.shape), np.float32), STACK)
    ones = jax.tree.map(np.ones_like, params)
    seen, state = run(optimizer, params, lambda *_: ones, 3)
    before, after = leaves_by_path(params), leaves_by_path(seen[-1])
    np.testing.assert_array_equal(after["heads_classes/logits/kernel"], before["heads_classes/logits/kernel"])
    for part in ("kernel", "bias"):
        old, new = before[f"{LAYERS}/{part}"], np.asarray(after[f"{LAYERS}/{part}"])
        np.testing.assert_array_equal(new[:2], old[:2])
        assert (new[2] != old[2]).all()
    assert (after["encoders_image/project_patches/kernel"] != before["encoders_image/project_patches/kernel"]).all()
    assert not any("heads_classes" in path for path in leaves_by_path(state))  # nothing is kept for it


@pytest.mark.parametrize("changes", [{"freeze": ("head_*",)}, {"freeze": ("head_*[:2]",)}, {"rates": {"head_*": 0.1}}])
def test_a_pattern_that_matches_nothing_is_refused(changes):
    field = next(iter(changes))
    said = rf"optimizer.{field}: 'head_\*(\[:2\])?' matches no parameter.*; one is 'encoders_image/"
    with pytest.raises(UserError, match=said):
        AdamW(**changes).build(STACK, 1)
