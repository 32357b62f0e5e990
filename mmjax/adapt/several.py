"""Several adapters over one base: their mean, and all of them at once, for rows that each have one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array
from mmjax.nn.adapters import BOTTLENECK, LEAVES, joined_factors

Own = Mapping[str, Array]  # path -> leaf, of what an adapter has of its own
NEUTRAL = {"ia3_in": 1.0, "ia3_out": 1.0, "lora_scale": 0.0, "lora_a": 0.0, "lora_b": 0.0, "lora_a0": 0.0, "lora_b0": 0.0}
NEUTRAL |= dict.fromkeys((*BOTTLENECK, "bottleneck_kind"), 0.0)
LAST, FIRST = ("lora_a", "lora_a0", "bottleneck_down", "bottleneck_down_bias"), ("lora_b", "lora_b0", "bottleneck_up")  # ranks


def mean_of(base: Own, adapters: Sequence[Own], weights: Sequence[float]) -> dict[str, Array]:
    """The adapter whose change of the base is the mean of theirs: of products A B the ranks stand side by side, since the mean
    of the products is not the product of the means.

    Args:
      base: what they lie over; an adapter that lacks a leaf has the base's.
      weights: one an adapter; they sum to 1.

    Raises:
      UserError: what has no mean: lengths of DoRA's columns, virtual tokens, IA3 where another method is; a leaf that is in no
        base and not in all of them.
    """
    found: dict[str, Array] = {}
    paths = dict.fromkeys(path for own in adapters for path in own)
    kinds: dict[str, set[str]] = {}
    for path in paths:
        kinds.setdefault(path.rpartition("/")[0], set()).add(_kind(path))
    for path in paths:
        room, _, name = path.rpartition("/")
        # The mean of changes is one of products by factors only where nothing else of that layer changes.
        if _kind(path) == "none" or (len(kinds[room]) > 1 and kinds[room] & {"ia3_in", "ia3_out"}):
            raise UserError(f"{path}: there is no mean of it that does what the adapters do; use one at a time")
        if _kind(path) == "lora":
            if name == "lora_a":
                found |= _side_by_side(room, adapters, weights)
            continue
        leaves = [_or(base, own, path, adapters) for own in adapters]
        found[path] = sum((w * x.astype(jnp.float32) for w, x in zip(weights, leaves, strict=True)), jnp.zeros(leaves[0].shape))
    return found


def _kind(path: str) -> str:
    """What a leaf does: `lora`, `ia3_in`, `ia3_out`, `none` of what has no mean, "" of the model's own."""
    name = path.rpartition("/")[2]
    if name not in LEAVES:
        return ""
    return "lora" if name.startswith("lora_") else name if name.startswith("ia3_") else "none"


def _side_by_side(room: str, adapters: Sequence[Own], weights: Sequence[float]) -> dict[str, Array]:
    """The leaves of a room, its scales and the weights inside B."""
    stacked, first, second = int("/layers/" in room), [], []
    for own, weight in zip(adapters, weights, strict=True):
        if f"{room}/lora_a" not in own:
            continue
        a, b, scale, a0, b0 = (own.get(f"{room}/lora_{name}") for name in ("a", "b", "scale", "a0", "b0"))
        assert a is not None and b is not None and scale is not None
        a, b = joined_factors(a, b, a0, b0, stacked)
        first.append(a)
        second.append(b * (weight * scale).reshape(*scale.shape, *[1] * (b.ndim - scale.ndim)))
    a, b = jnp.concatenate(first, -1), jnp.concatenate(second, stacked)
    return {f"{room}/lora_a": a, f"{room}/lora_b": b, f"{room}/lora_scale": jnp.ones(a.shape[:stacked])}


def stacked_of(base: Own, adapters: Sequence[Own]) -> dict[str, Array]:
    """Path -> [N, ...], the leaves of N adapters, of all that any of them has. Ranks are padded with zeros; one that adapts a
    kernel less does nothing there.

    Raises:
      UserError: leaves of shapes that cannot be made alike.
    """
    found = {}
    for path in dict.fromkeys(path for own in adapters for path in own):
        room, _, name = path.rpartition("/")
        if name == "lora_dropout":
            continue
        leaves = [_or(base, own, path, adapters) for own in adapters]
        axis = -1 if name in LAST else int("/layers/" in room) if name in FIRST else None
        if axis is not None:
            most = max(leaf.shape[axis] for leaf in leaves)
            leaves = [_padded(leaf, axis, most) for leaf in leaves]
        if len(shapes := dict.fromkeys(leaf.shape for leaf in leaves)) > 1:
            kinds = "; bottlenecks of one batch have one activation, and are all normed or none" * (name == "bottleneck_kind")
            raise UserError(
                f"{path} is {' and '.join(map(str, shapes))}: adapters of one batch have leaves of one shape{kinds}"
            )
        found[path] = jnp.stack(leaves)
    return found


def _or(base: Own, own: Own, path: str, adapters: Sequence[Own]) -> Array:
    """An adapter's leaf; where it has none the base's, or that which does nothing."""
    if path in own:
        return own[path]
    name = path.rpartition("/")[2]
    if name in NEUTRAL:
        like = next(other[path] for other in adapters if path in other)
        return jnp.full_like(like, NEUTRAL[name])
    if path not in base or name in LEAVES:
        raise UserError(f"{path}: one of the adapters has it and another has not, and nothing stands for it in the base")
    return base[path]


def _padded(leaf: Array, axis: int, size: int) -> Array:
    widths = [(0, 0)] * leaf.ndim
    widths[axis] = (0, size - leaf.shape[axis])
    return jnp.pad(leaf, widths)
