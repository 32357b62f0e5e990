"""Which lines of a manifest are each other's positives, as numbers that never collide."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

BUCKET = 1 << 21  # keys that are sorted at once


def hashed(keys: list[bytes], halves_2K: np.ndarray, start: int) -> int:
    """Write 96 bits for each key, which stand for it as long as this process lives, from a place on; returns the place after
    the last. That any two of 10^9 different keys have the same ones has a chance of 10^-11."""
    end = start + len(keys)
    halves_2K[0, start:end] = np.fromiter(map(hash, keys), np.int64, len(keys)).view(np.uint64)
    halves_2K[1, start:end] = np.fromiter(map(zlib.crc32, keys), np.uint64, len(keys))
    return end


def firsts(halves_2K: np.ndarray) -> np.ndarray:
    """For each key the place of the first one that is equal, int64 [K]."""
    size = halves_2K.shape[1]
    first_K = np.arange(size)
    parts = 1 << int(size // BUCKET).bit_length()
    for part in range(parts):
        own = np.flatnonzero((halves_2K[0] & np.uint64(parts - 1)) == part) if parts > 1 else np.arange(size)
        if not len(own):
            continue
        high, low = halves_2K[0, own], halves_2K[1, own]
        order = np.argsort(high)
        new = _changes(high[order])
        if np.any(_changes(low[order]) & ~new):  # the first half alone does not tell them apart
            order = np.lexsort((low, high))
            new = _changes(high[order]) | _changes(low[order])
        places = own[order]
        first_K[places] = np.minimum.reduceat(places, np.flatnonzero(new))[np.cumsum(new) - 1]
    return first_K


def _changes(values: np.ndarray) -> np.ndarray:
    """Whether a value is another than the one before it, bool [K]; the first one is."""
    found = np.ones(len(values), bool)
    found[1:] = values[1:] != values[:-1]
    return found


def by_first(first_K: np.ndarray) -> np.ndarray:
    """Numbers in the order of first appearance, from each one's first place."""
    return (np.cumsum(first_K == np.arange(len(first_K))) - 1)[first_K]


def by_relation(rows: int, relations: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """A number for each row, equal for rows that have a key in common, and for what these hang together with, int64 [rows].

    The number is that of a group's first row.

    Args:
      relations: pairs of rows, as two arrays.
    """
    root_N = np.arange(rows)
    own = [(np.asarray(one)[one != other], np.asarray(other)[one != other]) for one, other in relations]
    while own:
        left, right = (np.concatenate([root_N[pair[side]] for pair in own]) for side in (0, 1))
        apart = left != right
        if not apart.any():
            break
        np.minimum.at(root_N, np.maximum(left, right)[apart], np.minimum(left, right)[apart])
        while not np.array_equal(root_N, higher_N := root_N[root_N]):
            root_N = higher_N
    return root_N
