"""The Transformer stack: the only scan over layers and the only rematerialisation.

Layers are stored stacked, `[L, ...]` under `layers`, rolled or not: `unroll` is the same scan with every step laid out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.stacked import Run, in_parts, is_stacked, joined, layers_of, segments
from mmjax.core.types import Array
from mmjax.nn.attention import Attention
from mmjax.nn.bottleneck import after_branch
from mmjax.nn.cache import Cache, Kept
from mmjax.nn.mlp import Mlp, dropout
from mmjax.nn.norm import Norm
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
CONVOLVED = ("none", "full")  # of stages of convolutions: nothing, or every block


class StackFields(nn.Module):
    """The settings of a stack, inherited by every module that holds one, so that a config writes them flat.

    Attributes:
      width: D, the width of an embedding.
      depth: L, how many layers.
      heads: H, attention heads; they divide `width` unless `head_width` is set.
      head_width: K; 0 is width / heads.
      kv_heads: 0 is `heads`; fewer share keys and values between heads.
      mlp_width: F; 0 is 4 * width.
      activation: `gelu`, `gelu_tanh`, `quick_gelu`, `relu`, `silu`, `tanh` (`nn.activation`), or `swiglu`.
      norm: `layernorm` or `rmsnorm`.
      norm_epsilon: added to the variance.
      norm_placement: `pre` (GPT-2, ViT) or `post` (BERT).
      qkv_bias: whether queries, keys and values have biases.
      key_bias: whether keys have theirs where queries and values have (Whisper's have not: none changes an output).
      bias: whether every other projection has one.
      mlp_bias: biases of the feed-forward layer where they differ from `bias` (None: the same).
      layer_scale: initial scale of each residual branch (Touvron 2021, eq. 4); 0 is none.
      theta: base wavelength of rotary positions.
      rotary_scaling: how they are stretched (see `position.rotary_frequencies`).
      dropout: rate of each residual branch's dropout, on when training.
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
    theta: float = setting(above=0, default=10000.0)
    rotary_scaling: tuple[float, ...] = ()
    dropout: float = setting(least=0, below=1, default=0.0)
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
        self, x_BTD: Array, mask_BT: Array, context: Any = None, positions_BT: Any = None, packed_BT: Any = None
    ) -> Array:
        return self.cached(x_BTD, mask_BT, context, positions_BT, packed_BT=packed_BT)[0]

    @nn.compact
    def cached(
        self,
        x_BTD: Array,
        mask_BT: Array,
        context: Any,
        positions_BT: Any,
        cache: Any = None,
        index: Any = None,
        packed_BT: Any = None,
    ) -> tuple[Array, dict[str, Kept]]:
        """The result, and the new keys and values of each attention; `cache` has those before (`Attention.cached`)."""
        x_BTD, kept, known = constrain_tokens(replaced(self, x_BTD, self.after)), {}, cache or {}

        def self_attention(x: Array) -> Array:
            attention = self._attention("attention", self.causal, self.rotary)
            before = known.get("attention")
            y, kept["attention"] = attention.cached(x, mask_BT, None, positions_BT, before, index, packed_BT)
            return y

        def cross_attention(x: Array) -> Array:
            attention = self._attention("cross_attention", False, False)
            y, new = attention.cached(x, context[1], context[0], None, known.get("cross_attention"))
            kept.update({} if "cross_attention" in known else {"cross_attention": new})
            return y

        def mlp(x: Array) -> Array:
            bias = self.bias if self.mlp_bias is None else self.mlp_bias
            return Mlp(self.mlp_width or 4 * self.width, self.activation, bias, name="mlp")(x)

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
    def __call__(self, streams: Any, masks: Any, context: Any = None, positions_BT: Any = None, packed_BT: Any = None) -> Any:
        assert context is None and packed_BT is None
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

    Parameters that come in parts (`core.stacked`) make a loop of its own of each run of layers, so that layers whose parameters
    are not differentiated form no gradient of them.

    `final_norm_epsilon` is that of the last norm where it differs from `norm_epsilon` (VideoMAE's decoder).

    Raises:
      UserError: heads that do not divide the width, an unknown `remat` or `norm_placement`, a `take_layer` or a tap that is not
        there.
    """

    causal: bool = False
    rotary: bool = False
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
                    x, given = self._scan(first, last, keep)(block, x, held, mask, context, positions, index)
                    kept.append(given)
                    continue
                x, given = self._scan(first, last)(block, x, mask, context, positions, packed)
                numbers = {str(tap): tap % (self.depth + 1) - 1 for tap in self.taps}
                taps |= {tap: given[n - first] for tap, n in numbers.items() if first <= n < last}
        taken = self.take_layer is not None and not self.is_initializing()
        if taken or not self.final_norm or self.norm_placement == "post":
            return x, taps, in_parts(kept)
        if self.co:
            return (self._norm("first_norm")(x[0]), self._norm("second_norm")(x[1])), taps, None
        epsilon = self.norm_epsilon if self.final_norm_epsilon is None else self.final_norm_epsilon
        return Norm(self.norm, epsilon, name="final_norm")(x), taps, in_parts(kept)

    def _scan(self, first: int, last: int, keep: bool = False) -> Any:
        """The loop over the layers from `first` to below `last`: (block, carry, mask, context, positions, packed) -> (carry,
        given).

        With `keep` the carry is followed by the layers' cache, the positions by the index, and what is given is the cache.
        """

        def layer(block: Any, carry: Any, *rest: Any) -> tuple[Any, Any]:
            if keep:
                cache, mask, context, positions, index = rest
                return block.cached(carry, mask, context, positions, cache, index)
            return _both(block(carry, *rest), bool(self.taps))

        taken = (0, *[nn.broadcast] * 4) if keep else nn.broadcast
        loop = _loop(layer, last - first, self.unroll, taken, functools.partial(_later, first) if first else None)
        if (first, last) == (0, self.depth):
            return loop
        return nn.map_variables(loop, "params", functools.partial(_taken, (first, last)))

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


def run_layers(owner: nn.Module, block: nn.Module, depth: int, unroll: bool, x: Array, own: Any, *shared: Any) -> Array:
    """x after `depth` layers of one kind other than a Transformer's: `block`, called `layers`, takes (x, own, *shared).

    Args:
      owner: whose part the block is.
      own: arrays [L, ...] of which each layer is given its own, or None.
      shared: what all layers are given.
    """

    def layer(block: Any, carry: Array, own: Any, *rest: Any) -> tuple[Array, None]:
        return block(carry, own, *rest), None

    loop = _loop(layer, depth, unroll, (0, *[nn.broadcast] * len(shared)), None)
    given = {} if owner.is_initializing() else owner.variables["params"]["layers"]
    if any(map(is_stacked, jax.tree.leaves(given, is_leaf=is_stacked))):  # some layers are frozen: one loop over all of them
        loop = nn.map_variables(loop, "params", _whole)
    return loop(block, x, own, *shared)[0]


def check_convolved(widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
    """Raises `UserError` unless stages of convolutions have a width and a depth each."""
    if len(widths) != len(depths) or not widths:
        raise UserError(f"widths={widths} and depths={depths}: give one of each for every stage")


def _loop(layer: Any, length: int, unroll: bool, in_axes: Any, transform: Any) -> Any:
    """The scan over layers: what modules keep is stacked as their parameters are."""
    return nn.scan(
        layer,
        variable_axes={"params": 0, "statistics": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=length,
        unroll=length if unroll else 1,
        data_transform=transform,
    )


def _whole(params: Any) -> Any:
    """Parameters in parts, joined."""
    return jax.tree.map(lambda leaf: joined(leaf.parts) if is_stacked(leaf) else leaf, params, is_leaf=is_stacked)


def _taken(run: Run, params: Any) -> Any:
    """The parameters of some layers."""
    return jax.tree.map(lambda leaf: layers_of(leaf, run), params, is_leaf=is_stacked)


def _later(first: int, variables: Any, rngs: Any) -> Any:
    """Keys of a loop that begins at layer `first`: not those of the loop before it."""
    return variables, jax.tree.map(lambda key: jax.random.fold_in(key, first), rngs)


def _both(carry: Any, given: bool) -> tuple[Any, Any]:
    """A layer's result as the scan's carry, and again as what it collects where that is wanted."""
    return carry, carry if given else None
