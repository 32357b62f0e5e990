"""Bottleneck adapters: a small network after a branch of a layer, before the residual is added to it.

`adapt.Bottleneck` has put its leaves beside the last kernel of the branch, and `nn.stack.Block` uses what it finds there. Of
what the branch gave, h, it makes h + act(z W_down + b_down) W_up + b_up:

    bottleneck_down [D, r], bottleneck_down_bias [r]    from a layer's width to few numbers
    bottleneck_up [r, D], bottleneck_up_bias [D]        and back
    bottleneck_kind [n + 1, 1 or 2]                     by its shape: act is the n-th of `ACTS`; z is h, or (2) norm(h + x),
                                                        of a layer that norms first h + x, x being the residual
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.types import Array
from mmjax.nn.activation import activation
from mmjax.nn.linear import multiply

# The last linear layer of a branch.
LAST = {"attention": ("attention", "out"), "cross_attention": ("cross_attention", "out"), "mlp": ("mlp", "down")}
# Runs are stored with a place in this: add at the end. Each is 0 at 0, so that a width padded with zeros gives nothing.
ACTS = ("relu", "silu", "gelu", "gelu_tanh", "quick_gelu", "tanh")


def after_branch(block: nn.Module, branch: str, h_BTD: Array, summed: Callable[[], Array]) -> Array:
    """What a branch of a layer gave, changed by the bottleneck beside its last kernel; as it is where there is none.

    Args:
      summed: gives norm(h + x), or h + x.
    """
    room, last = LAST[branch]
    own = block.variables.get("params", {}).get(room, {}).get(last, {})
    if "bottleneck_kind" not in own:
        return h_BTD
    kind, normed = own["bottleneck_kind"].shape
    z_BTD = h_BTD if normed == 1 else summed()
    inner_BTR = _affine(z_BTD, own["bottleneck_down"], own["bottleneck_down_bias"])
    return h_BTD + _affine(activation(ACTS[kind - 1])(inner_BTR), own["bottleneck_up"], own["bottleneck_up_bias"])


def _affine(x: Array, kernel: Array, bias: Array) -> Array:
    return multiply(x, kernel.astype(x.dtype), 1, None) + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + bias.shape)


def kind(act: str, normed: bool) -> Array:
    """The leaf that says which it is."""
    return jnp.zeros((ACTS.index(act) + 1, 1 + normed))
