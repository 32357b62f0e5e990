"""Which record is at which place of the endless training stream, and the random numbers that belong to a place.

Everything is a function of (seed, position), so a run can start at any step, with any number of processes.
"""

from __future__ import annotations

import zlib

import numpy as np


class Order:
    """Position in the stream -> index of a record: each epoch is a permutation of its own."""

    def __init__(self, size: int, seed: int, shuffle: bool, stream: str = "") -> None:
        """`stream` is the name of the data: two of one size are read in orders, and with draws, of their own."""
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.stream = stream
        self._permutations: dict[int, np.ndarray] = {}

    def __reduce__(self) -> tuple[type[Order], tuple[int, int, bool, str]]:
        return Order, (self.size, self.seed, self.shuffle, self.stream)

    def purpose(self, name: str) -> str:
        """What random numbers of this stream are for; those of `train` as they were before names counted."""
        return name if self.stream in ("", "train") else f"{name}/{self.stream}"

    def indices(self, start: int, stop: int) -> list[int]:
        """Indices of the records at positions [start, stop)."""
        if not self.shuffle:
            return [position % self.size for position in range(start, stop)]
        found: list[int] = []
        while start < stop:
            epoch, first = divmod(start, self.size)
            taken = self._permutation(epoch)[first : first + stop - start]
            found.extend(taken.tolist())
            start += len(taken)
        return found

    def _permutation(self, epoch: int) -> np.ndarray:
        kept = self._permutations
        if epoch not in kept:
            permutation = np.random.Generator(_philox(self.seed, self.purpose("order"), epoch)).permutation(self.size)
            # Assigned whole, never changed: other threads read it. Two, because neighbouring batches meet at an epoch's end.
            self._permutations = kept = dict([*kept.items(), (epoch, permutation)][-2:])
        return kept[epoch]

    def replacement(self, index: int, attempt: int) -> int:
        """The record to take for an unreadable one, at the first attempt, the second and so on."""
        return int(np.random.Generator(_philox(self.seed, self.purpose("replacement"), index, attempt)).integers(self.size))


class Draws:
    """One generator that is moved from place to place: its numbers at a place depend on (seed, purpose, place) alone.

    Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a place has the
    counters of its own, and setting one is five times cheaper than a new generator. Not to be shared between threads.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._bits = _philox(seed, purpose)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def at(self, place: int) -> np.random.Generator:
        """The generator, at the first number of a place in [0, 2^64)."""
        self._state["state"]["counter"][2] = place
        self._bits.state = self._state
        return self._generator


def _philox(seed: int, purpose: str, *rest: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *rest]))
