import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.core.stacked import Stacked
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Tokens
from mmjax.models import Multimodal, param_shapes
from mmjax.models.casting import cast_params, compute_dtype
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Concatenate, Cross, Dual, SingleStream, Weighted
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.models.multimodal import init_model
from mmjax.nn.augment import ImageAugment
from mmjax.nn.linear import Linear

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
    same = leaves_by_path(cast_params(params(), jnp.dtype("float32")))
    assert all(x is same[path] for path, x in leaves_by_path(params()).items())


def test_what_a_user_calls_a_part_decides_nothing_about_its_precision():
    words = {"words": {"table": jnp.ones((3, 2))}, "embed_norm": {"scale": jnp.ones(2)}}
    tree = {f"encoders_{name}": words for name in ("text", "normal", "mixed", "a_logit")}
    narrow = {path for path, x in leaves_by_path(cast_params(tree, jnp.dtype("bfloat16"))).items() if x.dtype == jnp.bfloat16}
    assert narrow == {f"{name}/words/table" for name in tree}
    heads = {"heads_twice": {name: {"kernel": jnp.ones((3, 2))} for name in ("logits", "second_logits")}}
    assert all(x.dtype == jnp.bfloat16 for x in leaves_by_path(cast_params(heads, jnp.dtype("bfloat16"))).values())


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


def test_the_name_of_a_part_does_not_keep_it_in_float32():
    """A head called `abnormality` or `mixture` is computed like any other."""
    named = {
        name: {"logits": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}} for name in ("heads_abnormality", "heads_mixture")
    }
    cast = cast_params(named, jnp.dtype("bfloat16"))
    assert {x.dtype.name for x in jax.tree.leaves(cast)} == {"bfloat16"}


def test_layers_in_parts_are_cast_by_the_name_of_the_whole():
    halves = Stacked((jnp.ones((1, 2)), jnp.ones((2, 2))))
    layers = {"attention_norm": {"scale": halves}, "mlp": {"up": {"bias": halves}}}
    cast = cast_params({"encoders_image": {"stack": {"layers": layers}}}, jnp.dtype("bfloat16"))
    names = {path: x.dtype.name for path, x in leaves_by_path(cast["encoders_image"]["stack"]["layers"]).items()}
    assert {name for path, name in names.items() if "norm" in path} == {"float32"}
    assert {name for path, name in names.items() if "mlp" in path} == {"bfloat16"} and len(names) == 4


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


# The ways through the model.


class Pair(nn.Module):
    """The tokens of an encoder and of one of its layers -> logits [B, 3]."""

    input: tuple[str, ...] = ("image", "image:1")

    @nn.compact
    def __call__(self, tokens, table=None):
        last, first = tokens
        return Linear(3, name="logits")(jnp.concatenate([last.embeddings, first.embeddings], axis=-1).mean(axis=1))


class Counted(nn.Module):
    """[B, n] -> one token, and what it keeps: the sum of all inputs it was trained on."""

    @nn.compact
    def __call__(self, x, extra=None):
        total = self.variable("sums", "total", jnp.zeros, ())
        if self.has_rng("dropout"):
            total.value = total.value + x.sum()
        return Tokens(Linear(4, name="project")(x)[:, None], jnp.ones((x.shape[0], 1), bool))

    def example(self):
        return jnp.zeros((1, 3))


class Rated(nn.Module):
    """[B, n] and a rate [B, 1], which must be there -> one token."""

    @nn.compact
    def __call__(self, x, rate):
        return Tokens(Linear(4, name="project")(x * rate)[:, None], jnp.ones((x.shape[0], 1), bool))

    def example(self):
        return {"": jnp.zeros((1, 3)), "rate": jnp.ones((1, 1))}


def routed():
    image = ViT(image_size=(4, 4), patch=(2, 2), taps=(1,), **(SIZE | {"depth": 2}))
    return Multimodal(
        encoders={"image": image, "text": TextTransformer(**TEXT)},
        fusions={"both": Concatenate(width=8, modalities=("text", "image"))},
        heads={
            "digit": Classifier(classes=10),
            "fused": Classifier(classes=3, input="both"),
            "early": TokenClassifier(classes=2, input="image:1"),
            "pair": Pair(),
        },
        dtype="float32",
    )


@functools.cache
def routed_params(seed=1):
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), param_shapes(routed()))


