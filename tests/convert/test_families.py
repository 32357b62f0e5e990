"""Every family beside HuggingFace's models: answers, bits, layers, gradients, images. `families/` has the data."""

import functools

import jax
import numpy as np
import optax
import pytest
import torch
import transformers
from cases import given, layered, picture
from checks import check_answers, check_folder, each, expected, plain, said, weighted_sum
from families import CASES
from parity import assert_close, check_gradient, compiled, explain, hf_named, round_trip, save

from mmjax.convert import FAMILIES, load
from mmjax.convert.family import ACTIVATIONS
from mmjax.models.forward import VARIABLES
from mmjax.nn.activation import activation
from mmjax.train import SGD, AdamW


def test_every_family_and_class_has_a_case():
    assert CASES.keys() == FAMILIES.keys()
    for name, family in FAMILIES.items():
        assert {made.name for made in CASES[name].models} == family.models.keys(), name


@pytest.mark.parametrize(
    ("case", "made"),
    each(*[(case, made, (made.name, said(made.changes))) for case in CASES.values() for made in case.models], twins=True),
)
def test_answers_and_bits(case, made, tmp_path):
    theirs, batch, answers = expected(case, made)
    model, params = round_trip(theirs, tmp_path)
    check_answers(case, model, params, batch, answers)


@pytest.mark.parametrize("case", each(*[(case, ()) for case in CASES.values() if case.layers]))
def test_layer_by_layer(case, tmp_path):
    layers = case.layers
    theirs, batch, _ = expected(case, layers.made)
    model, params = load(save(theirs, tmp_path / "hf"))
    with torch.no_grad():
        if callable(layers.theirs):
            states = layers.theirs(theirs, batch)
        else:
            output = theirs(**given(theirs, batch, case.silent), output_hidden_states=True)
            states = {name: functools.reduce(getattr, path.split("."), output)[1:] for name, path in layers.theirs.items()}
    ours = layers.ours or (lambda model, params, batch: {name: layered(model, params, batch, name) for name in states})
    found = ours(model, params, batch)
    assert found.keys() == states.keys()
    for name, expect in states.items():
        assert len(found[name]) == len(expect) > 0
        for index, (own, layer) in enumerate(list(zip(found[name], expect, strict=True))[: -1 if layers.normed else None]):
            with explain(f"{name}, layer {index}"):
                assert_close(own, layer, where=case.real(name, batch, layer.shape[1]))


# AdamW's at a fine-tuning rate: its first step moves every weight by the rate, whatever the size of the gradient, and so makes
# the rounding of a gradient that almost cancels as large as that of any other.
SGD_RATE, ADAMW_RATE = 1e-3, 1e-4
SAME = {"schedule": "constant", "clip_norm": 0.0, "no_decay": ()}
OPTIMIZERS = {
    "sgd": (SGD(learning_rate=SGD_RATE, momentum=0.0, **SAME), lambda p: torch.optim.SGD(p, SGD_RATE)),
    "adamw": (
        AdamW(learning_rate=ADAMW_RATE, weight_decay=0.01, **SAME),
        lambda p: torch.optim.AdamW(p, ADAMW_RATE, weight_decay=0.01),
    ),
}
# Their gradient is zero in exact arithmetic, and AdamW makes whole steps of what rounding leaves of it.
KEY_BIAS = ("key.bias", "k_proj.bias", "qkv.bias")


@pytest.mark.parametrize("case", each(*[(case, ()) for case in CASES.values() if case.gradient]))
def test_the_gradient_and_a_step_with_it(case, tmp_path):
    theirs = case.make(case.gradient)
    batch = case.batch(theirs)
    model, params = load(save(theirs, tmp_path / "hf"))
    if case.loss:
        their_loss, our_loss = case.loss[0](theirs, batch), lambda p: case.loss[1](model, p, batch)
    else:
        their_loss, weights = weighted_sum(case, case.gradient, theirs, batch)

        def our_loss(p):
            found = case.ours(model, p, batch, tuple(weights))
            return sum((found[n][:, : w.shape[1]] * w).sum() for n, w in weights.items())

    gradient = check_gradient(theirs, their_loss, model, params, our_loss)
    if case.steps:
        check_step(theirs, model, params, gradient)


def check_step(theirs, model, params, gradient):
    """One step of SGD, and one of AdamW, from the same weights leaves the same weights as PyTorch's."""
    start = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    kept = {name: tree for name, tree in params.items() if name == VARIABLES}
    params, gradient = ({name: x for name, x in tree.items() if name != VARIABLES} for tree in (params, gradient))
    for name, (ours, torchs) in OPTIMIZERS.items():
        with torch.no_grad():
            for key, p in theirs.named_parameters():
                p.copy_(start[key])
        torchs(theirs.parameters()).step()
        tx, trained = ours.build(params, 1), ours.trained(params)

        def step(gradient, params, tx=tx, trained=trained):
            own = trained.of(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, _ = tx.update(trained.of(gradient), tx.init(own), own)
                return trained.put(params, optax.apply_updates(own, updates))

        found = hf_named(model, {**compiled(step)(gradient, params), **kept}, theirs)
        for key, p in theirs.named_parameters():
            if name == "adamw" and key.endswith(KEY_BIAS):
                continue
            wrong = float((torch.tensor(found[key]) - p.detach()).abs().max() / p.detach().abs().max())
            assert wrong <= 1e-5, f"{name}: {key} differs by {wrong:.1e}"
            moved = p.grad is not None and SGD_RATE * float(p.grad.abs().max()) > 1e-5
            assert not moved or not torch.equal(p.detach(), start[key]), key


@pytest.mark.parametrize(
    ("case", "made", "size"),
    each(
        *[
            (case, made, size, (made.name, f"{size[0]}x{size[1]}"))
            for case in CASES.values()
            for made, sizes in case.images
            for size in sizes
        ]
    ),
)
def test_images_of_another_size(case, made, size, tmp_path):
    theirs, batch, _ = expected(case, made)
    batch = {**batch, "image": picture(theirs.config, *size)}
    with torch.no_grad():
        answers = plain(case.theirs(made, theirs, batch))
    check_folder(case, save(theirs, tmp_path / "hf"), batch, answers)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    assert_close(activation(ACTIVATIONS[name])(x), transformers.activations.ACT2FN[name](torch.tensor(x)), rtol=1e-6)
