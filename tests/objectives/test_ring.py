"""The ring against the plain loss, and against float64 by hand: losses, hits and gradients, on every kind of mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from mmjax.objectives.contrastive import Contrastive
from mmjax.objectives.ring import Ring, ring_loss
from mmjax.parallel.mesh import Mesh, use_mesh

N, E = 24, 6
KINDS = ("softmax", "sigmoid")
PLACES = {  # mesh, tile: of 3, 6 and 24 columns a block
    "one device": (None, 7),
    "one device, whole": (None, 64),
    "8 x data": (Mesh(data=8), 2),
    "4 x fsdp . 2 x tensor": (Mesh(data=1, fsdp=4, tensor=2), 4),
    "2 x slice . 4 x data": (Mesh(data=4, slice=2), 1),
}


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Given:
    """A forward that has the embeddings already."""

    def __init__(self, embeddings, scale, bias):
        self.embeddings, self.scalars = embeddings, {"scale": scale, "bias": bias}

    def embed(self, modality, fusion):
        return self.embeddings[modality]

    def scalar(self, fusion, name):
        return self.scalars[name]


def inputs(seed=0, scale=12.0, modalities=("image", "text")):
    rng = np.random.default_rng(seed)
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(len(modalities), N, E))]
    embeddings = {name: jnp.asarray(x, jnp.float32) for name, x in zip(modalities, rows, strict=True)}
    return embeddings, jnp.float32(scale), jnp.float32(-3.0)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {"group": jnp.asarray(rng.integers(0, 17, N), jnp.int32), "valid": jnp.asarray(rng.random(N) < 0.8)}


@functools.cache
def compiled(place, exchange, smoothing=(0.1,), modalities=("image", "text")):
    """(inputs, batch) -> for each kind and smoothing: (the loss, the gradient of its sum by each of the inputs)."""
    mesh, tile = PLACES[place]

    def one(objective, inputs, batch):
        def total(inputs):
            loss = objective(Given(*inputs), batch, jax.random.key(0))
            return loss.sum, loss

        gradient, loss = jax.grad(total, has_aux=True)(inputs)
        return loss, gradient

    @jax.jit
    def every(inputs, batch):
        objectives = {
            (kind, s): Contrastive(kind, modalities, label_smoothing=s, exchange=exchange, tile=tile)
            for kind in KINDS
            for s in smoothing
        }
        return {name: one(objective, inputs, batch) for name, objective in objectives.items()}

    def run(inputs, batch):
        with use_mesh(mesh.build()) if mesh else contextlib.nullcontext():
            return jax.tree.map(np.asarray, every(inputs, batch))

    return run


def assert_same(found, expected, tolerance=2e-6):
    """Within `tolerance` of the largest number of each array, or of 1."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.max(np.abs(b))))


@pytest.mark.parametrize("place", PLACES)
def test_the_ring_is_the_plain_loss(place):
    ring, plain = compiled(place, "ring"), compiled("one device", "plain")
    for given_batch in (batch(), {"group": batch()["group"]}, {}):
        assert_same(ring(inputs(), given_batch), plain(inputs(), given_batch))


@pytest.mark.parametrize("place", ["one device", "8 x data"])
def test_without_smoothing_and_nearly_certain(place):
    """At scale 100 with the pairs alike the losses are near 0, and a rounded log-sum-exp would show.

    The derivative computes its logits again, and is as exact as they are: to float32's rounding of 100, times the scale.
    """
    embeddings, *_ = inputs()
    alike = {"image": embeddings["image"], "text": embeddings["image"] + 0.05 * embeddings["text"]}
    given_inputs = (alike, jnp.float32(100.0), jnp.float32(-10.0))
    ring, plain = (compiled(p, e, (0.0,)) for p, e in ((place, "ring"), ("one device", "plain")))
    found, expected = ring(given_inputs, {}), plain(given_inputs, {})
    assert 0 < expected["softmax", 0.0][0].sum < 0.5 * N
    for name in found:
        np.testing.assert_allclose(found[name][0].sum, expected[name][0].sum, rtol=1e-6, atol=5e-6)
        assert found[name][0].metrics == expected[name][0].metrics
        assert_same(jax.tree.map(lambda x: x / 100, found[name][1]), jax.tree.map(lambda x: x / 100, expected[name][1]), 1e-5)


def by_hand(kind, smooth, given_inputs, groups, valid):
    """Loss, hits both ways and gradients in float64, from the definition."""
    embeddings, scale, bias = given_inputs
    a, b = (np.asarray(embeddings[name], np.float64) for name in ("image", "text"))
    scale, bias, similar = float(scale), float(bias), a @ b.T
    pair = valid[:, None] & valid[None, :]
    positive = (groups[:, None] == groups[None, :]) & pair
    logits, count = scale * similar + (bias if kind == "sigmoid" else 0.0), max(valid.sum(), 1)
    if kind == "sigmoid":
        yes = np.where(positive, 1 - smooth / 2, smooth / 2)
        loss = np.sum(pair * (yes * np.logaddexp(0, -logits) + (1 - yes) * np.logaddexp(0, logits)))
        slope = pair * (1 / (1 + np.exp(-logits)) - yes)
    else:
        target = pair * ((1 - smooth) * positive / np.maximum(positive.sum(1, keepdims=True), 1) + smooth / count)
        loss, slope = 0.0, np.zeros((N, N))
        for axis in (0, 1):
            masked = np.where(pair, logits, -1e30)
            log_p = masked - np.logaddexp.reduce(masked, axis=axis, keepdims=True)
            share = target if axis == 1 else target.T
            loss -= 0.5 * np.sum(np.where(pair, share * log_p, 0))
            slope += 0.5 * np.where(pair, np.exp(log_p) - share, 0)
    hits = [sum(positive[axis_pair] for axis_pair in _best(logits, valid, axis)) for axis in (1, 0)]
    gradient = ({"image": scale * slope @ b, "text": scale * slope.T @ a}, np.sum(slope * similar), np.sum(slope))
    return loss, hits, gradient


