"""What a decoder of texts starts from: prompts, and the context that it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch
from mmjax.models.decoders import writes_texts


def context_of(forward: Any, decoder: str, text: str, batch: Batch) -> Batch:
    """What the context of a decoder that writes `text` is encoded from; {} where it has none.

    Raises:
      UserError: no such decoder, one that writes no such text, or one whose context would see it.
    """
    spec = forward.spec(f"decoders.{decoder}")
    if not writes_texts(spec):
        raise UserError(f"decoder={decoder!r} writes no texts")
    if spec.writes != text:
        raise UserError(f"text={text!r}: model.decoders.{decoder}.writes={spec.writes!r}")
    if text in {modality for name in spec.context for modality in forward.modalities(name)}:
        raise UserError(f"decoder={decoder!r}: its context {spec.context} would see the {text} it is to write")
    if forward.lacking:  # a text is written of the rows that have what is looked at; only which these are is computed of it
        for name in spec.context:
            forward.tokens(name)
    return batch if spec.context else {}


def begun(batch: Batch, key: str, opening: Sequence[int], eos: int, start: int | None = None) -> tuple[Array, Array]:
    """([B, T] int32, [B, 1] int32): the token ids of a key, padded on the right, and how many of them are a prompt: all but the
    end. A row without any, and every row where `key` is "", is what comes before each text alone, the `opening`; or a
    decoder's own `start` (`TextDecoder.start_token`), which then stands before every prompt."""
    opening = opening if start is None else (start,)
    rows, first_1T = batch["valid"].shape[0], jnp.asarray([opening], jnp.int32)
    if not key:
        return jnp.broadcast_to(first_1T, (rows, len(opening))), jnp.full((rows, 1), len(opening), jnp.int32)
    ids_BT = batch[key]
    count_B1 = jnp.sum(batch[f"{key}_mask"].astype(jnp.int32), axis=1, keepdims=True)
    last_B1 = jnp.take_along_axis(ids_BT, jnp.maximum(count_B1 - 1, 0), axis=1)
    count_B1 = count_B1 - ((last_B1 == eos) & (count_B1 > 1)).astype(jnp.int32)
    if start is not None:
        return jnp.pad(ids_BT, ((0, 0), (1, 0)), constant_values=start), count_B1 + 1
    own = min(len(opening), ids_BT.shape[1])
    whole_1T = jnp.pad(first_1T[:, :own], ((0, 0), (0, ids_BT.shape[1] - own)))
    return jnp.where(count_B1 == 0, whole_1T, ids_BT), jnp.where(count_B1 == 0, own, count_B1)


def prompts(
    batch: Batch, key: str, opening: Sequence[int], eos: int, pad: int, start: int | None = None
) -> tuple[Array, Array]:
    """([B, T] int32, [B, T] bool): what `begun` gives, padded on the left."""
    ids_BT, count_B1 = begun(batch, key, opening, eos, start)
    length = ids_BT.shape[1]
    from_BT = jnp.arange(length)[None] - (length - count_B1)
    mask_BT = from_BT >= 0
    return jnp.where(mask_BT, jnp.take_along_axis(ids_BT, jnp.maximum(from_BT, 0), axis=1), pad), mask_BT
