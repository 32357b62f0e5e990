"""Parts. Of a modality: the arrays that its encoder or decoder takes. Of a sequence: some of its tokens; several inputs of one
modality in an example (NLVR2's two images), side by side in the sequence or each a row of its own."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError, nearest
from mmjax.core.types import Array, Tokens
from mmjax.nn.virtual import Virtual

NOT_PARTS = ("self", "context", "table")  # of a decoder, what it attends to and words of another part come from the model


def declared(call: Callable[..., Any]) -> dict[str, bool]:
    """The parts that an encoder's `__call__` or a decoder's `decode` declares: name -> whether it must be there.

    The first argument is the modality's own array, under the name ""; every other one is a part.
    """
    return dict(_declared(getattr(call, "__func__", call)))


@functools.cache
def _declared(call: Callable[..., Any]) -> tuple[tuple[str, bool], ...]:
    named = [p for p in inspect.signature(call).parameters.values() if p.name not in NOT_PARTS]
    plain = [p for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return tuple(("" if p is plain[0] else p.name, p.default is p.empty) for p in plain)


def key_of(modality: str, part: str) -> str:
    """The batch key of a part; "" is the modality's own array."""
    return f"{modality}_{part}" if part else modality


def gather(modality: str, parts: Mapping[str, bool], batch: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of a batch that a module declares, by the names of its parts.

    Raises:
      UserError: one that must be there is not.
    """
    found = {}
    for part, needed in parts.items():
        key = key_of(modality, part)
        if key in batch:
            found[part] = batch[key]
        elif needed:
            raise UserError(f"the batch has no {key!r}{nearest(key, batch)}; it has {', '.join(batch)}")
    return found


def with_added(x_BTD: Array, added: Array | None, virtual: Virtual | None = None) -> Array:
    """Embeddings with what is added to those of the input before the first layer. Raises `UserError` for another shape."""
    if added is None:
        return x_BTD
    B, T, D = x_BTD.shape
    own = (B, T - (virtual.count if virtual else 0), D)
    if added.shape != own:
        raise UserError(f"added: what is added to embeddings {own} has their shape, found {added.shape}")
    return x_BTD + (virtual.among(added) if virtual else added).astype(x_BTD.dtype)


def example_of(module: Any) -> dict[str, Array]:
    """Parts of the right shapes to initialise a module with: its `example()`, an array or several by part ("" its own)."""
    example = module.example()
    return dict(example) if isinstance(example, Mapping) else {"": example}


def run(call: Callable[..., Any], parts: Mapping[str, Any], **rest: Any) -> Any:
    """Call a module with its parts."""
    return call(parts[""], **{name: part for name, part in parts.items() if name}, **rest)


def take(x: Array, places_BK: Array | None) -> Array:
    """[B, K, ...]: of each example, the tokens of x [B or 1, T, ...] at its places, in that order; None: x itself."""
    if places_BK is None:
        return x
    return jnp.take_along_axis(x, places_BK.reshape(*places_BK.shape, *[1] * (x.ndim - 2)), axis=1)


def one_token(x_BE: Array, has_B: Array | None = None) -> Tokens:
    """A vector an example as a sequence of one: [B, E] -> Tokens [B, 1, E]; `has_B`: which rows have it, all where None."""
    return Tokens(x_BE[:, None], jnp.ones((x_BE.shape[0], 1), bool) if has_B is None else has_B[:, None])


def split(tokens: Tokens, parts: int) -> Tokens:
    """[B, N * T, D] -> [B * N, T, D]; of N > 1 the result is no raster."""
    own = jax.tree.map(lambda x: x.reshape(x.shape[0] * parts, x.shape[1] // parts, *x.shape[2:]), tokens)
    places = tuple(place for place in tokens.virtual if place < tokens.mask.shape[1] // parts)
    return own if parts == 1 else dataclasses.replace(own, grid=None, virtual=places)


def rejoin(tokens: Tokens, parts: int) -> Tokens:
    """[B * N, T, D] -> [B, N * T, D]; of N > 1 the result is no raster."""
    joined = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, x.shape[1] * parts, *x.shape[2:]), tokens)
    places = tuple(n * tokens.mask.shape[1] + place for n in range(parts) for place in tokens.virtual)
    return joined if parts == 1 else dataclasses.replace(joined, grid=None, virtual=places)


def check_image(image: Array, channels: int, mask: Array | None) -> None:
    """Raises `UserError` for what a convolutional encoder cannot read."""
    if image.ndim != 4 or image.shape[-1] != channels:
        raise UserError(f"channels={channels}: use images [B, H, W, {channels}], found {image.shape}")
    if mask is not None:
        raise UserError(
            "a mask of the image: convolutions read over its edge, so images padded to one size would count as larger ones; "
            "use Resize or RandomCrop to one size, or a ViT"
        )


def rastered(x_BHWD: Array) -> Tokens:
    """A grid of features as tokens [B, H W, D] in reading order."""
    B, H, W, D = x_BHWD.shape
    places_BT = jnp.broadcast_to(jnp.arange(H * W, dtype=jnp.int32)[None], (B, H * W))
    return Tokens(x_BHWD.reshape(B, H * W, D), jnp.ones((B, H * W), bool), places_BT, grid=(H, W, 0))
