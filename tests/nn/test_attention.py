import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch import functional as F  # noqa: N812
from pytorch import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mmjax.core.errors import UserError
from mmjax.nn.attend import attention_weights
from mmjax.nn.attention import Attention

B, T, S, D, H, K = 2, 5, 7, 8, 4, 6
DRAW = np.random.default_rng(0).normal
X, CONTEXT = DRAW(size=(B, T, D)).astype(np.float32), DRAW(size=(B, S, D)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
CONTEXT_MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0, 1]], bool)


def parameters(kv_heads=H):
    shapes = {"q": (D, H, K), "k": (D, kv_heads, K), "v": (D, kv_heads, K), "out": (H, K, D)}
    kernels = {name: DRAW(size=shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}
    biases = {name: DRAW(size=k.shape[2:] if name == "out" else k.shape[1:]).astype(np.float32) for name, k in kernels.items()}
    return {name: {"kernel": kernels[name], "bias": biases[name]} for name in shapes}


def torch_attention(params, x, mask, context=None, causal=False, angles=None):
    """torch.nn.functional's attention between einsum projections of the same weights."""
    p = {name: {part: torch.from_numpy(a) for part, a in layer.items()} for name, layer in params.items()}
    x = torch.from_numpy(x)
    source = x if context is None else torch.from_numpy(context)
    q, k, v = (
        torch.einsum("btd,dhk->bhtk", s, p[name]["kernel"]) + p[name]["bias"][None, :, None]
        for name, s in (("q", x), ("k", source), ("v", source))
    )
    if angles is not None:
        q, k = apply_rotary_pos_emb(q, k, *angles)
    allowed = torch.from_numpy(mask)[:, None, None, :].expand(-1, 1, q.shape[2], -1)
    if causal:
        allowed = allowed & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
    return torch.einsum("bhtk,hkd->btd", mixed, p["out"]["kernel"]) + p["out"]["bias"]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_torchs(kv_heads, causal):
    params = parameters(kv_heads)
    y = Attention(H, K, kv_heads=kv_heads, causal=causal).apply({"params": params}, X, MASK)
    np.testing.assert_allclose(y, torch_attention(params, X, MASK, causal=causal), rtol=1e-4, atol=2e-5)


def test_cross_attention_is_torchs():
    params = parameters()
    y = Attention(H, K).apply({"params": params}, X, CONTEXT_MASK, CONTEXT)
    np.testing.assert_allclose(y, torch_attention(params, X, CONTEXT_MASK, CONTEXT), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_rotary_attention_is_transformers(theta):
    params = parameters(kv_heads=2)
    positions = np.array([[0, 1, 2, 3, 4], [3, 4, 9, 0, 1]])
    frequencies = theta ** -(np.arange(0, K, 2) / K)
    turns = np.concatenate([positions[..., None] * frequencies] * 2, axis=-1)
    angles = [torch.from_numpy(f(turns).astype(np.float32)) for f in (np.cos, np.sin)]
    layer = Attention(H, K, kv_heads=2, causal=True, rotary=True, theta=theta)
    y = layer.apply({"params": params}, X, MASK, positions_BT=jnp.asarray(positions))
    np.testing.assert_allclose(y, torch_attention(params, X, MASK, causal=True, angles=angles), rtol=1e-4, atol=2e-5)


def test_biases_are_optional():
    shapes = jax.eval_shape(Attention(H, K, qkv_bias=False).init, jax.random.key(0), X, MASK)["params"]
    names = {name: sorted(layer) for name, layer in shapes.items()}
    assert names == {"q": ["kernel"], "k": ["kernel"], "v": ["kernel"], "out": ["bias", "kernel"]}


def test_fewer_queries_than_keys_are_the_last_ones():
    q, k = (jnp.asarray(DRAW(size=(1, 2, n, 4)), jnp.float32) for n in (5, 5))
    whole = attention_weights(q, k, None, causal=True)
    np.testing.assert_allclose(attention_weights(q[:, :, 3:], k, None, causal=True), whole[:, :, 3:], rtol=1e-6)


def test_weights_are_float32_whatever_the_input():
    q, k = (jnp.asarray(DRAW(size=(2, 2, 64, 4)) * 4, jnp.bfloat16) for _ in range(2))
    weights = attention_weights(q, k, None, causal=True)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones((2, 2, 64)), rtol=1e-6)
    y = jax.eval_shape(Attention(H, K).apply, {"params": parameters()}, jnp.asarray(X, jnp.bfloat16), MASK)
    assert y.dtype == jnp.bfloat16


def test_huge_logits_stay_finite():
    q = jnp.full((1, 1, 3, 4), 1e4)
    assert np.isfinite(attention_weights(q, q, None, causal=False)).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_that_may_see_nothing_has_a_finite_output_and_gradient(causal):
    params = parameters()
    layer = Attention(H, K, causal=causal)

    def loss(params, x):
        return jnp.sum(layer.apply({"params": params}, x, jnp.zeros((B, T), bool)) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, jnp.asarray(X))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_dropout_drops_weights_when_training_only():
    params, layer = {"params": parameters()}, Attention(H, K, dropout=0.5)
    plain = layer.apply(params, X, MASK)
    np.testing.assert_array_equal(plain, Attention(H, K).apply(params, X, MASK))
    assert not np.allclose(layer.apply(params, X, MASK, rngs={"dropout": jax.random.key(0, impl="unsafe_rbg")}), plain)


def test_heads_that_do_not_share_evenly_are_refused():
    with pytest.raises(UserError, match="heads=4 is not a multiple of kv_heads=3"):
        Attention(H, K, kv_heads=3).init(jax.random.key(0), X, MASK)
