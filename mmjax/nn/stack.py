"""The Transformer stack, and the only rematerialisation.

Layers are stored stacked, `[L, ...]` under `layers`, rolled or not: `unroll` is the same scan with every step laid out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.stacked import in_parts, is_stacked, layers_of, segments
from mmjax.core.types import Array
from mmjax.nn.attention import Attention
from mmjax.nn.bottleneck import after_branch
from mmjax.nn.cache import Cache, Kept
from mmjax.nn.loop import both, later, loop_over, taken
from mmjax.nn.mlp import Mlp, dropout
from mmjax.nn.norm import Norm
from mmjax.nn.relative import relative_bias
from mmjax.nn.virtual import replaced
from mmjax.parallel.mesh import constrain_tokens

REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("linear", "attention"),
    # What a layer's backward pass needs and only a product or a kernel can make again.
    "cheap": jax.checkpoint_policies.save_only_these_names("qkv", "attention", "mixed", "mlp_up"),
    "lean": jax.checkpoint_policies.save_only_these_names("qkv"),
}


class StackFields(nn.Module):
    """The settings of a stack, inherited by every module that holds one, so that a config writes them flat.

    Attributes:
      width: D, the width of an embedding.
      depth: L, how many layers.
      heads: H, attention heads; they divide `width` unless `head_width` is set.
      head_width: K; 0 is width / heads.
      kv_heads: 0 is `heads`; fewer share keys and values between heads.
      mlp_width: F; 0 is 4 * width.
      activation: `gelu`, `gelu_tanh`, `quick_gelu`, `relu`, `silu`, `tanh` (`nn.activation`), or gated: `swiglu`, `geglu`,
        `geglu_tanh`, `reglu`.
      norm: `layernorm` or `rmsnorm`.
      norm_epsilon: added to the variance.
      norm_placement: `pre` (GPT-2, ViT) or `post` (BERT).
      qkv_bias: whether queries, keys and values have biases.
      key_bias: whether keys have theirs where queries and values have (Whisper's have not: none changes an output).
      bias: whether every other projection has one.
      mlp_bias: biases of the feed-forward layer where they differ from `bias` (None: the same).
      layer_scale: initial scale of each residual branch (Touvron 2021, eq. 4); 0 is none.
      query_scale: what products of queries and keys are multiplied by; 0 is head_width ** -0.5 (T5's is 1).
      theta: base wavelength of rotary positions.
      rotary_scaling: how they are stretched (see `position.rotary_frequencies`).
      dropout: rate of each residual branch's dropout, on when training.
      mlp_dropout: rate of the dropout within the feed-forward layer, after its activation.
      attention_dropout: rate at which attention weights are dropped, on when training.
      drop_path: rate at which an example skips a residual branch, on when training (Huang 2016), the same in each layer.
      unroll: lay the layers out instead of looping (faster on small models, slower to compile).
      remat: what the backward pass recomputes: `none`, `full`, `dots`, `cheap` or `lean`. `full` is everything, `dots` all but
        what linear layers gave, `cheap` norms, activations and attention weights, from what products and attention kernels
        gave, `lean` all but queries, keys and values (a third of the memory for a seventh more FLOPs).
      attention: which attention runs, see `attend.attend`.
    """

    width: int = setting(everyday=True, least=1, default=768)
    depth: int = setting(everyday=True, least=0, default=12)
    heads: int = setting(least=1, default=12)
    head_width: int = setting(least=0, default=0)
    kv_heads: int = setting(least=0, default=0)
    mlp_width: int = setting(least=0, default=0)
    activation: str = "gelu"
    norm: str = "layernorm"
    norm_epsilon: float = setting(least=0, default=1e-6)
    norm_placement: str = "pre"
    qkv_bias: bool = True
    key_bias: bool = True
    bias: bool = True
    mlp_bias: bool | None = None
    layer_scale: float = setting(least=0, default=0.0)
    query_scale: float = setting(least=0, default=0.0)
    theta: float = setting(above=0, default=10000.0)
    rotary_scaling: tuple[float, ...] = ()
    dropout: float = setting(least=0, below=1, default=0.0)
    mlp_dropout: float = setting(least=0, below=1, default=0.0)
    attention_dropout: float = setting(least=0, below=1, default=0.0)
    drop_path: float = setting(least=0, below=1, default=0.0)
    unroll: bool = False
    remat: str = "none"
    attention: str = "auto"

    def stack(self, **changes: Any) -> Stack:
        """A stack with these settings."""
        return Stack(**self._settings(), **changes)

    def _settings(self) -> dict[str, Any]:
        names = [f.name for f in dataclasses.fields(StackFields) if f.name not in ("parent", "name")]
        return {name: getattr(self, name) for name in names}

    def _norm(self, name: str) -> Norm:
        return Norm(self.norm, self.norm_epsilon, name=name)


class Block(StackFields):
    """Self-attention, optional cross-attention to a context, feed-forward; each with its norm and residual."""

    causal: bool = False
    rotary: bool = False
    after: int = 0  # how many tokens come before virtual ones of the layer's own

    def __call__(
        self,
        x_BTD: Array,
        mask_BT: Array,
        context: Any = None,
        positions_BT: Any = None,
        packed_BT: Any = None,
        bias: Any = None,
    ) -> Array:
        return self.cached(x_BTD, mask_BT, context, positions_BT, packed_BT=packed_BT, bias=bias)[0]

    @nn.compact
    def cached(
        self,
        x_BTD: Array,
        mask_BT: Array,
        context: Any,
        positions_BT: Any,
        cache: Any = None,
        index: Any = None,
        bias: Any = None,
        packed_BT: Any = None,
    ) -> tuple[Array, dict[str, Kept]]:
        """The result, and the new keys and values of each attention; `cache` has those before (`Attention.cached`)."""
        x_BTD, kept, known = constrain_tokens(replaced(self, x_BTD, self.after)), {}, cache or {}

        def self_attention(x: Array) -> Array:
            attention = self._attention("attention", self.causal, self.rotary)
            before = known.get("attention")
            y, kept["attention"] = attention.cached(x, mask_BT, None, positions_BT, before, index, packed_BT, bias)
            return y

        def cross_attention(x: Array) -> Array:
            attention = self._attention("cross_attention", False, False)
            y, new = attention.cached(x, context[1], context[0], None, known.get("cross_attention"))
            kept.update({} if "cross_attention" in known else {"cross_attention": new})
            return y

        def mlp(x: Array) -> Array:
            bias = self.bias if self.mlp_bias is None else self.mlp_bias
            return Mlp(self.mlp_width or 4 * self.width, self.activation, bias, self.mlp_dropout, name="mlp")(x)

        x_BTD = checkpoint_name(self._residual("attention", self_attention, x_BTD), "mixed")
        if context is not None:
            x_BTD = checkpoint_name(self._residual("cross_attention", cross_attention, x_BTD), "mixed")
        return self._residual("mlp", mlp, x_BTD), kept

    def _attention(self, name: str, causal: bool, rotary: bool) -> Attention:
        return Attention(
            heads=self.heads,
            head_width=self.head_width or self.width // self.heads,
            kv_heads=self.kv_heads,
            qkv_bias=self.qkv_bias,
            key_bias=self.key_bias,
            bias=self.bias,
            causal=causal,
            rotary=rotary,
            query_scale=self.query_scale,
            theta=self.theta,
            rotary_scaling=self.rotary_scaling,
            dropout=self.attention_dropout,
            kind=self.attention,
            name=name,
        )

    def _residual(self, name: str, branch: Callable[[Array], Array], x: Array) -> Array:
        norm = self._norm(f"{name}_norm")
        y = branch(norm(x) if self.norm_placement == "pre" else x)
        if self.layer_scale:
            scale = self.param(f"{name}_layer_scale", nn.initializers.constant(self.layer_scale), (x.shape[-1],))
            y = y * scale.astype(y.dtype).reshape((1, 1, -1))
        h = dropout(self, y, self.dropout)
        h = after_branch(self, name, h, lambda: h + x if self.norm_placement == "pre" else norm(h + x))
        y = x + dropout(self, h, self.drop_path, whole=True)
        return y if self.norm_placement == "pre" else norm(y)


class CoBlock(Block):
    """Two streams, each attending to itself and to the other as it stood before the layer (Tan & Bansal 2019, section 2.2)."""

    @nn.compact
    def __call__(
        self,
        streams: Any,
        masks: Any,
        context: Any = None,
        positions_BT: Any = None,
        packed_BT: Any = None,
        bias: Any = None,
    ) -> Any:
        assert context is None and packed_BT is None and bias is None
        (x, y), (x_mask, y_mask) = streams, masks
        settings = self._settings()
        return (
            Block(**settings, name="first")(x, x_mask, (y, y_mask)),
            Block(**settings, name="second")(y, y_mask, (x, x_mask)),
        )


class Stack(StackFields):
    """`depth` layers, then (pre-norm) a last norm: [B, T, D] -> [B, T, D].

    With `co=True` the carry is a pair of streams, and so is the result.

    `tapped` gives beside the result what each layer of `taps` gave, numbered as for `take_layer`: layer -> [B, T, D]. To have
    them, what every layer gives is held.

    With `take_layer=n` the result is what layer n gives, without the last norm: 0 is x itself, and numbers below 0 count from
    the end, -1 being the last layer. Layers after it have their parameters and are not run.

    With `relative` (buckets, and the distance from which on all are in the last: `nn.relative`) one table serves all layers;
    positions are counted within x, or among the slots of a cache.

    Parameters that come in parts (`core.stacked`) make a loop of its own of each run of layers, so that layers whose parameters
    are not differentiated form no gradient of them.

    `final_norm_epsilon` is that of the last norm where it differs from `norm_epsilon` (VideoMAE's decoder).

    Raises:
      UserError: heads that do not divide the width, an unknown `remat` or `norm_placement`, a `take_layer` or a tap that is not
        there.
    """

    causal: bool = False
    rotary: bool = False
    relative: tuple[int, int] | None = None
    co: bool = False
    final_norm: bool = True
    final_norm_epsilon: float | None = None
    take_layer: int | None = None
    taps: tuple[int, ...] = ()

    def __call__(self, x: Any, mask: Any, context: Any = None, positions: Any = None) -> Any:
        return self._run(x, mask, context, positions)[0]

    def tapped(
        self, x: Any, mask: Any, context: Any = None, positions: Any = None, after: int = 0, packed: Any = None
    ) -> tuple[Any, dict[str, Array]]:
        """The result, and the taps.

        Args:
          after: how many tokens of x come before virtual ones, in whose place each layer puts its own if it has any.
          packed: [B, T] int32, see `Attention.cached`.
        """
        return self._run(x, mask, context, positions, after=after, packed=packed)[:2]

    def cached(
        self, x: Array, mask: Array, context: Any, positions: Array, cache: Cache = None, index: Any = None
    ) -> tuple[Array, Cache]:
        """The result, and the keys and values that are new, `[L, B, G, T, K]`.

        Args:
          mask: [B, S] bool, of the slots of the cache where there is one.
          context: (embeddings, mask); the embeddings None where the cache holds their keys and values.
          cache, index: of tokens read before, and the slot of the one token of x (`nn.cache.write`); None where x is all.
        """
        y, _, kept = self._run(x, mask, context, positions, cache, index, keep=True)
        return y, kept

    @nn.compact
    def _run(
        self,
        x: Any,
        mask: Any,
        context: Any,
        positions: Any,
        cache: Cache = None,
        index: Any = None,
        keep: bool = False,
        after: int = 0,
        packed: Any = None,
    ) -> tuple[Any, dict[str, Array], Cache]:
        self._check()
        kept: list[Any] = []
        taps = {str(tap): x for tap in self.taps if tap % (self.depth + 1) == 0}
        bias = None if self.relative is None else self._bias(x, mask, index)
        run = self.depth if self.take_layer is None or self.is_initializing() else self.take_layer % (self.depth + 1)
        if run:
            body: Any = CoBlock if self.co else Block
            if self.remat != "none":
                # Inside a rolled scan XLA cannot merge the recomputation away, so nothing needs to prevent it.
                body = nn.remat(body, policy=REMAT[self.remat], prevent_cse=self.unroll)
            block = body(**self._settings(), causal=self.causal, rotary=self.rotary, after=after, name="layers")
            for first, last in segments({} if self.is_initializing() else self.variables["params"]["layers"], run):
                if keep:
                    held = jax.tree.map(lambda leaf: layers_of(leaf, (first, last)), cache, is_leaf=is_stacked)  # noqa: B023
                    x, given = self._scan(first, last, keep)(block, x, held, mask, context, positions, index, bias)
                    kept.append(given)
                    continue
                x, given = self._scan(first, last)(block, x, mask, context, positions, packed, bias)
                numbers = {str(tap): tap % (self.depth + 1) - 1 for tap in self.taps}
                taps |= {tap: given[n - first] for tap, n in numbers.items() if first <= n < last}
        early = self.take_layer is not None and not self.is_initializing()
        if early or not self.final_norm or self.norm_placement == "post":
            return x, taps, in_parts(kept)
        if self.co:
            return (self._norm("first_norm")(x[0]), self._norm("second_norm")(x[1])), taps, None
        epsilon = self.norm_epsilon if self.final_norm_epsilon is None else self.final_norm_epsilon
        return Norm(self.norm, epsilon, name="final_norm")(x), taps, in_parts(kept)

    def _scan(self, first: int, last: int, keep: bool = False) -> Any:
        """The loop over the layers from `first` to below `last`: (block, carry, mask, context, positions, packed, bias)
        -> (carry, given).

        With `keep` the carry is followed by the layers' cache, the positions by the index, and what is given is the cache.
        """

        def layer(block: Any, carry: Any, *rest: Any) -> tuple[Any, Any]:
            if keep:
                cache, mask, context, positions, index, bias = rest
                return block.cached(carry, mask, context, positions, cache, index, bias)
            return both(block(carry, *rest), bool(self.taps))

        given = (0, *[nn.broadcast] * 5) if keep else nn.broadcast
        loop = loop_over(layer, last - first, self.unroll, given, functools.partial(later, first) if first else None)
        if (first, last) == (0, self.depth):
            return loop
        return nn.map_variables(loop, "params", functools.partial(taken, (first, last)))

    def _bias(self, x: Array, mask: Array, index: Array | None) -> Array:
        """[b, H, T, S], see `relative_bias`; of one token that belongs into slot `index`, to all slots of the mask."""
        assert self.relative is not None
        keys_1S = jnp.arange(mask.shape[1], dtype=jnp.int32)[None]
        queries_BT = keys_1S if index is None else index.astype(jnp.int32).reshape(-1, 1)
        return relative_bias(self.heads, *self.relative, self.causal, queries_BT, keys_1S)

    def _check(self) -> None:
        if self.norm_placement not in ("pre", "post"):
            raise UserError(f"norm_placement={self.norm_placement!r}: use pre or post")
        if self.remat not in REMAT:
            raise UserError(f"remat={self.remat!r}: use one of {', '.join(REMAT)}")
        if self.take_layer is not None and not -self.depth - 1 <= self.take_layer <= self.depth:
            raise UserError(f"take_layer={self.take_layer}: there are {self.depth} layers; use None, or at most {self.depth}")
        last = self.depth if self.take_layer is None else self.take_layer % (self.depth + 1)
        for tap in self.taps:
            if not -self.depth - 1 <= tap <= self.depth or tap % (self.depth + 1) > last:
                raise UserError(f"taps={self.taps}: the layers that run are 0 to {last}, or -1 (the last) and below")
        if self.heads < 1 or (not self.head_width and self.width % self.heads):
            raise UserError(f"heads={self.heads} does not divide width={self.width}; set head_width, or other heads")
        if self.rotary and (self.head_width or self.width // self.heads) % 2:
            raise UserError(f"rotary positions need an even head width, found {self.head_width or self.width // self.heads}")
