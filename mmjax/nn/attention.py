"""The attention module: projections around the one attention function."""

from __future__ import annotations

import functools

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.nn.attend import attend
from mmjax.nn.cache import Kept, attend_one, by_head
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import dropout
from mmjax.nn.position import rotate
from mmjax.nn.virtual import prefixed, prefixed_mask
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
    key_bias: bool = True
    bias: bool = True
    causal: bool = False
    rotary: bool = False
    theta: float = 10000.0
    rotary_scaling: tuple[float, ...] = ()
    dropout: float = 0.0
    query_scale: float = 0.0  # of the products of queries and keys; 0: head_width ** -0.5
    kind: str = "auto"  # see `attend`

    def __call__(
        self, x_BTD: Array, mask_BS: Array | None, context_BSD: Array | None = None, positions_BT: Array | None = None
    ) -> Array:
        return self.cached(x_BTD, mask_BS, context_BSD, positions_BT)[0]

    @nn.compact
    def cached(
        self,
        x_BTD: Array,
        mask_BS: Array | None,
        context_BSD: Array | None = None,
        positions_BT: Array | None = None,
        cache: Kept | None = None,
        index: Array | None = None,
        packed_BT: Array | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Kept]:
        """The result, and the keys and values of x, or of the context, [B, G, T, K] each.

        Args:
          cache: keys and values of tokens read before, in S slots. With an `index` x is one token, which belongs there, and
            attends to itself and to the other slots of the mask; without, x attends to the slots as they are (a context's).
          packed_BT: int32, of a row that holds several texts the number of each token's: it sees its own text alone.
          bias: [b, H, T, S], b of 1 or B, added to the logits.
        """
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise UserError(f"heads={self.heads} is not a multiple of kv_heads={kv_heads}")
        q_BTHK = Linear((self.heads, self.head_width), use_bias=self.qkv_bias, name="q")(x_BTD)
        if self.rotary:
            assert positions_BT is not None
            q_BTHK = rotate(q_BTHK, positions_BT, self.theta, self.rotary_scaling)
        if self.query_scale:  # what runs attention divides by the root of the width
            q_BTHK = q_BTHK * (self.query_scale * self.head_width**0.5)
        q_BTHK = checkpoint_name(constrain(q_BTHK, *TOKENS, "tensor", None), "qkv")
        if cache is not None and index is None:  # of a context, computed once
            return self._out(x_BTD, attend_one(q_BTHK, cache, mask_BS)), cache
        source_BSD = x_BTD if context_BSD is None else context_BSD
        k_BSGK, v_BSGK = self._keys(source_BSD, kv_heads, positions_BT, first=cache is None)
        new = (by_head(k_BSGK), by_head(v_BSGK))
        if cache is not None and index is not None:
            return self._out(x_BTD, attend_one(q_BTHK, cache, mask_BS, new, index, bias)), new
        mask_BS = prefixed_mask(mask_BS, k_BSGK.shape[1])
        dropping = self.dropout > 0.0 and self.has_rng("dropout")
        drop = functools.partial(dropout, self, rate=self.dropout) if dropping else None
        segments = None if packed_BT is None else (packed_BT, packed_BT)
        if segments is not None and k_BSGK.shape[1] != x_BTD.shape[1]:
            raise UserError("a prefix belongs to one text, and data.packing puts several into a row; leave it away")
        if bias is not None and k_BSGK.shape[1] != bias.shape[-1]:
            raise UserError("a prefix stands nowhere, and these positions are relative; leave it away, or use a Prompt")
        return self._out(x_BTD, attend(q_BTHK, k_BSGK, v_BSGK, mask_BS, segments, self.causal, self.kind, drop, bias)), new

    def _out(self, x_BTD: Array, mixed_BTHK: Array) -> Array:
        return Linear(x_BTD.shape[-1], axes=2, use_bias=self.bias, name="out")(mixed_BTHK)

    def _keys(self, source_BSD: Array, heads: int, positions_BT: Array | None, first: bool) -> Kept:
        """Keys and values, with the prefix before them where these are the first."""
        biases = {"k": self.qkv_bias and self.key_bias, "v": self.qkv_bias}
        k, v = (Linear((heads, self.head_width), use_bias=has, name=name) for name, has in biases.items())
        k_BSGK, v_BSGK = k(source_BSD), v(source_BSD)
        if self.rotary:
            assert positions_BT is not None
            k_BSGK = rotate(k_BSGK, positions_BT, self.theta, self.rotary_scaling)
        if first:  # those of a prefix are learned as they are, and turned by no position
            k_BSGK, v_BSGK = prefixed(k.prefix(), k_BSGK, v_BSGK)
        # Each part of a sequence attends to the whole of it, so keys and values are gathered over `sequence`.
        k_BSGK, v_BSGK = (constrain(a, BATCH, None, "tensor", None) for a in (k_BSGK, v_BSGK))
        return checkpoint_name(k_BSGK, "qkv"), checkpoint_name(v_BSGK, "qkv")
