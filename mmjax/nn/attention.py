"""The attention module: projections around the one attention function."""

from __future__ import annotations

import functools

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.nn.attend import attend
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import dropout
from mmjax.nn.position import rotate
from mmjax.parallel.mesh import BATCH, TOKENS, constrain


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
    kind: str = "auto"  # see `attend`

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
        q_BTHK = constrain(q_BTHK, *TOKENS, "tensor", None)
        # Each part of a sequence attends to the whole of it, so keys and values are gathered over `sequence`.
        k_BSHK, v_BSHK = (constrain(a, BATCH, None, "tensor", None) for a in (k_BSHK, v_BSHK))
        q_BTHK, k_BSHK, v_BSHK = (checkpoint_name(a, "qkv") for a in (q_BTHK, k_BSHK, v_BSHK))
        dropping = self.dropout > 0.0 and self.has_rng("dropout")
        drop = functools.partial(dropout, self, rate=self.dropout) if dropping else None
        mixed_BTHK = attend(q_BTHK, k_BSHK, v_BSHK, mask_BS, None, self.causal, self.kind, drop)
        return Linear(x_BTD.shape[-1], axes=2, use_bias=self.bias, name="out")(mixed_BTHK)
