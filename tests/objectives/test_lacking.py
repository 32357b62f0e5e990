"""Rows that lack modalities: they count where they have what is read, and what they lack has exactly no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Loss
from mmjax.evaluate.prompts import context_of
from mmjax.models import Multimodal, param_shapes
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import AudioTransformer, TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Concatenate, Cross, Dual, SingleStream, Weighted
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.models.teaching import Teaching
from mmjax.nn.spectrogram import LogMel
from mmjax.objectives import CTC, CausalLM, Classification, Contrastive, DistilLogits, Matching
from mmjax.objectives.lacking import counting
from mmjax.objectives.mixing import MixUp

ROWS, KEY = 6, jax.random.key(3)
SIZE = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 8}
THREE = ("image", "text", "audio")
FUSED = {
    "joined": SingleStream(modalities=THREE, **SIZE),
    "late": Concatenate(width=8, modalities=THREE),
    "weighed": Weighted(width=8, modalities=THREE),
    "read": Cross(query="text", context="image", **SIZE),
    "begun": SingleStream(modalities=("image", "text"), cls_token=True, **SIZE),
}
OBJECTIVES = {
    **{name: Classification(head=name) for name in (*FUSED, "image", "together")},
    "contrast": Contrastive(modalities=THREE),
    "caption": CausalLM(decoder="caption", context=("image",)),
    "matching": Matching(head="read", fusion="read"),
}


@functools.cache
def model():
    inputs = {**{name: name for name in FUSED}, "image": "image", "together": "dual:image"}
    return Multimodal(
        encoders={
            "image": ViT(image_size=(4, 4), patch=(2, 2), cls_token=True, **SIZE),
            "text": TextTransformer(vocab_size=11, max_length=5, **SIZE),
            "audio": AudioTransformer(spectrogram=LogMel(mels=4), max_length=4, **SIZE),
        },
        fusions={**FUSED, "dual": Dual(width=8, pool={"image": "cls", "text": "mean", "audio": "mean"}, project=THREE)},
        decoders={"caption": TextDecoder(vocab_size=11, max_length=5, context=("image",), **SIZE)},
        heads={
            **{name: Classifier(classes=2 if name == "read" else 3, input=own) for name, own in inputs.items()},
            "ctc": TokenClassifier(classes=11, input="audio", transform=False),
        },
        dtype="float32",
    )


@functools.cache
def params():
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), param_shapes(model()))


def batch(has, garbage=0.0):
    """`has`: modality -> which rows have it; what the others hold is `garbage`."""
    rng = np.random.default_rng(2)
    own = {
        "image": rng.normal(size=(ROWS, 4, 4, 3)).astype(np.float32),
        "text": rng.integers(1, 11, (ROWS, 5)).astype(np.int32),
        "text_mask": np.arange(5)[None] < rng.integers(3, 6, ROWS)[:, None],
        "audio": rng.normal(size=(ROWS, 6, 4)).astype(np.float32),
        "audio_mask": np.ones((ROWS, 6), bool),
        "label": np.arange(ROWS, dtype=np.int32) % 2,
        "index": np.arange(ROWS, dtype=np.int32),
    }
    for name, rows in has.items():
        own[f"{name}_valid"] = np.asarray(rows, bool)
        for key in (name, f"{name}_mask"):
            if key in own:
                own[key] = own[key].copy()
                own[key][~own[f"{name}_valid"]] = 0 if own[key].dtype == bool else own[key].dtype.type(garbage)
    return own


@jax.jit
def losses(params, batch):
    """Name -> the loss of each objective, by one forward as a step has it."""
    forward = BoundForward(model(), params, batch)
    return {name: counting(one, forward, batch, KEY) for name, one in OBJECTIVES.items()}


@jax.jit
def gradients(params, batch):
    """Path -> [objectives, ...]: of the sum of each."""

    def sums(params):
        return jnp.stack([one.sum for one in losses(params, batch).values()])

    return leaves_by_path(jax.jacrev(sums)(params))


SOME = {"image": [1, 0, 1, 1, 0, 0], "text": [1, 1, 0, 1, 1, 0], "audio": [1, 1, 1, 0, 0, 1]}


def rows_of(*needed, any_of=()):
    """How many rows of `SOME` have all of these, and any of those."""
    own = np.ones(ROWS, bool)
    for name in needed:
        own &= np.array(SOME[name], bool)
    return int((own & np.any([np.array(SOME[name], bool) for name in any_of], axis=0) if any_of else own).sum())


def test_a_row_counts_where_it_has_what_is_read():
    found = losses(params(), batch(SOME))
    counts = {name: float(loss.count) for name, loss in found.items()}
    for name in ("joined", "late", "weighed"):
        assert counts[name] == rows_of(any_of=THREE) == 6
    assert counts["begun"] == rows_of(any_of=("image", "text"))
    assert counts["read"] == rows_of("text") and counts["image"] == counts["together"] == rows_of("image")
    pairs = [rows_of("image", "text"), rows_of("image", "audio"), rows_of("text", "audio")]
    np.testing.assert_allclose(counts["contrast"], sum(pairs) / 3, rtol=1e-6)
    assert counts["matching"] == 3 * rows_of("image", "text")
    data = batch(SOME)
    both = data["text_valid"] & data["image_valid"]
    assert counts["caption"] == (data["text_mask"][both].sum(axis=1) - 1).sum()


def test_the_loss_is_that_of_the_rows_that_have_it():
    data = batch(SOME)
    found = losses(params(), data)
    kept = {"image": data["image_valid"], "caption": data["image_valid"] & data["text_valid"], "read": data["text_valid"]}
    for name, rows in kept.items():
        alone = {key: x[rows] for key, x in data.items() if name == "read" or not key.endswith("_valid")}
        forward = BoundForward(model(), params(), alone)
        own = counting(OBJECTIVES[name], forward, alone, KEY)
        np.testing.assert_allclose(found[name].sum, own.sum, rtol=2e-6)
        assert found[name].count == own.count


def test_three_in_contrast_are_the_pairs_that_there_are():
    data = batch(SOME)
    total = 0.0
    for pair in (("image", "text"), ("image", "audio"), ("text", "audio")):
        rows = data[f"{pair[0]}_valid"] & data[f"{pair[1]}_valid"]
        own = {key: x[rows] for key, x in data.items() if not key.endswith("_valid")}
        total += float(Contrastive(modalities=pair)(BoundForward(model(), params(), own), own, KEY).sum)
    np.testing.assert_allclose(losses(params(), data)["contrast"].sum, total / 3, rtol=2e-6)


def test_what_lies_where_something_is_lacking_changes_no_bit():
    for clean, other in zip(
        jax.tree.leaves((losses(params(), batch(SOME)), gradients(params(), batch(SOME)))),
        jax.tree.leaves((losses(params(), batch(SOME, garbage=7.0)), gradients(params(), batch(SOME, garbage=7.0)))),
        strict=True,
    ):
        np.testing.assert_array_equal(clean, other)


@pytest.mark.parametrize("gone", THREE)
def test_what_no_row_has_gets_exactly_no_gradient(gone):
    found = gradients(params(), batch(SOME | {gone: [0] * ROWS}))
    own = {path: x for path, x in found.items() if path.startswith(f"encoders_{gone}")}
    assert own and all(np.all(np.asarray(x) == 0) for x in own.values())
    rest = {path: x for path, x in found.items() if path.startswith("encoders_") and path not in own}
    assert all(np.all(np.isfinite(x)) for x in found.values())
    assert all(any(np.any(np.asarray(x) != 0) for path, x in rest.items() if other in path) for other in THREE if other != gone)


def test_a_batch_without_lacking_rows_is_computed_as_before():
    whole = batch({})
    has = batch({name: [1] * ROWS for name in THREE})
    for one, other in zip(*(jax.tree.leaves(losses(params(), data)) for data in (whole, has)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_an_objective_of_ones_own_needs_to_know_nothing():
    def own(forward, batch, rng):
        """The mean over all rows that are valid, by the embeddings of two modalities."""
        near = jnp.sum(forward.embed("image") * forward.encode("text").embeddings[:, 0], axis=1)
        valid = batch.get("valid", jnp.ones(near.shape, bool))
        return Loss(jnp.sum(jnp.where(valid, near, 0.0)), jnp.sum(valid.astype(jnp.float32)))

    data = batch(SOME)
    assert counting(own, BoundForward(model(), params(), data), data, KEY).count == rows_of("image", "text")
    data["valid"] = np.arange(ROWS) < 1
    assert counting(own, BoundForward(model(), params(), data), data, KEY).count == 1


def test_a_lacking_text_is_no_empty_one():
    data = batch(SOME)
    data["text_mask"][:, 2:] = False
    assert counting(CTC(), BoundForward(model(), params(), data), data, KEY).count == rows_of("text", "audio")


def test_a_row_counts_where_a_teacher_too_has_what_it_reads():
    data = batch(SOME)
    forward = BoundForward(model(), params(), data, teachers={"old": (Teaching(model()), params())})
    objective = DistilLogits(teacher="old", head="late", teacher_head="image")
    assert counting(objective, forward, data, KEY).count == rows_of("image")


def test_mixing_refuses_images_that_may_be_lacking():
    data = batch(SOME)
    forward = BoundForward(model(), params(), data, jax.random.key(0))
    with pytest.raises(UserError, match="'image' has 'image_valid' beside it"):
        Classification(head="image", mix=MixUp())(forward, data, KEY)


def test_a_text_is_asked_of_what_is_there_to_look_at():
    data = batch(SOME)
    forward = BoundForward(model(), params(), data)
    context_of(forward, "caption", "text", data)
    np.testing.assert_array_equal(forward.complete(), data["image_valid"])
