"""MixUp and CutMix: images and labels by numpy, losses by PyTorch's cross entropy of soft labels, the same on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_forward import FakeForward, fake_batch, fake_params
from jax.sharding import NamedSharding, PartitionSpec
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.core.random import fold_name
from mmjax.objectives import Classification, MultiLabel, mixing
from mmjax.objectives.mixing import MIXES, CutMix, MixOrCut, MixUp, mixed, partner

SHARE = mixing._share
KINDS = {"mixup": MixUp(1.0), "cutmix": CutMix(1.0), "mix_or_cut": MixOrCut(MixUp(1.0), CutMix(1.0))}
every = pytest.mark.parametrize("kind", KINDS)
LABELS = jnp.array([0, 2, 1, 1, 0, -1, 2, 1], jnp.int32)  # row 5 has none, nor has row 1 a partner
WEIGHTS = (1.0, 2.0, 4.0)
LOSSES = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "weighted": {"class_weights": WEIGHTS, "label_smoothing": 0.1},
    "focal": {"loss": "focal", "alpha": (0.2, 0.3, 0.5)},
}


def images(size=8, side=16, seed=0):
    return np.random.default_rng(seed).normal(size=(size, side, side + 4, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def even_shares(monkeypatch):
    """Beta(1, 1) by a draw that compiles at once; the real one has a test of its own."""
    monkeypatch.setattr(mixing, "_share", lambda key, alpha: jax.random.uniform(fold_name(key, "share")))


@functools.partial(jax.jit, static_argnums=0)
def of_keys(mix, x, pairs, keys):
    return jax.vmap(lambda key: mix(x, pairs, key))(keys)


@functools.partial(jax.jit, static_argnums=(0, 3))
def trained(mix, batch, key, losses=("plain",)):
    """The losses, the mixed images that they were of, and the shares."""
    seen = mixed(mix, FakeForward(batch, fake_params()), "classes", batch["label"] >= 0, key)
    found = {name: Classification(mix=mix, **LOSSES[name])(FakeForward(batch, fake_params()), batch, key) for name in losses}
    return found, seen[0].batch["image"], seen[1]


@every
def test_images_are_mixed_by_the_share_that_is_told(kind):
    x, pairs = images(), np.array([True, False] * 2 + [True, False] * 2)
    other = x[(np.arange(8) + 4) % 8]
    found, shares = of_keys(KINDS[kind], x, pairs, jax.random.split(jax.random.key(1), 64))
    assert shares.dtype == jnp.float32 and (np.asarray(shares)[:, ~pairs] == 1).all()
    for mix, share in zip(np.asarray(found), np.asarray(shares), strict=True):
        np.testing.assert_array_equal(mix[~pairs], x[~pairs])
        assert len(set(share[pairs].tolist())) == 1
        cut = (mix[pairs] == x[pairs]) | (mix[pairs] == other[pairs])
        if cut.all():
            taken = (mix[pairs] != x[pairs]).any(axis=(0, 3))
            rows, columns = np.flatnonzero(taken.any(axis=1)), np.flatnonzero(taken.any(axis=0))
            assert taken.sum() == len(rows) * len(columns) and np.ptp(rows) + 1 == len(rows) if taken.any() else True
            np.testing.assert_allclose(1 - share[0], taken.mean(), atol=1e-6)  # the area of the box
        else:
            assert kind != "cutmix"
            np.testing.assert_allclose(mix[pairs], share[0] * x[pairs] + (1 - share[0]) * other[pairs], atol=1e-6)


def test_shares_are_of_their_distributions():
    keys, alphas = jax.random.split(jax.random.key(0), 4000), jnp.array([0.2, 1.0, 4.0])
    shares = jax.jit(jax.vmap(lambda alpha: jax.vmap(lambda key: SHARE(key, alpha))(keys)))(alphas)
    for alpha, share in zip(alphas.tolist(), np.sort(np.asarray(shares)), strict=True):
        drawn = np.sort(np.random.default_rng(0).beta(alpha, alpha, 4000))
        assert np.abs(share - drawn).max() < 0.07 and abs(share.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
    x, pairs = images(2, 12), np.ones(2, bool)
    _, share = of_keys(CutMix(1.0), x, pairs, keys)
    assert abs(np.asarray(share)[:, 0].mean() - corrected(12, 16)) < 0.02
    _, share = of_keys(MixOrCut(MixUp(1.0, 0.5), CutMix(1.0, 0.0)), x, pairs, keys)
    assert 0.2 < (np.asarray(share)[:, 0] < 1).mean() < 0.3


def corrected(height, width):
    """The mean share of CutMix by torchvision's lines, with numpy's draws."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        r = 0.5 * np.sqrt(1 - rng.beta(1.0, 1.0))
        r_x, r_y, w, h = rng.integers(width), rng.integers(height), int(r * width), int(r * height)
        x1, x2 = max(r_x - w, 0), min(r_x + w, width)
        y1, y2 = max(r_y - h, 0), min(r_y + h, height)
        found.append(1 - (x2 - x1) * (y2 - y1) / (width * height))
    return np.mean(found)