def bound(p, batch=BATCH, rng=None):
    return BoundForward(routed(), p, batch, rng)


def test_tokens_are_those_of_an_encoder_a_fusion_or_a_layer_and_heads_follow_their_inputs():
    def everything(f):
        return [f.tokens("image"), f.tokens("image:1"), f.tokens("both")] + [f.head(name) for name in routed().heads]

    @jax.jit
    def run(p):
        f = bound(p)
        image, text = f.encode("image"), f.encode("text")
        assert f.tokens("image") is image and f.tokens("image:1").embeddings is image.taps["1"]
        assert f.tokens("both") is f.tokens("both") and f.tokens("both", "again") is not f.tokens("both")
        given = {
            "digit": image,
            "fused": f.fuse("both", {"text": text, "image": image}, ""),
            "early": f.tokens("image:1"),
            "pair": (image, f.tokens("image:1")),
        }
        assert all(f.head(name) is f.head(name, tokens) for name, tokens in given.items())
        assert f.gave == {"digit": (2, 10), "fused": (2, 3), "early": (2, 4, 2), "pair": (2, 3)}
        first = f.encode("image").taps["1"]
        return f.head("pair"), jnp.concatenate([image.embeddings, first], axis=-1).mean(axis=1)

    found, pooled = run(routed_params())
    own = routed_params()["heads_pair"]["logits"]
    np.testing.assert_allclose(found, pooled @ own["kernel"] + own["bias"][None], rtol=1e-5, atol=1e-5)

    def count(use):
        return count_flops(lambda p, batch: jax.tree.leaves(use(bound(p, batch))), routed_params(), BATCH)

    assert count(lambda f: (everything(f), everything(f))) == count(everything) > count(lambda f: f.head("pair")) > 0


def test_a_part_can_be_read_and_a_fusion_says_what_it_joins():
    f = bound(routed_params())
    assert f.spec("heads.digit").classes == 10 and f.spec("encoders.image").taps == (1,)
    assert (f.modalities("image"), f.modalities("image:1"), f.modalities("both")) == (("image",), ("image",), ("text", "image"))


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (
            lambda f: f.tokens("imgae"),
            r"model\.fusions: there is no 'imgae' \(did you mean 'image'\?\); it has image, text, both",
        ),
        (lambda f: f.tokens("image:2"), r"image:2: layer 2 is not tapped; the encoder's taps are \(1\)"),
        (lambda f: f.tokens("text:1"), r"text:1: layer 1 is not tapped; the encoder's taps are \(none\)"),
        (lambda f: f.head("digti"), r"model\.heads: there is no 'digti' \(did you mean 'digit'\?\)"),
        (lambda f: f.spec("decoders.x"), r"model\.decoders: there is no 'x'; it has none"),
        (lambda f: f.modalities("bth"), r"model\.fusions: there is no 'bth' \(did you mean 'both'\?\)"),
        (lambda f: f.view("imgae"), r"the batch has no 'imgae' \(did you mean 'image'\?\); it has image, text"),
        (lambda f: f.with_(train=True), r"with_\(train=True\): an evaluation has no random key; leave it out"),
    ],
)
def test_what_is_not_there_is_named(use, said):
    with pytest.raises(UserError, match=said):
        jax.eval_shape(lambda p: use(bound(p)), routed_params())


def test_the_same_model_with_other_parameters_inputs_or_tokens_is_that_model():
    other_image = {"image": BATCH["image"][:, ::-1] * 2}

    @jax.jit
    def run(p, q):
        f = bound(p)
        before = f.head("fused")
        tokens = f.with_(inputs=other_image).encode("image")
        pairs = [
            (f.with_(params=q).head("fused"), bound(q).head("fused")),
            (f.with_(inputs=other_image).head("fused"), bound(p, BATCH | other_image).head("fused")),
            (f.with_(tokens={"image": tokens}).head("fused"), bound(p, BATCH | other_image).head("fused")),
            (f.with_(params=q).with_(inputs=other_image).head("pair"), bound(q, BATCH | other_image).head("pair")),
            (f.with_(tokens={"image": tokens}).with_(inputs=BATCH).head("fused"), before),
            (f.with_().head("fused"), before),
        ]
        assert f.head("fused") is before and f.encode("image") is not tokens
        taken = f.with_(tokens={"image": tokens})
        assert taken.encode("image") is tokens and taken.encode("image", BATCH, "own") is not tokens
        return pairs, before

    pairs, before = run(routed_params(), routed_params(2))
    for number, (found, expected) in enumerate(pairs):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=str(number))
        assert number > 3 or not np.allclose(found, before, atol=1e-3), number