def _best(logits, valid, axis):
    scores = np.where(np.expand_dims(valid, 1 - axis), logits, -np.inf)
    for i in np.flatnonzero(valid):
        yield (i, np.argmax(scores[i])) if axis == 1 else (np.argmax(scores[:, i]), i)


@given(
    groups=st.lists(st.integers(0, 5), min_size=N, max_size=N),
    valid=st.lists(st.booleans(), min_size=N, max_size=N),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 10.0, 30.0]),
)
def test_any_groups_and_padding_against_float64_by_hand(groups, valid, seed, scale):
    groups, valid = np.array(groups, np.int32), np.array(valid)
    given_inputs = inputs(seed, scale)
    found = compiled("8 x data", "ring")(given_inputs, {"group": jnp.asarray(groups), "valid": jnp.asarray(valid)})
    for (kind, smooth), (loss, gradient) in found.items():
        value, hits, slopes = by_hand(kind, smooth, given_inputs, groups, valid)
        np.testing.assert_allclose(loss.sum, value, rtol=2e-6, atol=1e-5)
        assert loss.count == valid.sum()
        assert [float(total) for total, _ in loss.metrics.values()] == hits
        if kind == "softmax":
            assert gradient[2] == 0
            gradient, slopes = gradient[:2], slopes[:2]
        assert_same(gradient, slopes, 1e-5)


def test_of_equal_scores_the_first_counts_as_in_the_plain_loss():
    """Copies of one embedding in other blocks: whichever device sees one first, the lowest place wins."""
    embeddings, scale, bias = inputs()
    same = {name: x[jnp.arange(N) % 5] for name, x in embeddings.items()}
    found, expected = (compiled(p, e)((same, scale, bias), {}) for p, e in (("8 x data", "ring"), ("one device", "plain")))
    for name in found:
        assert found[name][0].metrics == expected[name][0].metrics
        assert expected[name][0].metrics["image_to_text_accuracy"][0] <= 5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind):
    embeddings, scale, bias = inputs(scale=3.0)
    a, b, rows = *embeddings.values(), batch()
    loss = jax.jit(lambda *x: ring_loss(Ring(kind, 0.1, 5), *x, rows["group"], rows["valid"])[0])
    arguments = (a, b, scale, bias) if kind == "sigmoid" else (a, b, scale)
    fixed = () if kind == "sigmoid" else (bias,)
    check_grads(lambda *x: loss(*x, *fixed), arguments, order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("exchange", ["plain", "ring"])
def test_three_modalities_are_the_mean_of_their_pairs(exchange):
    names = ("image", "text", "audio")
    given_inputs = inputs(modalities=names)
    found = compiled("one device", exchange, modalities=names)(given_inputs, batch())
    pairs = [("image", "text"), ("image", "audio"), ("text", "audio")]
    for kind in found:
        losses, gradient = [], dict.fromkeys(names, 0.0)
        for pair in pairs:
            two = ({"image": given_inputs[0][pair[0]], "text": given_inputs[0][pair[1]]}, *given_inputs[1:])
            loss, slopes = compiled("one device", "plain")(two, batch())[kind]
            losses.append(loss)
            for name, slope in zip(pair, (slopes[0]["image"], slopes[0]["text"]), strict=True):
                gradient[name] += slope / 3
            metrics = found[kind][0].metrics
            assert metrics[f"{pair[0]}_to_{pair[1]}_accuracy"] == loss.metrics["image_to_text_accuracy"]
            assert metrics[f"{pair[1]}_to_{pair[0]}_accuracy"] == loss.metrics["text_to_image_accuracy"]
        np.testing.assert_allclose(found[kind][0].sum, sum(loss.sum for loss in losses) / 3, rtol=2e-6)
        assert found[kind][0].count == losses[0].count and len(metrics) == 6
        assert_same(found[kind][1][0], gradient)


def test_auto_goes_round_where_the_plain_logits_are_large_and_devices_divide_the_batch():
    """From 512 MiB on, for 8 copies of [rows a device, rows] float32."""
    auto, ring, plain = (Contrastive(exchange=exchange) for exchange in ("auto", "ring", "plain"))
    with use_mesh(Mesh(data=8).build()):
        assert [auto.goes_round(size) for size in (1024, 11584, 11592, 131072)] == [False, False, True, True]
        assert [ring.goes_round(size) for size in (8, 12)] == [True, False]
        assert not plain.goes_round(131072)
    assert [auto.goes_round(size) for size in (4095, 4096)] == [False, True]


def test_the_program_does_not_grow_with_the_ring():
    """The ring is a loop: as many operations for eight blocks as for two, and no array of [N, N]."""

    def text(mesh):
        loss = lambda *x: ring_loss(Ring("softmax", 0.1, 2), *x, jnp.arange(N), jnp.ones(N, bool))[0]  # noqa: E731
        embeddings, *scalars = inputs()
        with use_mesh(mesh.build(jax.devices()[: mesh.data])):
            return str(jax.make_jaxpr(jax.grad(loss))(*embeddings.values(), *scalars))

    two, eight = text(Mesh(data=2)), text(Mesh(data=8))
    assert two.count("ppermute") == eight.count("ppermute") > 0
    assert f"f32[{N},{N}]" not in two and f"f32[{N},{N}]" not in eight
