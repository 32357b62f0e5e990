"""Which examples of known lengths go into which bin: rows that several texts, or images, are packed into."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fill:
    """How well rows were filled. Sums over the windows, and in buckets the batches, whose first row was made.

    Attributes:
      slots, tokens: places for tokens, and how many of these hold one.
      texts: that came, each counted in the window it came to.
      waited: those of them that found no room there.
      left_out: those that found none in the windows after it either.
    """

    slots: int = 0
    tokens: int = 0
    texts: int = 0
    waited: int = 0
    left_out: int = 0

    def __add__(self, other: Fill) -> Fill:
        return Fill(*(getattr(self, one.name) + getattr(other, one.name) for one in dataclasses.fields(self)))


class Bins:
    """Bins of one capacity, filled in turns. Each example goes whole into one bin.

    Best fit, the longest first (best-fit decreasing: Johnson 1974, at most 11/9 of the best number of bins), and among equals
    the first: so the result is a function of the lengths alone.

    Attributes:
      held: for each bin the examples that went into it, as `fill` was told them.
    """

    def __init__(self, bins: int, capacity: int, most: int) -> None:
        """`capacity`: the sum of the lengths in a bin, at most. `most`: how many examples a bin takes."""
        self._most = most
        self._free = [(capacity, number) for number in range(bins)]  # room and bin, sorted; of those that take another example
        self.held: list[list[tuple[int, int]]] = [[] for _ in range(bins)]

    def copy(self) -> Bins:
        """The same, to be filled further."""
        other = Bins(0, 0, self._most)
        other._free, other.held = [*self._free], [[*held] for held in self.held]
        return other

    def fill(self, group: int, examples: Sequence[int], lengths: np.ndarray) -> list[int]:
        """Put examples where they fit; gives back those that fit nowhere, in their order.

        Args:
          group, examples: what `held` calls an example: (group, example).
          lengths: of each example of the group, by its number; one of length 0 needs no bin.
        """
        left, own = [], lengths.tolist()
        for example in sorted(examples, key=lambda one: (-own[one], one)):
            length = own[example]
            if not length:
                continue
            place = bisect.bisect_left(self._free, (length, -1))
            if place == len(self._free):
                left.append(example)
                continue
            room, best = self._free.pop(place)
            self.held[best].append((group, example))
            if len(self.held[best]) < self._most:
                bisect.insort(self._free, (room - length, best))
        return sorted(left)
