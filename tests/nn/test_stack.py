import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytorch import torch

from mmjax.core.errors import UserError
from mmjax.core.flops import count_flops
from mmjax.core.stacked import Stacked
from mmjax.core.trees import leaves_by_path, map_with_path
from mmjax.nn.norm import Norm
from mmjax.nn.stack import Block, Stack

B, T, S, D, H, F, L = 2, 4, 3, 8, 2, 16, 2
DRAW = np.random.default_rng(0).normal
X, CONTEXT = DRAW(size=(B, T, D)).astype(np.float32), DRAW(size=(B, S, D)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
CONTEXT_MASK = np.array([[1, 0, 1], [1, 1, 1]], bool)
SIZE = {"width": D, "heads": H, "mlp_width": F}


def drawn(module, *args):
    """Parameters of a module, all of them drawn, so that none hides behind a zero or a one."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    draw = np.random.default_rng(0).normal
    return jax.tree.map(lambda x: jnp.asarray(draw(size=x.shape) * 0.3, x.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, *args):
    return module.apply({"params": params}, *args)


def in_parts(params, *edges):
    """The layers' parameters, each in parts that end at other layers."""

    def parted(path, leaf):
        own = edges if "mlp" in path else edges[:1]
        return Stacked(tuple(leaf[a:b] for a, b in zip((0, *own), (*own, leaf.shape[0]), strict=True)))

    return {**params, "layers": map_with_path(parted, params["layers"])}


# One block against PyTorch's layers.


def torch_layer(cls, placement):
    torch.manual_seed(0)
    layer = cls(D, H, F, dropout=0.0, activation="gelu", batch_first=True, norm_first=placement == "pre", layer_norm_eps=1e-5)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return layer


def linear(layer):
    return {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}


def norm(layer):
    return {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}


def attention(layer):
    weights = layer.in_proj_weight.detach().numpy().reshape(3, H, D // H, D).transpose(0, 3, 1, 2)
    biases = layer.in_proj_bias.detach().numpy().reshape(3, H, D // H)
    out = linear(layer.out_proj)
    out["kernel"] = out["kernel"].reshape(H, D // H, D)
    return {name: {"kernel": weights[i], "bias": biases[i]} for i, name in enumerate("qkv")} | {"out": out}


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_block_is_torchs_encoder_layer(placement):
    theirs = torch_layer(torch.nn.TransformerEncoderLayer, placement)
    params = {
        "attention": attention(theirs.self_attn),
        "attention_norm": norm(theirs.norm1),
        "mlp": {"up": linear(theirs.linear1), "down": linear(theirs.linear2)},
        "mlp_norm": norm(theirs.norm2),
    }
    y = apply(Block(**SIZE, norm_placement=placement, norm_epsilon=1e-5), params, X, MASK)
    expected = theirs(torch.from_numpy(X), src_key_padding_mask=torch.from_numpy(~MASK))
    np.testing.assert_allclose(y, expected.detach(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_causal_block_with_a_context_is_torchs_decoder_layer(placement):
    theirs = torch_layer(torch.nn.TransformerDecoderLayer, placement)
    params = {
        "attention": attention(theirs.self_attn),
        "attention_norm": norm(theirs.norm1),
        "cross_attention": attention(theirs.multihead_attn),
        "cross_attention_norm": norm(theirs.norm2),
        "mlp": {"up": linear(theirs.linear1), "down": linear(theirs.linear2)},
        "mlp_norm": norm(theirs.norm3),
    }
    block = Block(**SIZE, norm_placement=placement, norm_epsilon=1e-5, causal=True)
    y = apply(block, params, X, MASK, (CONTEXT, CONTEXT_MASK))
    expected = theirs(
        torch.from_numpy(X),
        torch.from_numpy(CONTEXT),
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        tgt_key_padding_mask=torch.from_numpy(~MASK),
        memory_key_padding_mask=torch.from_numpy(~CONTEXT_MASK),
    )
    np.testing.assert_allclose(y, expected.detach(), rtol=2e-5, atol=1e-5)


def test_layer_scale_multiplies_each_branch():
    scaled = Block(**SIZE, layer_scale=0.1)
    params = drawn(Block(**SIZE), X, MASK)

    def at(attention, mlp):
        scales = {"attention_layer_scale": jnp.full(D, attention), "mlp_layer_scale": jnp.full(D, mlp)}
        return apply(scaled, params | scales, X, MASK)

    np.testing.assert_array_equal(at(0.0, 0.0), X)
    np.testing.assert_allclose(at(1.0, 1.0), apply(Block(**SIZE), params, X, MASK), rtol=1e-6)
    np.testing.assert_allclose(at(0.5, 0.0) - X, (at(1.0, 0.0) - X) / 2, rtol=1e-4, atol=1e-6)
    shapes = jax.eval_shape(scaled.init, jax.random.key(0), X, MASK)["params"]
    assert shapes["mlp_layer_scale"].shape == (D,)


# The stack.

VARIANTS = {
    "rolled": {},
    "unrolled": {"unroll": True},
    "rolled, all recomputed": {"remat": "full"},
    "unrolled, all but products recomputed": {"unroll": True, "remat": "dots"},
    "rolled, what is cheap recomputed": {"remat": "cheap"},
    "rolled, all but q, k, v recomputed": {"remat": "lean"},
}


def deep(remat="none", unroll=False, **fields):
    return Stack(**(SIZE | {"depth": L, "remat": remat, "unroll": unroll} | fields))


@functools.cache
def value_and_gradient(name):
    stack = deep(**VARIANTS[name])

    def loss(params, x):
        y = stack.apply({"params": params}, x, MASK)
        return jnp.sum(jnp.sin(y)), y

    params = drawn(deep(), X, MASK)
    (_, y), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, jnp.asarray(X))
    return y, gradients


@pytest.mark.parametrize("name", list(VARIANTS)[1:])
def test_unrolling_and_rematerialisation_change_no_value_and_no_gradient(name):
    (y, gradients), (same_y, same_gradients) = value_and_gradient("rolled"), value_and_gradient(name)
    np.testing.assert_allclose(same_y, y, rtol=1e-6, atol=1e-6)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
    for path, g in leaves_by_path(gradients).items():
        np.testing.assert_allclose(leaves_by_path(same_gradients)[path], g, rtol=1e-5, atol=1e-6 * largest, err_msg=path)


@pytest.mark.parametrize("unroll", [False, True])
def test_rematerialisation_recomputes_what_it_says(unroll):
    params = jax.eval_shape(deep().init, jax.random.key(0), X, MASK)

    def flops(remat, gradient=True):
        def loss(params, x):
            return jnp.sum(deep(remat, unroll).apply(params, x, MASK))

        return count_flops(jax.grad(loss, argnums=(0, 1)) if gradient else loss, params, X)

    forward, none, dots, full = flops("none", False), flops("none"), flops("dots"), flops("full")
    cheap, lean = flops("cheap"), flops("lean")
    attention = L * 2 * (2 * B * T * T * D)
    assert none == 3 * forward
    assert none < dots <= none + attention
    assert none < cheap <= none + attention
    assert none + attention < full <= 4 * forward
    assert cheap < lean < full


def test_layers_are_stored_stacked_whatever_the_switches():
    shapes = [jax.eval_shape(deep(**v).init, jax.random.key(0), X, MASK)["params"] for v in VARIANTS.values()]
    assert all(tree == shapes[0] for tree in shapes)
    assert shapes[0]["layers"]["attention"]["q"]["kernel"].shape == (L, D, H, D // H)
    assert shapes[0]["layers"]["mlp"]["up"]["bias"].shape == (L, F)
    assert shapes[0]["final_norm"]["scale"].shape == (D,)


def test_a_stack_is_its_blocks_one_after_another():
    params = drawn(deep(), X, MASK)
    x = jnp.asarray(X)
    for i in range(L):
        layer = jax.tree.map(lambda p, i=i: p[i], params["layers"])
        x = apply(Block(**SIZE), layer, x, MASK)
    y = apply(deep(final_norm=False), {"layers": params["layers"]}, X, MASK)
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)


def test_layers_drop_different_activations():
    ones = jnp.ones((1, 1, 64))
    params = drawn(Stack(width=64, heads=1, mlp_width=1, depth=2, final_norm=False), ones, None)
    params = jax.tree.map(jnp.zeros_like, params)
    params["layers"]["mlp"]["down"]["bias"] = jnp.array([[1.0], [10.0]]) * jnp.ones((2, 64))
    stack = Stack(width=64, heads=1, mlp_width=1, depth=2, final_norm=False, dropout=0.5)
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles ten times faster than the default
    added = jax.jit(lambda key: stack.apply({"params": params}, ones, None, rngs={"dropout": key}) - 1.0)(key)
    assert set(np.unique(np.round(np.asarray(added), 4))) == {0.0, 2.0, 20.0, 22.0}


def test_an_example_skips_a_whole_branch():
    ones = jnp.ones((64, 1, 8))
    stack = Stack(width=8, heads=1, mlp_width=1, depth=2, final_norm=False, drop_path=0.5)
    params = jax.tree.map(jnp.zeros_like, drawn(stack, ones, None))
    params["layers"]["mlp"]["down"]["bias"] = jnp.array([[1.0], [10.0]]) * jnp.ones((2, 8))
    key = jax.random.key(0, impl="unsafe_rbg")
    added = jax.jit(lambda key: stack.apply({"params": params}, ones, None, rngs={"dropout": key}) - 1.0)(key)
    added = np.asarray(added)[:, 0]
    assert (added == added[:, :1]).all()
    assert set(np.unique(np.round(added, 4))) == {0.0, 2.0, 20.0, 22.0}
    np.testing.assert_array_equal(apply(stack, params, ones, None), ones + 11.0)


@pytest.mark.parametrize("unroll", [False, True])
def test_a_layer_before_the_last_may_be_taken(unroll):
    stack = deep(unroll=unroll)
    params = drawn(stack, X, MASK)
    assert jax.tree.structure(params) == jax.tree.structure(drawn(stack.copy(take_layer=1), X, MASK))
    first = apply(Block(**SIZE), jax.tree.map(lambda p: p[0], params["layers"]), X, MASK)
    for layer, expected in ((0, X), (-L - 1, X), (1, first), (-L, first)):
        np.testing.assert_allclose(apply(stack.copy(take_layer=layer), params, X, MASK), expected, rtol=1e-5, atol=1e-6)
    last = apply(stack.copy(take_layer=-1), params, X, MASK)
    np.testing.assert_allclose(apply(Norm(), params["final_norm"], last), apply(stack, params, X, MASK), rtol=1e-5, atol=1e-6)


def test_the_feed_forward_layer_may_differ_in_its_biases():
    for bias, mlp_bias, attention in ((False, True, False), (True, False, True), (True, None, True)):
        layers = leaves_by_path(drawn(deep(bias=bias, mlp_bias=mlp_bias), X, MASK)["layers"])
        assert ("attention/out/bias" in layers) == attention
        assert ("mlp/up/bias" in layers) == ("mlp/down/bias" in layers) == (bias if mlp_bias is None else mlp_bias)


def test_no_layers_is_only_the_norm():
    assert jax.eval_shape(deep(depth=0, final_norm=False).init, jax.random.key(0), X, MASK) == {}
    np.testing.assert_array_equal(deep(depth=0, final_norm=False).apply({}, X, MASK), X)
    assert "final_norm" not in jax.eval_shape(deep(norm_placement="post").init, jax.random.key(0), X, MASK)["params"]


@functools.cache
def masked(causal):
    fields = {"causal": causal, "norm_placement": "pre" if causal else "post", "rotary": True}
    params = drawn(deep(**fields), X, MASK, None, jnp.zeros((B, T), jnp.int32))
    places = np.broadcast_to(np.arange(6)[None], (B, 6))
    return jax.jit(lambda x, mask: deep(**fields).apply({"params": params}, x, mask, None, jnp.asarray(places)))


@given(length=st.integers(1, 6), seed=st.integers(0, 99), causal=st.booleans())
def test_padding_changes_no_real_token(length, seed, causal):
    draw = np.random.default_rng(seed).normal
    real = draw(size=(B, length, D))
    padded = [np.concatenate([real, draw(size=(B, 6 - length, D)) * size], axis=1).astype(np.float32) for size in (1, 1e3)]
    mask = np.broadcast_to(np.arange(6)[None] < length, (B, 6))
    one, other = (masked(causal)(x, mask)[:, :length] for x in padded)
    np.testing.assert_array_equal(one, other)


def test_a_shorter_array_gives_the_same_as_a_padded_one():
    stack = deep(norm_placement="post")
    params = drawn(stack, X, MASK)
    whole = apply(stack, params, X, MASK)
    np.testing.assert_allclose(apply(stack, params, X[1:, :2], MASK[1:, :2]), whole[1:, :2], rtol=1e-5, atol=1e-5)


def test_a_causal_token_sees_nothing_after_it():
    stack = deep(causal=True)
    params = drawn(stack, X, MASK)
    changed = X.copy()
    changed[:, 2, 0] += 1.0
    one, other = (apply(stack, params, x, np.ones((B, T), bool)) for x in (X, changed))
    np.testing.assert_array_equal(one[:, :2], other[:, :2])
    assert np.abs(one[:, 2:] - other[:, 2:]).max(axis=-1).min() > 1e-4


def test_two_streams_play_symmetric_roles_and_read_each_other_as_they_stood():
    stack = deep(co=True, depth=1)
    streams, masks = (jnp.asarray(X), jnp.asarray(CONTEXT)), (jnp.asarray(MASK), jnp.asarray(CONTEXT_MASK))
    params = drawn(stack, streams, masks)
    first, second = (jax.tree.map(lambda p: p[0], params["layers"][name]) for name in ("first", "second"))
    x, y = apply(stack, params, streams, masks)

    def one_stream(block, norm, *args):
        return apply(Norm(), params[norm], apply(Block(**SIZE), block, *args))

    np.testing.assert_allclose(x, one_stream(first, "first_norm", X, MASK, (CONTEXT, CONTEXT_MASK)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y, one_stream(second, "second_norm", CONTEXT, CONTEXT_MASK, (X, MASK)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"activation": "swiglu", "norm": "rmsnorm", "layer_scale": 0.1, "kv_heads": 1}])
def test_bfloat16_goes_in_and_comes_out(fields):
    stack = deep(remat="dots", dropout=0.1, attention_dropout=0.1, **fields)
    x, context = jnp.asarray(X, jnp.bfloat16), jnp.asarray(CONTEXT, jnp.bfloat16)

    def out(key):
        return stack.init_with_output({"params": key, "dropout": key}, x, MASK, (context, CONTEXT_MASK))

    y, params = jax.eval_shape(out, jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"norm_placement": "middle"}, "norm_placement='middle': use pre or post"),
        ({"take_layer": 3}, "take_layer=3: there are 2 layers; use None, or at most 2"),
        ({"remat": "some"}, "remat='some': use one of none, full, dots, cheap, lean"),
        ({"heads": 3}, "heads=3 does not divide width=8"),
        ({"heads": 0}, "heads=0 does not divide width=8"),
        ({"heads": 8, "rotary": True}, "rotary positions need an even head width, found 1"),
        ({"kv_heads": 3}, "heads=2 is not a multiple of kv_heads=3"),
        ({"activation": "gleu"}, "activation='gleu': use one of gelu"),
        ({"norm": "batch"}, "norm='batch': use one of layernorm, rmsnorm"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        jax.eval_shape(deep(**fields).init, jax.random.key(0), X, MASK)


# Parameters in parts.


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("options", [{}, {"take_layer": 3, "taps": (0, 2, 3)}, {"norm_placement": "post", "remat": "cheap"}])
def test_a_stack_whose_parameters_come_in_parts_gives_the_same(options, unroll):
    stack = Stack(**SIZE, depth=5, unroll=unroll, **options)
    params = drawn(stack, X, MASK)

    def run(params):
        return stack.apply({"params": params}, X, MASK, method="tapped")

    whole, parts = jax.jit(run)(params), jax.jit(run)(in_parts(params, 2, 4))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_loops_over_parts_draw_dropout_of_their_own():
    """Layers of equal parameters: what the second loop drops is not what the first one drops."""
    stack = Stack(**SIZE, depth=2, dropout=0.5, final_norm=False, taps=(1, 2))
    params = drawn(stack, X, MASK)
    params["layers"] = jax.tree.map(lambda x: jnp.concatenate([x[:1], x[:1]]), params["layers"])
    nothing = {
        **params,
        "layers": map_with_path(lambda p, x: x * float("bias" in p), params["layers"]),
    }  # a branch gives its bias
    run = functools.partial(stack.apply, mutable=False, method="tapped", rngs={"dropout": jax.random.key(0)})
    taps = run({"params": in_parts(nothing, 1)}, X, MASK)[1]
    first, second = taps["1"] - X, taps["2"] - taps["1"]
    assert (np.abs(first - second) > 1e-6).mean() > 0.2