def test_once_more_without_dropout_or_with_another():
    @jax.jit
    def run(p, rng):
        f = bound(p, BATCH, rng)
        again, other, still = f.with_(), f.with_(key="second"), f.with_(train=False)
        assert f.train and again.train and other.train and not still.train
        nested = f.with_(key="second").with_(key="third")
        return [x.head("digit") for x in (f, again, other, f.with_(key="second"), nested)], still.head("digit")

    (plain, again, other, same, nested), still = run(routed_params(), key())
    np.testing.assert_array_equal(again, plain)
    np.testing.assert_array_equal(other, same)
    assert not np.allclose(other, plain) and not np.allclose(nested, other) and not np.allclose(nested, plain)
    expected = jax.jit(lambda p: bound(p).head("digit"))(routed_params())
    np.testing.assert_allclose(still, expected, rtol=1e-5, atol=1e-5)


def test_only_the_forward_itself_writes_what_modules_keep():
    counted = Multimodal(encoders={"sensor": Counted()})
    given = {"sensor": jnp.ones((2, 3)), "index": jnp.arange(2)}
    params, kept = init_model(counted, jax.random.key(0))
    assert jax.tree.map(float, kept) == {"sums": {"encoders_sensor": {"total": 0.0}}}
    everything = {**params, "variables": kept}

    def uses(p, rng):
        f = BoundForward(counted, p, given, rng)
        other = f.with_(key="other")
        other.encode("sensor"), f.with_(params=params).encode("sensor")
        none = (list(f.written()), list(other.written()))
        f.encode("sensor"), f.encode("sensor")
        f.encode("sensor", {"sensor": 2 * given["sensor"]}, "twice")
        still = f.with_(train=False)
        still.encode("sensor")
        evaluated = BoundForward(counted, p, given)
        evaluated.encode("sensor")
        views = f.with_(views={"sensor": 3 * given["sensor"]})
        views.encode("sensor"), views.with_(train=False).encode("sensor"), f.with_(params, views=given).encode("sensor")
        return none, f.written(), still.written() + evaluated.written()

    none, written, others = jax.jit(uses)(everything, key())
    assert none == ([], []) and others == []
    path = "sums/encoders_sensor/total"
    assert [{name: float(x) for name, x in own.items()} for own in written] == [{path: 6.0}, {path: 12.0}, {path: 18.0}]


# Parts of a modality.


def test_a_part_that_must_be_there_is_asked_for_and_others_are_passed_by():
    rated = Multimodal(encoders={"sensor": Rated()})
    batch = {"sensor": jnp.ones((2, 3)), "sensor_rat": jnp.ones((2, 1))}
    said = r"the batch has no 'sensor_rate' \(did you mean 'sensor_rat'\?\); it has sensor, sensor_rat"
    with pytest.raises(UserError, match=said):
        jax.eval_shape(lambda p: BoundForward(rated, p, batch).encode("sensor"), param_shapes(rated))
    more = BATCH | {"image_id": np.arange(2), "image_points": np.zeros((2, 1, 2), np.float32), "text_language": np.arange(2)}

    @jax.jit
    def run(p):
        return [bound(p, b).tokens("both").embeddings for b in (BATCH, more)]

    plain, same = run(routed_params())
    np.testing.assert_array_equal(same, plain)


