"""The loop over layers, the only scan: parameters are stacked, `[L, ...]`, and those in parts go through it in parts."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from mmjax.core.errors import UserError
from mmjax.core.stacked import Run, is_stacked, joined, layers_of
from mmjax.core.types import Array

CONVOLVED = ("none", "full")  # remat of stages of convolutions: nothing, or every block


def run_layers(owner: nn.Module, block: nn.Module, depth: int, unroll: bool, x: Array, own: Any, *shared: Any) -> Array:
    """x after `depth` layers of one kind other than a Transformer's: `block`, called `layers`, takes (x, own, *shared).

    Args:
      owner: whose part the block is.
      own: arrays [L, ...] of which each layer is given its own, or None.
      shared: what all layers are given.
    """

    def layer(block: Any, carry: Array, own: Any, *rest: Any) -> tuple[Array, None]:
        return block(carry, own, *rest), None

    loop = loop_over(layer, depth, unroll, (0, *[nn.broadcast] * len(shared)), None)
    given = {} if owner.is_initializing() else owner.variables["params"]["layers"]
    if any(map(is_stacked, jax.tree.leaves(given, is_leaf=is_stacked))):  # some layers are frozen: one loop over all of them
        loop = nn.map_variables(loop, "params", _whole)
    return loop(block, x, own, *shared)[0]


def check_convolved(widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
    """Raises `UserError` unless stages of convolutions have a width and a depth each."""
    if len(widths) != len(depths) or not widths:
        raise UserError(f"widths={widths} and depths={depths}: give one of each for every stage")


def loop_over(layer: Any, length: int, unroll: bool, in_axes: Any, transform: Any) -> Any:
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


def taken(run: Run, params: Any) -> Any:
    """The parameters of some layers."""
    return jax.tree.map(lambda leaf: layers_of(leaf, run), params, is_leaf=is_stacked)


def later(first: int, variables: Any, rngs: Any) -> Any:
    """Keys of a loop that begins at layer `first`: not those of the loop before it."""
    return variables, jax.tree.map(lambda key: jax.random.fold_in(key, first), rngs)


def both(carry: Any, given: bool) -> tuple[Any, Any]:
    """A layer's result as the scan's carry, and again as what it collects where that is wanted."""
    return carry, carry if given else None
