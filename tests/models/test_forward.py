import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.core.trees import leaves_by_path
from mmjax.models import Multimodal, param_shapes
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward, cast_params, compute_dtype
from mmjax.models.fusion import Concatenate, Cross, Dual, SingleStream, Weighted
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.nn.augment import ImageAugment

SIZE = {"width": 8, "depth": 1, "heads": 2, "dropout": 0.2, "attention_dropout": 0.2}
GATED = {"activation": "swiglu", "norm": "rmsnorm", "kv_heads": 1, "layer_scale": 0.1}
TEXT = {"vocab_size": 11, "max_length": 6, **SIZE}
BATCH = {
    "image": np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32),
    "text": np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]], np.int32),
    "text_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool),
    "index": np.arange(2, dtype=np.int32),
}


def model(dtype="float32", augment=None):
    return Multimodal(
        encoders={"image": ViT(image_size=(4, 4), patch=(2, 2), **SIZE), "text": TextTransformer(**TEXT)},
        fusions={"dual": Dual(width=8)},
        decoders={"caption": TextDecoder(**TEXT)},
        heads={"digit": Classifier(classes=10), "words": TokenClassifier(classes=11, tied_to="text", transform=False)},
        augment={"image": augment} if augment else {},
        dtype=dtype,
    )


@functools.cache
def params():
    draw = np.random.default_rng(1).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), param_shapes(model()))


def flops(use):
    """FLOPs of what `use` does with a forward, and the results."""
    return count_flops(lambda p, batch: jax.tree.leaves(use(BoundForward(model(), p, batch))), params(), BATCH)


def test_a_computation_asked_for_twice_runs_once():
    def everything(forward):
        image, text = forward.encode("image"), forward.encode("text")
        return (
            forward.embed("image"),
            forward.embed("text"),
            forward.head("digit", image, "a"),
            forward.head("words", text, "a"),
            forward.decode("caption", BATCH, {"image": image}, "a"),
            forward.fuse("dual", {"image": image, "text": text}, "a"),
        )

    assert flops(lambda f: (everything(f), everything(f))) == flops(everything) > 0
    forward = BoundForward(model(), params(), BATCH)
    assert forward.encode("image") is forward.encode("image")


def test_a_second_use_of_the_image_adds_no_encoder():
    encoder = flops(lambda f: f.encode("image"))
    contrastive = flops(lambda f: (f.embed("image"), f.embed("text")))
    both = flops(lambda f: (f.embed("image"), f.embed("text"), f.head("digit", f.encode("image"), "digit")))
    assert both - contrastive == 2 * 2 * 8 * 10 + 2 * 2 * 4 * 8  # the head's product, and its mean over four patches
    assert encoder > 10 * (both - contrastive)


