"""Attention: one function for the arithmetic, one module for the projections."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import dropout
from mmjax.nn.position import rotate
from mmjax.parallel.mesh import BATCH, TOKENS, constrain


def attention_weights(q_BHTK: Array, k_BHSK: Array, mask_BS: Array | None, causal: bool) -> Array:
    """[B, H, T, S] float32 softmax weights (Vaswani 2017, eq. 1). A query that may attend to nothing attends evenly."""
    scaled_BHTK = q_BHTK * q_BHTK.shape[-1] ** -0.5
    logits = jnp.einsum("bhtk,bhsk->bhts", scaled_BHTK, k_BHSK, preferred_element_type=jnp.float32)
    lowest = jnp.finfo(jnp.float32).min
    if mask_BS is not None:
        logits = jnp.where(mask_BS[:, None, None, :], logits, lowest)
    if causal:
        t, s = logits.shape[-2:]
        allowed = jnp.arange(s)[None, :] <= jnp.arange(t)[:, None] + (s - t)
        logits = jnp.where(allowed[None, None], logits, lowest)
    return jax.nn.softmax(logits, axis=-1)


class Attention(nn.Module):
    """Multi-head attention of x to itself, or to a context.

    Projections are kept by head: `q/kernel` [D, H, K], `k`, `v` [D', Hkv, K], `out/kernel` [H, K, D], so that the `tensor`
    axis splits heads. With `kv_heads < heads` each key head serves several query heads (Ainslie 2023).
    """

    heads: int
    head_width: int
    kv_heads: int = 0  # 0: as many as `heads`
    qkv_bias: bool = True
    bias: bool = True
    causal: bool = False
    rotary: bool = False
    theta: float = 10000.0
    rotary_scaling: tuple[float, ...] = ()
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x_BTD: Array, mask_BS: Array | None, context_BSD: Array | None = None, positions_BT: Array | None = None
    ) -> Array:
        source = x_BTD if context_BSD is None else context_BSD
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise UserError(f"heads={self.heads} is not a multiple of kv_heads={kv_heads}")
        q_BTHK = Linear((self.heads, self.head_width), use_bias=self.qkv_bias, name="q")(x_BTD)
        k_BSHK = Linear((kv_heads, self.head_width), use_bias=self.qkv_bias, name="k")(source)
        v_BSHK = Linear((kv_heads, self.head_width), use_bias=self.qkv_bias, name="v")(source)
        if self.rotary:
            assert positions_BT is not None
            q_BTHK, k_BSHK = (rotate(x, positions_BT, self.theta, self.rotary_scaling) for x in (q_BTHK, k_BSHK))
        if kv_heads != self.heads:
            k_BSHK, v_BSHK = (jnp.repeat(kv, self.heads // kv_heads, axis=2) for kv in (k_BSHK, v_BSHK))
        q_BTHK = constrain(q_BTHK, *TOKENS, "tensor", None)
        # Each part of a sequence attends to the whole of it, so keys and values are gathered over `sequence`.
        k_BSHK, v_BSHK = (constrain(a, BATCH, None, "tensor", None) for a in (k_BSHK, v_BSHK))
        # Heads before tokens: on the CPU a step is 8% faster than with the same products over [B, T, H, K].
        q_BHTK, k_BHSK, v_BHSK = (a.transpose(0, 2, 1, 3) for a in (q_BTHK, k_BSHK, v_BSHK))
        weights_BHTS = attention_weights(q_BHTK, k_BHSK, mask_BS, self.causal)
        weights_BHTS = dropout(self, weights_BHTS, self.dropout).astype(v_BHSK.dtype)
        mixed_BTHK = jnp.einsum("bhts,bhsk->bhtk", weights_BHTS, v_BHSK).transpose(0, 2, 1, 3)
        return Linear(x_BTD.shape[-1], axes=2, use_bias=self.bias, name="out")(mixed_BTHK)
