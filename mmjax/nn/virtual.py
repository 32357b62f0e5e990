"""Learned tokens among those that a tower reads, and learned keys and values before those of a layer: prompts and prefixes.

`adapt.Prompt` and `adapt.Prefix` have put them beside the word table, the kernel of patches, the kernel of keys.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.nn.adapters import leaf_of

Prefix = tuple[Array, Array]  # keys and values [n, G, K]


@dataclasses.dataclass(frozen=True)
class Virtual:
    """Virtual tokens.

    Attributes:
      rows: [n, D].
      after: how many tokens of the input come before them.
    """

    rows: Array
    after: int

    @property
    def count(self) -> int:
        """n"""
        return int(self.rows.shape[0])

    @property
    def places(self) -> tuple[int, ...]:
        """Where they stand, as `Tokens.virtual` has it."""
        return tuple(range(self.after, self.after + self.count))

    def among(self, x: Array, own: Array | None = None) -> Array:
        """[B, n + T, ...]: an array of the input's tokens [B, T, ...], with those of the virtual ones among them.

        Args:
          own: [n, ...], what the virtual tokens have there; None for zeros.

        Raises:
          UserError: an input of fewer tokens than come before.
        """
        if x.shape[1] < self.after:
            raise UserError(f"Prompt.after={self.after}: an input of {x.shape[1]} tokens has not so many")
        there = jnp.zeros((self.count, *x.shape[2:]), x.dtype) if own is None else own.astype(x.dtype)
        there = jnp.broadcast_to(there[None], (x.shape[0], *there.shape))
        return jnp.concatenate([x[:, : self.after], there, x[:, self.after :]], axis=1)

    def mask(self, mask_BT: Array) -> Array:
        """[B, n + T] bool, True of the virtual ones."""
        return self.among(mask_BT, jnp.ones(self.count, bool))


def virtual_of(module: nn.Module, after: int = 0) -> Virtual | None:
    """The virtual tokens beside a layer or a table; None without.

    Args:
      after: where no leaf says it.
    """
    rows, place = leaf_of(module, "prompt_tokens"), leaf_of(module, "prompt_place")
    if rows is None:
        rows = leaf_of(module, "prompt_room")
    if rows is None:
        return None
    return Virtual(rows, after if place is None else place.shape[0] - 1)


def replaced(block: nn.Module, x_BTD: Array, after: int) -> Array:
    """What comes into a layer, with the layer's own virtual tokens in the place of those that the one before gave."""
    rows = block.variables.get("params", {}).get("attention", {}).get("q", {}).get("prompt_layers")
    if rows is None:
        return x_BTD
    return Virtual(rows, after).among(jnp.concatenate([x_BTD[:, :after], x_BTD[:, after + rows.shape[0] :]], axis=1), rows)


def prefix_of(module: nn.Module) -> Prefix | None:
    """The keys and values beside a kernel of keys; None without."""
    keys, values = leaf_of(module, "prefix_keys"), leaf_of(module, "prefix_values")
    return None if keys is None or values is None else (keys, values)


def prefixed(own: Prefix | None, k_BSGK: Array, v_BSGK: Array) -> tuple[Array, Array]:
    """Keys and values [B, n + S, G, K], the prefix first."""
    if own is None:
        return k_BSGK, v_BSGK

    def joined(first: Array, x: Array) -> Array:
        return jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype)[None], (x.shape[0], *first.shape)), x], axis=1)

    return joined(own[0], k_BSGK), joined(own[1], v_BSGK)


def prefixed_mask(mask_BS: Array | None, slots: int) -> Array | None:
    """[B, slots]: a mask of the last of so many slots, True of those before; None of all."""
    if mask_BS is None or mask_BS.shape[1] == slots:
        return mask_BS
    return jnp.pad(mask_BS, ((0, 0), (slots - mask_BS.shape[1], 0)), constant_values=True)