@every
def test_the_loss_is_torchs_of_soft_labels_on_the_mixed_images(kind):
    losses, image, share = trained(KINDS[kind], fake_batch() | {"label": LABELS}, jax.random.key(3), tuple(LOSSES))
    share, labels = np.asarray(share, np.float64), np.asarray(LABELS)
    others, known = labels[(np.arange(8) + 4) % 8], labels >= 0
    assert share[1] == share[5] == 1 and (share[[0, 2, 3, 4, 6, 7]] < 1).all()
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), fake_params())
    rows = np.asarray(image, np.float64).reshape(8, 4, 12)[known] @ params["encoders_image"]
    logits = torch.tensor(rows.mean(1) @ params["classes"])
    soft = (share[:, None] * np.eye(3)[labels] + (1 - share[:, None]) * np.eye(3)[others])[known]
    larger = np.where(share >= 0.5, labels, others)[known]
    for name, found in losses.items():
        if name == "focal":
            p = torch.softmax(logits, 1)
            expected = (torch.tensor(soft) * -((1 - p) ** 2) * torch.log(p) * torch.tensor((0.2, 0.3, 0.5))).sum()
        else:
            own = {"label_smoothing": LOSSES[name].get("label_smoothing", 0.0), "reduction": "sum"}
            weight = torch.tensor(WEIGHTS, dtype=torch.float64) if name == "weighted" else None
            expected = torch.nn.functional.cross_entropy(logits, torch.tensor(soft), weight, **own)
        np.testing.assert_allclose(found.sum, expected, rtol=2e-5, err_msg=name)
        np.testing.assert_allclose(found.count, (soft @ WEIGHTS).sum() if name == "weighted" else 7, rtol=1e-6)
        right, count = map(float, found.metrics["mixed_accuracy"])
        assert (right, count) == ((logits.argmax(1).numpy() == larger).sum(), 7)
        np.testing.assert_allclose(found.metrics["share"][0] / 7, share[known].mean(), rtol=1e-6)
        assert set(found.metrics) == {"mixed_accuracy", "share"}


@every
def test_several_labels_are_mixed_and_what_one_does_not_know_counts_nowhere(kind):
    labels = np.random.default_rng(0).integers(0, 2, (8, 3)).astype(np.float32)
    labels[2], labels[0, 1], labels[7, 2] = -1, np.nan, -1
    batch = fake_batch() | {"labels": jnp.asarray(labels)}
    objective, key = MultiLabel(mix=KINDS[kind]), jax.random.key(3)

    @jax.jit
    def run(batch):
        known = (batch["labels"] >= 0).any(axis=1)
        seen, share = mixed(KINDS[kind], FakeForward(batch, fake_params()), "classes", known, key)
        return objective(FakeForward(batch, fake_params()), batch, key), seen.head("classes"), share

    found, logits, share = run(batch)
    share, other = np.asarray(share)[:, None], labels[(np.arange(8) + 4) % 8]
    assert share[2] == share[6] == 1 and share[0] < 1
    soft = np.where(share < 1, share * labels + (1 - share) * other, labels)
    known = (labels >= 0) & ((other >= 0) | (share == 1))
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(np.asarray(logits)), torch.tensor(np.where(known, soft, 0)), reduction="none"
    )
    np.testing.assert_allclose(found.sum, losses[torch.tensor(known)].sum(), rtol=1e-5)
    assert float(found.count) == known.sum() and set(found.metrics) == {
        f"mixed_{name}" for name in ("accuracy", "precision", "recall")
    }
    right = (np.asarray(logits) > 0) == (soft > 0.5)
    assert float(found.metrics["mixed_accuracy"][0]) == right[known].sum()


