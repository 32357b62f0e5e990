"""A permutation of N numbers that is computed place by place: nothing of size N is ever held."""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 8  # of few numbers too, all orders are then equally likely, as far as 20,000 draws show
# The steps of splitmix64's last mixing (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 19).
STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST = 31


class Permutation:
    """Places [0, N) to numbers [0, N), each once.

    A Feistel network over pairs (l, r) of [0, a) x [0, b), with a b no less than N (Black & Rogaway 2002, "Ciphers with
    arbitrary finite domains", "generalised Feistel"), whose rounds add a hash of one half to the other. What falls beyond N is
    put through it again until it does not ("cycle walking", ibid.): a b is at most N + sqrt(N) + 1, so that is rare.
    """

    def __init__(self, size: int, bits: np.random.BitGenerator) -> None:
        """`bits` gives the keys of the rounds: equal ones, equal permutations. `size` is below 2^62."""
        self.size = size
        self._a = math.isqrt(max(0, size - 1)) + 1
        self._b = -(-size // self._a)
        self._keys = [np.uint64(key) for key in np.asarray(bits.random_raw(ROUNDS), np.uint64)]

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """int64 of places, int64 too, of any shape."""
        found = self._once(places.astype(np.uint64).reshape(-1))
        while (beyond := np.flatnonzero(found >= self.size)).size:
            found[beyond] = self._once(found[beyond])
        return found.astype(np.int64).reshape(places.shape)

    def _once(self, number: np.ndarray) -> np.ndarray:
        a, b = np.uint64(self._a), np.uint64(self._b)
        left: np.ndarray = number % a
        right: np.ndarray = number // a
        for place, key in enumerate(self._keys):
            if place % 2:
                right = (right + _hash(left + key) % b) % b
            else:
                left = (left + _hash(right + key) % a) % a
        return right * a + left


def _hash(x: np.ndarray) -> np.ndarray:
    """64 bits of each number, in which each of its bits counts; products are taken modulo 2^64."""
    for shift, factor in STEPS:
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(LAST))
