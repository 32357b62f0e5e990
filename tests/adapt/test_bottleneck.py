"""Bottlenecks: a stack written out by hand with them, the cache, layers of several widths, and what cannot have one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.adapt import Bottleneck, LoRA, adapted, base_of, merged, trained_patterns
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, map_with_path
from mmjax.generate import Rules, decode, settings_of
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.heads import Classifier
from mmjax.models.multimodal import init_params
from mmjax.nn.attention import Attention
from mmjax.nn.bottleneck import ACTS
from mmjax.nn.mlp import Mlp
from mmjax.nn.norm import Norm
from mmjax.nn.stack import Stack

V = 31
SIZE = {"width": 16, "depth": 2, "heads": 2}
MASK = np.arange(9)[None] < np.array([9, 4, 6])[:, None]
IDS = np.where(MASK, np.random.default_rng(0).integers(4, V, MASK.shape), 0).astype(np.int32)
X = np.random.default_rng(1).normal(size=(3, 9, 16)).astype(np.float32)
PIXELS = np.random.default_rng(2).normal(size=(3, 8, 8, 3)).astype(np.float32)
BY_HAND = {"relu": lambda x: np.maximum(x, 0), "silu": lambda x: x / (1 + np.exp(-x)), "tanh": np.tanh}


@functools.cache
def reader(placement="pre", **more):
    """A text tower and its parameters, with norms that do something."""
    text = TextTransformer(vocab_size=V, max_length=12, norm_placement=placement, **SIZE, **more)
    model = Multimodal(encoders={"text": text}, heads={"classes": Classifier(classes=3, input="text", pool="mean")})
    return model, moved(init_params(model, jax.random.key(0)), ("norm/scale", "norm/bias"))


def moved(params, ends=("down", "up", "down_bias", "up_bias"), size=0.3):
    """The same, with the leaves of these ends somewhere else; of a bottleneck those that do something in each layer."""
    rng = np.random.default_rng(3)
    more = tuple(f"bottleneck_{end}" if "/" not in end else end for end in ends)
    return map_with_path(
        lambda path, x: x + jnp.asarray(size * rng.normal(size=x.shape), x.dtype) if path.endswith(more) else x, params
    )


def by_hand(params, placement, spec):
    """What a stack gives for X."""
    x = jnp.asarray(X)
    for n in range(SIZE["depth"]):
        layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"])
        asked = {
            "attention": lambda z, p=layer["attention"]: Attention(2, 8).apply({"params": base_of(p)}, z, jnp.asarray(MASK)),
            "mlp": lambda z, p=layer["mlp"]: Mlp(64).apply({"params": base_of(p)}, z),
        }
        for branch, end in (("attention", "out"), ("mlp", "down")):
            norm = functools.partial(Norm().apply, {"params": layer[f"{branch}_norm"]})
            h = asked[branch](norm(x) if placement == "pre" else x)
            total = h + x if placement == "pre" else norm(h + x)
            if "bottleneck_down" in layer[branch][end]:
                own = {name: np.asarray(leaf) for name, leaf in layer[branch][end].items()}
                z = np.asarray(total if spec.normed else h)
                inner = BY_HAND[spec.activation](z @ own["bottleneck_down"] + own["bottleneck_down_bias"])
                h = h + jnp.asarray(inner @ own["bottleneck_up"] + own["bottleneck_up_bias"])
            x = h + x if placement == "pre" else norm(h + x)
    return np.asarray(x)


SPECS = {
    "houlsby": {"encoders_text/*": Bottleneck(r=3, activation="silu")},
    "pfeiffer": {"encoders_text/*/mlp/*": Bottleneck(r=5, normed=True)},
    "both, normed": {"encoders_text/*": Bottleneck(r=2, activation="tanh", normed=True)},
}


@pytest.mark.parametrize("way", SPECS)
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_stack_is_what_it_is_written_out(placement, way):
    model, params = reader(placement)
    begun = adapted(model, params, SPECS[way], jax.random.key(1))
    stack = Stack(norm_placement=placement, final_norm=False, **SIZE)

    def given(tree):
        own = {"layers": tree["encoders_text"]["stack"]["layers"]}
        return np.asarray(stack.apply({"params": own}, jnp.asarray(X), jnp.asarray(MASK))), own

    plain, _ = given(params)
    np.testing.assert_array_equal(given(begun)[0], plain)  # W_up is zeros
    found, own = given(moved(begun))
    np.testing.assert_allclose(found, by_hand(own, placement, next(iter(SPECS[way].values()))), atol=2e-5)
    assert np.abs(found - plain).max() > 0.1
    leaves = {path for path in leaves_by_path(begun) if path.endswith("/bottleneck_up")}
    assert len(leaves) == (1 if way == "pfeiffer" else 2)


def loss(model, params):
    forward = BoundForward(model, params, {"text": jnp.asarray(IDS), "text_mask": jnp.asarray(MASK)})
    return jnp.sum(jnp.square(forward.head("classes") - 1.0))


def test_layers_have_widths_of_their_own_and_the_others_stay_as_they_are():
    model, params = reader("post")
    layers = {"encoders_text/*/mlp/*[:1]": Bottleneck(r=2), "encoders_text/*/attention/*[1:]": Bottleneck(r=3)}
    layers["encoders_text/*/mlp/*[1:]"] = Bottleneck(r=5)
    begun = adapted(model, params, layers, jax.random.key(1))
    own = begun["encoders_text"]["stack"]["layers"]
    down, other = own["mlp"]["down"]["bottleneck_down"], own["attention"]["out"]["bottleneck_down"]
    assert down.shape == (2, 16, 5) and down[0, :, :2].all() and not down[0, :, 2:].any() and down[1].all()
    assert not other[0].any() and other[1].all()
    assert "encoders_text/stack/layers/attention/out/bottleneck_up_bias[1:2]" in trained_patterns(model, layers)
    became = map_with_path(lambda path, x: jnp.where(x == 0, 0, x + 0.1) if "bottleneck_down" in path else x, begun)
    up = became["encoders_text"]["stack"]["layers"]["mlp"]["down"]
    up["bottleneck_up"] = jnp.where(down.swapaxes(1, 2) != 0, 0.3, 0.0)
    grads = jax.grad(lambda p: loss(model, p))(became)["encoders_text"]["stack"]["layers"]["mlp"]["down"]
    for name, beyond in (("down", np.s_[0, :, 2:]), ("up", np.s_[0, 2:]), ("down_bias", np.s_[0, 2:])):
        leaf = np.asarray(grads[f"bottleneck_{name}"])
        assert not leaf[beyond].any() and leaf.any(), name  # what pads a width is never moved


def test_what_is_written_through_a_cache_is_what_the_whole_text_gives():
    text = TextDecoder(vocab_size=V, max_length=24, context=("image",), **SIZE)
    model = Multimodal(encoders={"image": ViT(image_size=(8, 8), patch=(4, 4), **SIZE)}, decoders={"lm": text})
    params = map_with_path(lambda path, x: 6 * x if path.endswith("kernel") else x, init_params(model, jax.random.key(0)))
    own = moved(adapted(model, params, {"decoders_lm/*": Bottleneck(r=3, normed=True)}, jax.random.key(1)), size=1.0)
    assert sum(path.endswith("_up") for path in leaves_by_path(own)) == 3  # after attention to the image too
    rules = Rules(settings_of({"max_new_tokens": 5}), (), 0)
    ids, mask, batch = jnp.asarray(IDS[:, ::-1]), jnp.asarray(MASK[:, ::-1]), {"image": jnp.asarray(PIXELS)}
    write = jax.jit(functools.partial(decode, model, decoder="lm", rules=rules))
    written = np.asarray(write(own, batch=batch, ids_BT=ids, mask_BT=mask).ids)
    for n, length in enumerate(MASK.sum(1)):
        row = np.concatenate([ids[n, 9 - length :], written[n]])[None]
        forward = BoundForward(model, own, {"image": batch["image"][n : n + 1]})
        logits = forward.decode("lm", {"text": jnp.asarray(row)}, {"image": forward.tokens("image")})
        np.testing.assert_array_equal(np.asarray(logits)[0, -6:-1].argmax(-1), written[n])
    assert (np.asarray(write(params, batch=batch, ids_BT=ids, mask_BT=mask).ids) != written).any()


def test_what_cannot_be_is_one_line():
    model, params = reader()
    for adapt, said in (
        ({"heads_classes/*": Bottleneck()}, r"matches no kernel that Bottleneck could be given.*one is 'encoders_text/stack"),
        ({"encoders_text/*/mlp/up/*": Bottleneck()}, "matches no kernel that Bottleneck could be given"),
        ({"all-linear": Bottleneck()}, "'all-linear' names kernels, which Bottleneck does not change"),
        ({"encoders_text/*": Bottleneck(), "*/mlp/*": Bottleneck(r=2)}, "a bottleneck takes one method, and a layer of it one"),
        (
            {"encoders_text/*[:1]": Bottleneck(), "encoders_text/*[1:]": Bottleneck(normed=True)},
            "differ in Bottleneck.activation or .normed",
        ),
    ):
        with pytest.raises(UserError, match=said):
            adapted(model, params, adapt, jax.random.key(0))
    for field, value in (("r", 0), ("activation", "swish"), ("deviation", 0.0)):
        with pytest.raises(UserError, match=f"Bottleneck.{field}={value!r}"):
            Bottleneck(**{field: value})
    with pytest.raises(UserError, match=r"what a bottleneck adds has no place.*to-adapters"):
        merged(model, adapted(model, params, {"encoders_text/*": Bottleneck()}, jax.random.key(0)))


def test_lora_of_the_same_kernel_goes_beside_it():
    model, params = reader()
    both = adapted(model, params, {"*/mlp/down/*": LoRA(r=2), "encoders_text/*": Bottleneck(r=2)}, jax.random.key(1))
    own = both["encoders_text"]["stack"]["layers"]["mlp"]["down"]
    assert {"lora_a", "bottleneck_down", "kernel"} <= own.keys()


def test_the_order_of_activations_is_what_stored_runs_say():
    assert ACTS == ("relu", "silu", "gelu", "gelu_tanh", "quick_gelu", "tanh")
