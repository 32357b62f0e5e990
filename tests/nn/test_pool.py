import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytorch import torch
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from mmjax.core.errors import UserError
from mmjax.core.types import Tokens
from mmjax.nn.pool import Pool

DRAW = np.random.default_rng(0).normal
X = DRAW(size=(3, 5, 8)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)


def pool(kind, mask=MASK, x=X):
    return np.asarray(Pool(kind).apply({}, Tokens(jnp.asarray(x), jnp.asarray(mask))))


def test_the_first_the_last_real_and_the_mean():
    np.testing.assert_array_equal(pool("cls"), X[:, 0])
    np.testing.assert_array_equal(pool("last"), X[[0, 1, 2], [2, 4, 0]])
    expected = np.stack([X[0, :3].mean(0), X[1].mean(0), X[2, 0]])
    np.testing.assert_allclose(pool("mean"), expected, rtol=1e-5, atol=1e-6)
    expected = np.stack([X[0, 1:3].mean(0), X[1, 1:].mean(0), np.zeros(8)])  # nothing after the first: zeros
    np.testing.assert_allclose(pool("rest"), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pool("cls_rest"), np.concatenate([X[:, 0], pool("rest")], axis=1))


@pytest.mark.parametrize("kind", ["cls", "last", "mean", "rest", "cls_rest"])
def test_a_row_of_padding_is_finite(kind):
    assert np.isfinite(pool(kind, np.zeros_like(MASK))).all()


def test_the_mean_of_bfloat16_is_taken_in_float32():
    # 4096 ones: a running bfloat16 sum would stop at 256.
    tokens = Tokens(jnp.ones((1, 4096, 2), jnp.bfloat16), jnp.ones((1, 4096), bool))
    pooled = Pool("mean").apply({}, tokens)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, np.ones((1, 2)))


def siglip():
    torch.manual_seed(0)
    config = SiglipVisionConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, hidden_act="gelu_pytorch_tanh")
    head = SiglipMultiheadAttentionPoolingHead(config).eval()
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return head


def siglip_params(head):
    p = {name: w.detach().numpy() for name, w in head.named_parameters()}
    qkv = p["attention.in_proj_weight"].reshape(3, 2, 4, 8).transpose(0, 3, 1, 2)
    qkv_bias = p["attention.in_proj_bias"].reshape(3, 2, 4)
    attention = {name: {"kernel": qkv[i], "bias": qkv_bias[i]} for i, name in enumerate("qkv")}
    out = {"kernel": p["attention.out_proj.weight"].T.reshape(2, 4, 8), "bias": p["attention.out_proj.bias"]}
    return {
        "probe": p["probe"][0],
        "attention": attention | {"out": out},
        "norm": {"scale": p["layernorm.weight"], "bias": p["layernorm.bias"]},
        "mlp": {
            ours: {"kernel": p[f"mlp.{its}.weight"].T, "bias": p[f"mlp.{its}.bias"]}
            for ours, its in (("up", "fc1"), ("down", "fc2"))
        },
    }


def test_attention_pooling_is_siglips():
    head = siglip()
    ours = Pool("attention", heads=2, mlp_width=16, activation="gelu_tanh")
    y = jax.jit(ours.apply)({"params": siglip_params(head)}, Tokens(jnp.asarray(X), jnp.ones((3, 5), bool)))
    np.testing.assert_allclose(y, head(torch.from_numpy(X)).detach(), rtol=2e-5, atol=2e-6)


def test_attention_pooling_does_not_see_padding():
    ours, params = Pool("attention", heads=2), siglip_params(siglip())
    params["mlp"] = {
        "up": {"kernel": np.ones((8, 32)), "bias": np.ones(32)},
        "down": {"kernel": np.ones((32, 8)), "bias": np.ones(8)},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    other = np.where(MASK[..., None], X, 100.0).astype(np.float32)
    y, z = (ours.apply({"params": params}, Tokens(jnp.asarray(x), jnp.asarray(MASK))) for x in (X, other))
    np.testing.assert_array_equal(y, z)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="pool='max': use one of cls, first_two, last, mean, rest, cls_rest, attention"):
        pool("max")
    with pytest.raises(UserError, match="heads=3 of attention pooling does not divide width=8"):
        Pool("attention", heads=3).init(jax.random.key(0), Tokens(jnp.asarray(X), jnp.asarray(MASK)))