def test_replaced_inputs_are_computed_apart_and_remembered():
    masked = {"text": np.where(BATCH["text_mask"], 7, 0).astype(np.int32)}

    @jax.jit
    def run(p):
        forward = BoundForward(model(), p, BATCH)
        plain, changed = forward.encode("text"), forward.encode("text", masked, "masked")
        assert forward.encode("text", masked, "masked") is changed
        assert forward.encode("text", masked, "again") is not changed
        assert forward.encode("text", {"text": np.array(masked["text"])}, "masked") is not changed
        head = forward.head("words", changed, "")
        assert forward.head("words", changed, "") is head
        assert forward.head("words", plain, "") is not head
        return plain, changed, BoundForward(model(), p, BATCH | masked).encode("text")

    plain, changed, alone = run(params())
    assert not np.allclose(changed.embeddings, plain.embeddings)
    np.testing.assert_allclose(changed.embeddings, alone.embeddings, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(changed.mask, BATCH["text_mask"])


USES = {
    "image": lambda f: f.encode("image").embeddings,
    "text": lambda f: f.encode("text").embeddings,
    "masked text": lambda f: f.encode("text", BATCH, "masked").embeddings,
}


@functools.cache
def trained(names):
    """The named uses in that order, as a compiled function of the step's key."""

    def run(p, batch, rng):
        forward = BoundForward(model(), p, batch, rng)
        return {name: USES[name](forward) for name in names}

    return functools.partial(jax.jit(run), params(), BATCH)


def key(seed=0):
    return jax.random.key(seed, impl="unsafe_rbg")  # compiles ten times faster than the default


def test_dropout_does_not_depend_on_the_order_of_computations():
    forwards, backwards, alone = (trained(names)(key()) for names in (tuple(USES), tuple(USES)[::-1], ("image",)))
    for name in USES:
        np.testing.assert_allclose(backwards[name], forwards[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone["image"], forwards["image"], rtol=1e-5, atol=1e-5)


def test_each_computation_and_each_step_has_its_own_dropout():
    first, second = (trained(tuple(USES))(key(seed)) for seed in (0, 1))
    assert not np.allclose(first["text"], first["masked text"])
    assert not np.allclose(first["image"], second["image"])


def test_without_a_key_nothing_is_random():
    def noisy(p, x):
        forward = BoundForward(model(augment=ImageAugment(noise=1.0)), p, BATCH | {"image": x})
        return forward.encode("image").embeddings

    assert not BoundForward(model(), params(), BATCH).train
    assert "random" not in str(jax.make_jaxpr(noisy)(params(), BATCH["image"]))
    expected = jax.jit(lambda p: BoundForward(model(), p, BATCH).encode("image").embeddings)(params())
    np.testing.assert_allclose(jax.jit(noisy)(params(), BATCH["image"]), expected, rtol=1e-5, atol=1e-5)


def test_images_are_augmented_when_training_only():
    embed = ViT(image_size=(4, 4), patch=(2, 2), width=8, depth=0, heads=2)
    flip = Multimodal(encoders={"image": embed}, augment={"image": ImageAugment(flip=1.0)})
    own = {"encoders_image": {name: params()["encoders_image"][name] for name in ("project_patches", "position")}}
    mirrored = BATCH | {"image": BATCH["image"][:, :, ::-1]}
    ways = ((BATCH, key()), (mirrored, None), (BATCH, None))
    encode = jax.jit(lambda p: [BoundForward(flip, p, *way).encode("image").embeddings for way in ways])
    trained, turned, plain = encode(own)
    np.testing.assert_allclose(trained, turned, rtol=1e-5, atol=1e-5)
    assert not np.allclose(trained, plain)


def test_a_modality_that_the_batch_lacks_is_named():
    with pytest.raises(UserError, match=r"the batch has no 'imgae' \(did you mean 'image'\?\); it has image, text, "):
        BoundForward(model(), params(), BATCH).encode("imgae")


# The compute dtype.


def test_auto_is_float32_on_a_cpu():
    assert compute_dtype("auto") == jnp.float32
    assert compute_dtype("bfloat16") == jnp.bfloat16
    with pytest.raises(UserError, match=r"model\.dtype='float16': use auto, float32 or bfloat16"):
        compute_dtype("float16")


def test_norms_and_learned_scalars_stay_float32():
    cast = leaves_by_path(cast_params(params(), jnp.dtype("bfloat16")))
    kept = {path for path, x in cast.items() if x.dtype == jnp.float32}
    assert {path for path in cast if "norm" in path} | {"fusions_dual/scale_logit", "fusions_dual/bias_logit"} == kept
    assert cast_params(params(), jnp.dtype("float32")) is params()


def every_module():
    gated = {**SIZE, **GATED, "dropout": 0.0, "attention_dropout": 0.0}  # so that either way through a layer is taken
    wide = {**SIZE, "width": 16}
    text = {"vocab_size": 11, "max_length": 6}
    return Multimodal(
        encoders={
            "image": ViT(image_size=(4, 4), patch=(2, 2), cls_token=True, embed_norm=True, **SIZE),
            "video": ViT(image_size=(4, 4), patch=(2, 2), positions="sincos", **gated),
            "text": TextTransformer(segments=2, embed_norm=True, norm_placement="post", **TEXT),
            "title": TextTransformer(embed_width=4, positions="rotary", causal=True, **text, **gated),
            "audio": TextTransformer(positions="sincos", remat="dots", **TEXT),
        },
        fusions={
            "dual": Dual(width=8, pool={"image": "attention", "text": "last", "video": "mean", "title": "cls"}, heads=2),
            "cross": Cross(**gated),
            "both": Cross(both=True, **wide),
            "single": SingleStream(**wide),
            "concatenate": Concatenate(width=8),
            "weighted": Weighted(width=8),
        },
        decoders={"tied": TextDecoder(**TEXT), "free": TextDecoder(tied=False, context=("image", "video"), **text, **gated)},
        heads={
            "digit": Classifier(classes=10, hidden_width=8, pool="attention", heads=2, dropout=0.1),
            "words": TokenClassifier(classes=11, tied_to="text"),
            "tags": TokenClassifier(classes=4, input="both"),
        },
        dtype="bfloat16",
    )


def test_every_module_runs_in_bfloat16_without_promotion():
    big = every_module()
    rows = {"video": BATCH["image"], "title": BATCH["text"], "audio": BATCH["text"]}
    batch = BATCH | rows

    def run(p, rng):
        forward = BoundForward(big, p, batch, rng)
        encoded = {name: forward.encode(name) for name in big.encoders}
        fused = {name: forward.fuse(name, {m: encoded[m] for m in f.modalities}, "") for name, f in big.fusions.items()}
        decoded = [forward.decode(name, batch, {m: encoded[m] for m in d.context}) for name, d in big.decoders.items()]
        scores = [forward.head(name, (encoded | fused)[h.input], "") for name, h in big.heads.items()]
        return encoded, fused, decoded, scores

    def loss(p, rng):
        out = run(p, rng)
        floats = [x.astype(jnp.float32).sum() for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(floats, jnp.float32(0)), out

    shapes = param_shapes(big)
    gradients, (encoded, fused, decoded, scores) = jax.eval_shape(jax.grad(loss, has_aux=True), shapes, key())
    assert gradients == shapes
    assert {name: t.embeddings.dtype.name for name, t in encoded.items()} == dict.fromkeys(big.encoders, "bfloat16")
    expected = dict.fromkeys(big.fusions, "bfloat16") | {"dual": "float32"}
    assert {name: t.embeddings.dtype.name for name, t in fused.items()} == expected
    assert {x.dtype.name for x in decoded + scores} == {"float32"}


def test_bfloat16_stays_near_float32():
    def embedded(dtype):
        return jax.jit(lambda p: BoundForward(model(dtype), p, BATCH).embed("image"))(params())

    exact, rounded = embedded("float32"), embedded("bfloat16")
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.03)
    assert not np.array_equal(rounded, exact)