@pytest.mark.parametrize("name", ["image", "text"])
def test_what_is_added_goes_to_the_embeddings(name):
    bare = SIZE | {"depth": 0}
    small = Multimodal(
        encoders={
            "image": ViT(image_size=(4, 4), patch=(2, 2), cls_token=True, **bare),
            "text": TextTransformer(**(TEXT | {"depth": 0})),
        },
        dtype="float32",
    )
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape), x.dtype), param_shapes(small))
    added = draw(size=(2, 5, 8)).astype(np.float32)

    @jax.jit
    def run(p):
        plain, moved = (
            BoundForward(small, p, batch).encode(name).embeddings for batch in (BATCH, BATCH | {f"{name}_added": added})
        )
        again = BoundForward(small, p, BATCH).with_(inputs={f"{name}_added": added}).encode(name).embeddings
        return plain, moved, again

    plain, moved, again = run(params)
    np.testing.assert_allclose(moved - plain, added, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(again, moved)


# Taps, grids and rasters.


@pytest.mark.parametrize("fields", [{}, {"unroll": True}, {"remat": "full"}, {"remat": "dots", "unroll": True}])
def test_a_tap_is_what_the_layer_gives_when_it_is_taken(fields):
    size = {"width": 8, "depth": 3, "heads": 2, **fields}
    made = functools.partial(ViT, image_size=(4, 4), patch=(2, 2), **size)
    taps = (0, 1, -2, 3, -1)
    shapes = jax.eval_shape(made().init, jax.random.key(0), made().example())
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), shapes)
    assert jax.tree.structure(jax.eval_shape(made(taps=taps).init, jax.random.key(0), made().example())) == jax.tree.structure(
        shapes
    )

    @jax.jit
    def run(p):
        tapped = made(taps=taps).apply(p, BATCH["image"])
        taken = {str(tap): made(take_layer=tap).apply(p, BATCH["image"]).embeddings for tap in taps}
        return tapped, taken, made().apply(p, BATCH["image"]).embeddings

    tapped, taken, plain = run(params)
    assert set(tapped.taps) == {"0", "1", "-2", "3", "-1"}
    np.testing.assert_allclose(tapped.embeddings, plain, rtol=1e-5, atol=1e-5)
    for tap, expected in taken.items():
        np.testing.assert_allclose(tapped.taps[tap], expected, rtol=1e-5, atol=1e-5, err_msg=tap)
    assert not np.allclose(tapped.taps["0"], tapped.taps["1"]) and not np.allclose(tapped.taps["-2"], tapped.taps["-1"])


def test_taps_beside_a_layer_that_is_taken_are_of_layers_that_run():
    made = functools.partial(ViT, image_size=(4, 4), patch=(2, 2), width=8, depth=3, heads=2)
    params = made().init(jax.random.key(0), made().example())

    @jax.jit
    def run(p):
        return made(take_layer=-2, taps=(1, 2)).apply(p, BATCH["image"]), made(take_layer=1).apply(p, BATCH["image"])

    both, first = run(params)
    np.testing.assert_array_equal(both.taps["2"], both.embeddings)
    np.testing.assert_allclose(both.taps["1"], first.embeddings, rtol=1e-6, atol=1e-6)
    for fields, last in (({"taps": (4,)}, 3), ({"taps": (-5,)}, 3), ({"take_layer": 1, "taps": (2,)}, 1)):
        with pytest.raises(UserError, match=rf"taps=.*: the layers that run are 0 to {last}, or -1 \(the last\) and below"):
            jax.eval_shape(made(**fields).apply, params, BATCH["image"])


def test_patches_have_a_grid_where_they_are_a_whole_image():
    def grid(parts=None, images=1, **fields):
        encoder = ViT(image_size=(4, 8), patch=(2, 2), images=images, **SIZE, **fields)
        image = jnp.zeros((2, 4, 8, 3) if images == 1 else (2, images, 4, 8, 3))
        made = jax.eval_shape(encoder.init, jax.random.key(0), image)
        return jax.eval_shape(functools.partial(encoder.apply, **(parts or {})), made, image).grid

    assert grid() == (2, 4, 0) and grid(cls_token=True) == (2, 4, 1) and grid(cls_token=True, extra_tokens=2) == (2, 4, 3)
    assert grid(positions="sincos") == (2, 4, 0)
    assert grid({"keep": jnp.zeros((2, 3), jnp.int32)}) is None
    assert grid(images=2) is None


def test_a_raster_is_the_patches_in_reading_order_without_the_first_tokens():
    x = np.arange(2 * 7 * 3, dtype=np.float32).reshape(2, 7, 3)
    tokens = Tokens(x, np.ones((2, 7), bool), grid=(2, 3, 1))
    np.testing.assert_array_equal(tokens.raster("Painter"), x[:, 1:].reshape(2, 2, 3, 3))
    assert jax.tree.map(lambda y: y, tokens).grid == (2, 3, 1)
    with pytest.raises(UserError, match="Painter needs a raster, and its input's tokens have no grid"):
        Tokens(x, tokens.mask).raster("Painter")


