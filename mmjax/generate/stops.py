"""Strings at which a text ends, as a table that a compiled loop can follow: a token may hold the end of one and more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.types import Array


def tables(strings: Sequence[str], tokenizer: Any, size: int) -> list[np.ndarray]:
    """The table of each string, for a vocabulary of so many tokens; `tokenizer.pieces` says what they write."""
    pieces = tokenizer.pieces(size) if strings else []
    return [table(one.encode(), pieces) for one in strings]


def table(text: bytes, pieces: Sequence[bytes]) -> np.ndarray:
    """[len(text) + 1, V] int16: how many bytes of the string stand at the end of a text, after one token more.

    A text that held the whole string, within a token too, stays at the last state (Knuth, Morris & Pratt 1977).

    Args:
      pieces: what each token of the vocabulary writes.
    """
    step = _automaton(text)
    found = np.zeros((len(text) + 1, len(pieces)), np.int16)
    for token, piece in enumerate(pieces):
        states = np.arange(len(text) + 1)
        for byte in piece:
            states = step[states, byte]
        found[:, token] = states
    return found


def after(tables: Sequence[np.ndarray], texts: Sequence[bytes], ids_BT: Array, mask_BT: Array) -> Array:
    """[B, n] int32: how much of each string a prompt ends with. One that is whole within the prompt ends nothing: of that what
    its end has in common with its beginning goes on."""
    found = []
    for table, text in zip(tables, texts, strict=True):
        border = max(n for n in range(len(text)) if text.endswith(text[:n]))
        step = jnp.where(jnp.asarray(table) == len(text), border, jnp.asarray(table)).astype(jnp.int32)

        def read(state_B: Array, own: tuple[Array, Array], step: Array = step) -> tuple[Array, None]:
            return jnp.where(own[1], step[state_B, own[0]], state_B), None

        found.append(jax.lax.scan(read, jnp.zeros(len(ids_BT), jnp.int32), (ids_BT.T, mask_BT.T))[0])
    return jnp.stack(found, axis=1) if found else jnp.zeros((len(ids_BT), 0), jnp.int32)


def _automaton(text: bytes) -> np.ndarray:
    """[len(text) + 1, 256]: the longest beginning of the string that a text ends with, after one byte more."""
    length = len(text)
    step = np.zeros((length + 1, 256), np.int64)
    step[length] = length
    step[0, text[0]] = 1
    border = 0
    for n in range(1, length):
        step[n] = step[border]
        step[n, text[n]] = n + 1
        border = step[border, text[n]]
    return step
