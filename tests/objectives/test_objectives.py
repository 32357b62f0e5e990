"""What holds for every objective."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import CLS, MASK, PAD, VOCABULARY, FakeForward, calls, fake_batch, fake_params
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.core.errors import UserError
from mmjax.core.types import Loss
from mmjax.objectives import OBJECTIVES
from mmjax.objectives.causal_lm import CausalLM
from mmjax.objectives.classification import Classification
from mmjax.objectives.contrastive import Contrastive
from mmjax.objectives.masked_image import MaskedImage
from mmjax.objectives.masked_lm import MaskedLM
from mmjax.objectives.matching import Matching
from mmjax.objectives.next_sentence import NextSentencePrediction
from mmjax.objectives.triplet import Triplet

MASKED = {"vocab_size": VOCABULARY, "mask_id": MASK, "special_ids": (PAD, CLS), "mask_probability": 0.4}
ALL = {
    "contrastive_softmax": Contrastive(label_smoothing=0.1),
    "contrastive_sigmoid": Contrastive("sigmoid", label_smoothing=0.1),
    "matching_hard": Matching(),
    "matching_random": Matching(negatives="random", scores_from=""),
    "masked_lm": MaskedLM(**MASKED),
    "masked_lm_fused": MaskedLM(**MASKED, head="masked_lm_fused", max_predictions=2),
    "masked_image": MaskedImage(patch=(1, 4), mask_ratio=0.5),
    "next_sentence": NextSentencePrediction(),
    "causal_lm": CausalLM(),
    "classification": Classification(label_smoothing=0.1),
    "classification_focal": Classification(
        head="both", fusion="cross", context=("text", "image"), loss="focal", alpha=(0.2, 0.3, 0.5)
    ),
    "triplet_hard": Triplet(),
    "triplet_semi_hard": Triplet(mining="semi_hard"),
    "triplet_all": Triplet(mining="all"),
}
every = pytest.mark.parametrize("name", ALL)


@partial(jax.jit, static_argnames="names")
def losses(batch, params, names=tuple(ALL)) -> dict[str, Loss]:
    """Of all objectives at once: one compilation for the file instead of one a test."""
    return {name: ALL[name](FakeForward(batch, params), batch, jax.random.key(0)) for name in names}


@jax.jit
@jax.grad
def gradient(params, batch):
    return sum(loss.sum for loss in losses(batch, params).values())


def run(name, batch) -> Loss:
    return losses(batch, fake_params())[name]


def grouped_batch(**changes):
    """Eight valid rows, of which 0 and 3 share a group."""
    group = jnp.array([0, 1, 2, 0, 4, 5, 6, 7], jnp.int32)
    return fake_batch() | {"group": group, "valid": jnp.ones(8, bool)} | changes


def assert_same(found: Loss, expected: Loss) -> None:
    assert found.metrics.keys() == expected.metrics.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), found, expected)


def test_the_table_names_them():
    assert {type(objective) for objective in ALL.values()} <= set(OBJECTIVES.values())


@every
def test_is_a_frozen_spec_that_declares_what_it_reads(name):
    objective = ALL[name]
    assert dataclasses.replace(objective) == objective
    assert hash(objective) == hash(dataclasses.replace(objective))
    assert set(objective.needs) <= set(fake_batch())
    assert objective.in_batch == name.startswith(("contrastive", "matching", "triplet"))
    routed = ("image", "text", "text_mask")  # what the head and the decoder read, which the model says
    assert calls(objective, {key: value for key, value in fake_batch().items() if key in (*objective.needs, *routed)})


@every
def test_sums_and_counts_are_float32_scalars(name):
    loss = run(name, grouped_batch())
    for value in jax.tree.leaves(loss):
        assert value.shape == () and value.dtype == jnp.float32
    assert loss.sum > 0 and loss.count > 0
    for total, count in loss.metrics.values():
        assert 0 <= total <= count


@every
def test_rows_that_are_not_valid_leave_no_trace(name):
    padded = grouped_batch(group=jnp.array([0, 1, 2, 0, 4, 5, 0, 4], jnp.int32), valid=jnp.arange(8) < 6)
    alone = {key: value[:6] for key, value in padded.items() if key != "valid"}
    assert_same(run(name, padded), run(name, alone))


def test_nothing_to_count_has_no_loss_and_no_gradient():
    batch = grouped_batch(valid=jnp.zeros(8, bool))
    for name in ALL:
        assert (run(name, batch).sum, run(name, batch).count) == (0, 0), name
    assert all(not np.any(leaf) for leaf in gradient(fake_params(), batch).values())


def test_one_group_and_a_row_without_text_stay_finite():
    batch = grouped_batch(group=jnp.zeros(8, jnp.int32))
    batch["text_mask"] = batch["text_mask"].at[2].set(False)
    for name in ALL:
        assert np.isfinite(run(name, batch).sum), name
        assert (run(name, batch).count == 0) == name.startswith(("matching", "triplet")), name
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient(fake_params(), batch).values())


def test_a_batch_split_over_devices_gives_the_same_losses():
    batch = grouped_batch()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    names = ("contrastive_softmax", "matching_hard", "masked_lm_fused", "triplet_semi_hard")
    split = losses(jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data"))), fake_params(), names)
    for name in names:
        assert_same(split[name], run(name, batch))


@pytest.mark.parametrize("name", [name for name in ALL if not ALL[name].in_batch])
def test_parts_of_a_batch_add_up(name):
    first = jnp.arange(8) < 3
    parts = [run(name, grouped_batch(valid=valid)) for valid in (first, ~first)]
    assert_same(jax.tree.map(lambda *values: sum(values), *parts), run(name, grouped_batch()))


@given(order=st.permutations(range(8)))
def test_the_order_of_the_batch_does_not_matter(order):
    batch = grouped_batch()
    shuffled = {key: value[jnp.array(order)] for key, value in batch.items()}
    for name in ALL:
        if not name.startswith("matching"):  # its draws are over places in the batch
            assert_same(run(name, shuffled), run(name, batch))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Contrastive("sigmiod"), "contrastive.kind='sigmiod': use one of softmax, sigmoid (did you mean 'sigmoid'?)"),
        (lambda: Contrastive(label_smoothing=1.0), "contrastive.label_smoothing=1.0: use a number from 0 up to"),
        (lambda: Contrastive(modalities=("text", "text")), "contrastive.modalities=('text', 'text'): name two different"),
        (lambda: Matching(negatives="easy"), "matching.negatives='easy': use one of hard, random"),
        (
            lambda: Triplet(mining="semihard"),
            "triplet.mining='semihard': use one of hard, semi_hard, all (did you mean 'semi_hard'?)",
        ),
        (lambda: Triplet(margin=-1.0), "triplet.margin=-1.0: use a number of at least 0"),
        (
            lambda: Classification(loss="focl"),
            "classification.loss='focl': use one of cross_entropy, focal (did you mean 'focal'?)",
        ),
        (
            lambda: Classification(loss="focal", label_smoothing=0.1),
            "classification.label_smoothing=0.1: the focal loss takes 0",
        ),
        (
            lambda: Classification(alpha=(1.0,)),
            "classification.alpha=(1.0,): that is the focal loss's; cross entropy has class_weights",
        ),
        (
            lambda: Classification(context=("text",)),
            "classification.context=('text',): name the fusion that joins it to modality=''",
        ),
        (lambda: MaskedLM(vocab_size=9, mask_id=9), "masked_lm.mask_id=9: use an id below vocab_size=9"),
        (lambda: MaskedLM(**MASKED | {"mask_probability": 0.0}), "masked_lm.mask_probability=0.0: use a number above 0"),
        (lambda: MaskedLM(**MASKED, max_predictions=0), "masked_lm.max_predictions=0: use a number of at least 1"),
        (lambda: MaskedImage(mask_ratio=1.0), "masked_image.mask_ratio=1.0: use a number above 0 and below 1"),
        (lambda: MaskedImage(patch=(0, 4)), "masked_image.patch=(0, 4): use a height and a width of at least 1 pixel"),
        (lambda: CausalLM(label_smoothing=-0.1), "causal_lm.label_smoothing=-0.1: use a number from 0"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(build, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        build()
    assert "\n" not in str(error.value)
