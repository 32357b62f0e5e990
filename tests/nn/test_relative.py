"""Relative positions in buckets beside PyTorch's T5, in the plain attention, with what was read before, and in packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.t5.modeling_t5 import T5Attention

from mmjax.core.errors import UserError
from mmjax.nn.attend import attend
from mmjax.nn.cache import attend_one, by_head
from mmjax.nn.relative import bucket_of
from mmjax.nn.stack import Stack

RNG = np.random.default_rng(0)
SMALL = {"width": 12, "depth": 2, "heads": 2, "mlp_width": 8, "relative": (8, 6), "query_scale": 1.0}


@given(st.integers(4, 70), st.integers(2, 300), st.booleans())
def test_buckets_are_those_of_t5(buckets, farthest, causal):
    own = buckets if causal else buckets // 2
    if farthest <= own // 2:
        with pytest.raises(UserError, match=f"relative_buckets={buckets} and relative_distance={farthest}: use at least"):
            bucket_of(buckets, farthest, causal)
        return
    found = bucket_of(buckets, farthest, causal)
    theirs = T5Attention._relative_position_bucket(-torch.arange(farthest + 1), not causal, buckets, farthest)
    np.testing.assert_array_equal(found, theirs.numpy())
    assert found[-1] == own - 1 and (np.diff(found) >= 0).all()


def test_logits_are_biased_before_the_softmax():
    q, k, v = (RNG.normal(size=(2, n, 4, 6)).astype(np.float32) for n in (3, 5, 5))
    bias = RNG.normal(size=(1, 4, 3, 5)).astype(np.float32)
    logits = np.einsum("bthk,bshk->bhts", q, k) * 6**-0.5 + bias
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = attend(*map(jnp.asarray, (q, k, v)), bias=jnp.asarray(bias))
    np.testing.assert_allclose(found, np.einsum("bhts,bshk->bthk", weights, v), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"attention='fused' cannot take 3 x 5 tokens.*, relative positions; use auto or plain"):
        attend(*map(jnp.asarray, (q, k, v)), kind="fused", bias=jnp.asarray(bias))


def test_one_query_of_grouped_heads_is_biased_as_all_are():
    q, k, v = (jnp.asarray(RNG.normal(size=(2, n, heads, 6)), jnp.float32) for n, heads in ((1, 4), (5, 2), (5, 2)))
    bias = jnp.asarray(RNG.normal(size=(2, 4, 1, 5)), jnp.float32)
    found = attend_one(q, (by_head(k), by_head(v)), None, bias=bias)
    np.testing.assert_allclose(found, attend(q, k, v, bias=bias), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def causal():
    stack = Stack(**SMALL, causal=True)
    x = jnp.asarray(RNG.normal(size=(2, 7, 12)), jnp.float32)
    params = stack.init(jax.random.key(0), x, jnp.ones((2, 7), bool))
    assert params["params"]["relative"]["table"].shape == (8, 2)
    params["params"]["relative"]["table"] = jnp.asarray(RNG.normal(size=(8, 2)), jnp.float32)
    return stack, params, x


def test_what_was_read_before_is_as_far_away(causal):
    """Token by token as at once, one slot for all rows and a slot for each."""
    stack, params, x = causal
    whole = stack.apply(params, x, jnp.ones((2, 7), bool))
    for index in (jnp.int32(6), jnp.full(2, 6, jnp.int32)):
        _, cache = stack.apply(params, x[:, :6], jnp.ones((2, 6), bool), None, None, method="cached")
        room = jax.tree.map(lambda kept: jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 0))), cache)
        mask = jnp.ones((2, 7), bool)
        last, _ = stack.apply(params, x[:, 6:], mask, None, None, room, index, method="cached")
        np.testing.assert_allclose(last[:, 0], whole[:, 6], rtol=1e-4, atol=1e-5)


def test_texts_of_a_packed_row_are_read_as_if_alone(causal):
    stack, params, x = causal
    packed = jnp.asarray([[0, 0, 0, 1, 1, 1, 1]] * 2, jnp.int32)
    found, _ = stack.apply(params, x, jnp.ones((2, 7), bool), packed=packed, method="tapped")
    for part in (slice(0, 3), slice(3, 7)):
        alone = stack.apply(params, x[:, part], jnp.ones(x[:, part].shape[:2], bool))
        np.testing.assert_allclose(found[:, part], alone, rtol=1e-4, atol=1e-5)