def test_a_tapped_layer_keeps_the_rest_and_has_no_taps_of_its_own():
    x = np.zeros((1, 6, 3), np.float32)
    tokens = Tokens(x, np.ones((1, 6), bool), taps={"1": x + 1, "-1": x + 2}, grid=(2, 3, 0))
    first = tokens.tapped("1", "head")
    np.testing.assert_array_equal(first.raster("Painter"), np.ones((1, 2, 3, 3)))
    assert first.mask is tokens.mask and first.taps == {}
    with pytest.raises(UserError, match=r"head: layer 2 is not tapped; the encoder's taps are \(1, -1\)"):
        tokens.tapped("2", "head")


# What lies over an image.

OVER = BATCH | {
    "image_map": np.arange(32, dtype=np.int32).reshape(2, 4, 4),
    "image_mask": np.arange(32).reshape(2, 4, 4) % 3 > 0,
    "image_points": np.array([[[0.5, 1.5]], [[-1.0, -1.0]]], np.float32),
    "image_boxes": np.array([[[0, 0, 1, 2]], [[1, 1, 4, 3]]], np.float32),
}


def flipped(augment=None):
    bare = ViT(image_size=(4, 4), patch=(2, 2), resize="bilinear", positions="none", **(SIZE | {"depth": 0, "dropout": 0.0}))
    return Multimodal(encoders={"image": bare}, augment={"image": augment or ImageAugment(flip=1.0)}, dtype="float32")


def test_what_lies_over_an_image_is_seen_as_it_has_moved_and_moves_once():
    params = jax.tree.map(lambda x: jnp.ones(x.shape), param_shapes(flipped()))

    def run(p, rng):
        f = BoundForward(flipped(), p, OVER, rng)
        seen = {key: f.view(key) for key in OVER if key.startswith("image")}
        assert f.view("image_map") is seen["image_map"] and f.with_().view("text") is OVER["text"]
        return seen, f.encode("image"), BoundForward(flipped(), p, {**OVER, **seen}).encode("image")

    seen, tokens, alone = jax.jit(run)(params, key())
    for name in ("image", "image_map", "image_mask"):
        np.testing.assert_array_equal(seen[name], OVER[name][:, :, ::-1], err_msg=name)
    np.testing.assert_array_equal(seen["image_points"], [[[3.5, 1.5]], [[-1, -1]]])
    np.testing.assert_array_equal(seen["image_boxes"], [[[3, 0, 4, 2]], [[0, 1, 3, 3]]])
    np.testing.assert_array_equal(tokens.mask, alone.mask)
    np.testing.assert_allclose(tokens.embeddings, alone.embeddings, rtol=1e-6, atol=1e-6)
    still = BoundForward(flipped(), params, OVER)
    assert all(still.view(name) is OVER[name] for name in OVER)


def test_what_is_given_as_a_view_is_not_augmented_once_more():
    params = jax.tree.map(lambda x: jnp.ones(x.shape), param_shapes(flipped()))
    other = {"image": OVER["image"] * 2 + 1}

    def run(p, rng):
        f = BoundForward(flipped(), p, OVER, rng)
        g = f.with_(views=other)
        assert g.view("image") is g.batch["image"] and g.with_(key="again").view("image") is g.batch["image"]
        again = g.with_(inputs=other).view("image")
        return g.encode("image"), f.view("image_map"), g.view("image_map"), again, f.encode("image")

    seen, before, after, again, own = jax.jit(run)(params, key())
    still = BoundForward(flipped(), params, OVER | other | {"image_mask": OVER["image_mask"][:, :, ::-1]}).encode("image")
    np.testing.assert_allclose(seen.embeddings, still.embeddings, rtol=1e-6)
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(again, other["image"][:, :, ::-1])
    assert not np.allclose(seen.embeddings, own.embeddings)


def test_an_augmentation_that_moves_images_alone_is_refused_by_name_where_something_lies_over():
    class Mirror:
        def __call__(self, image, keys):
            return image[:, :, ::-1]

    made = flipped(Mirror())
    params = param_shapes(made)
    jax.eval_shape(lambda p, rng: BoundForward(made, p, BATCH, rng).encode("image"), params, key())
    said = r"model\.augment\.image: Mirror has no `together`, so it cannot move image_map, image_points with the image"
    batch = {name: OVER[name] for name in ("image", "index", "image_map", "image_points")}
    with pytest.raises(UserError, match=said):
        jax.eval_shape(lambda p, rng: BoundForward(made, p, batch, rng).view("image"), params, key())