def test_an_evaluation_and_other_objectives_see_what_is_there():
    batch, forward = fake_batch(), FakeForward(fake_batch(), fake_params(), train=False)
    plain, mix = (Classification(**own)(forward, batch, jax.random.key(0)) for own in ({}, {"mix": MixUp()}))
    jax.tree.map(np.testing.assert_array_equal, plain, mix)
    seen = FakeForward(batch, fake_params())
    jax.eval_shape(lambda: Classification(mix=MixUp())(seen, batch, jax.random.key(0)))
    assert seen.batch is batch and not seen.calls  # what is encoded of a mixture is another forward's


@every
def test_the_loss_is_the_same_split_over_devices_and_in_micro_batches(kind):
    batch, key = fake_batch(16) | {"label": jnp.tile(LABELS, 2).at[0].set(2)}, jax.random.key(5)
    whole = trained(KINDS[kind], batch, key)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = trained(KINDS[kind], jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data"))), key)
    same = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)
    jax.tree.map(same, split, whole)
    losses = [trained(KINDS[kind], {name: x[part::4] for name, x in batch.items()}, key)[0] for part in range(4)]
    jax.tree.map(same, jax.tree.map(lambda *values: sum(values), *losses), whole[0])


def test_a_row_that_is_not_valid_is_mixed_with_none():
    batch = fake_batch() | {"valid": jnp.arange(8) != 6}
    key, objective = jax.random.key(0), Classification(mix=MixUp(1.0))
    shares = mixed(MixUp(1.0), FakeForward(batch, fake_params()), "classes", batch["valid"], key)[1]
    np.testing.assert_array_equal(shares == 1, (np.arange(8) % 4) == 2)
    changed = batch | {"image": batch["image"].at[6].set(1e3), "label": batch["label"].at[6].set(0)}
    losses = [jax.jit(lambda own: objective(FakeForward(own, fake_params()), own, key))(own) for own in (batch, changed)]
    jax.tree.map(np.testing.assert_array_equal, *losses)
    assert float(losses[0].count) == 7


def test_partners_are_mutual_and_keys_of_their_own():
    np.testing.assert_array_equal(partner(partner(jnp.arange(6))), np.arange(6))
    keys = [fold_name(jax.random.key(0), name) for name in ("share", "now", "row", "column", "which", "mix", "cut")]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 7
    assert tuple(MIXES.values()) == (MixUp, CutMix, MixOrCut) and KINDS.keys() == MIXES.keys()


ODD = {key: value[:7] for key, value in fake_batch().items()}


@pytest.mark.parametrize(
    ("objective", "batch", "message"),
    [
        (
            Classification("both", mix=MixUp()),
            fake_batch(),
            "mix: model.heads.both reads image, text; of a mixture each would be",
        ),
        (
            Classification("masked_lm", mix=MixUp()),
            fake_batch(),
            "mix: model.heads.masked_lm reads 'text', which is no pixels or waveform: it cannot be mixed",
        ),
        (
            Classification(mix=CutMix()),
            ODD,
            r"mix: rows are mixed in pairs, and there are 7 \(batch_size / optimizer.accumulate\)",
        ),
        (
            Classification(mix=MixUp()),
            fake_batch() | {"image_mask": jnp.ones((8, 4, 4), bool)},
            "mix: 'image' has 'image_mask' beside it, which two examples have not in common; leave it out",
        ),
        (
            Classification(mix=MixUp()),
            fake_batch() | {"label": jnp.zeros((8, 4), jnp.int32)},
            "mix: labels of 'label' are 1 dims an example; mix where each has one",
        ),
        (Classification(mix=CutMix()), fake_batch() | {"image": jnp.zeros((8, 48))}, r"mix: CutMix cuts images \[B, H, W, C\]"),
    ],
)
def test_what_cannot_be_mixed_is_refused(objective, batch, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: objective(FakeForward(batch, fake_params()), batch, jax.random.key(0)))


def test_numbers_out_of_range():
    for build, message in (
        (lambda: MixUp(0.0), "MixUp.alpha=0.0: use a number above 0|MixUp.alpha=0.0: use a finite number above 0"),
        (lambda: CutMix(probability=1.5), "CutMix.probability=1.5: use a number from 0 and up to 1"),
        (lambda: MixOrCut(cut=-0.5), "MixOrCut.cut=-0.5: use a number from 0 and up to 1"),
    ):
        with pytest.raises(UserError, match=message):
            build()
