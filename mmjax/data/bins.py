"""Which examples of known lengths go into which bin: rows that several texts, or images, are packed into."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fill:
    """How well rows were filled. Sums over the windows whose first row was made.

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
        self._room = np.full(bins, capacity, np.int64)
        self._places = np.full(bins, most, np.int64)
        self.held: list[list[tuple[int, int]]] = [[] for _ in range(bins)]

    def fill(self, group: int, examples: Sequence[int], lengths: np.ndarray) -> list[int]:
        """Put examples where they fit; gives back those that fit nowhere, in their order.

        Args:
          group, examples: what `held` calls an example: (group, example).
          lengths: of each example of the group, by its number; one of length 0 needs no bin.
        """
        left = []
        for example in sorted(examples, key=lambda one: (-lengths[one], one)):
            length = int(lengths[example])
            if not length:
                continue
            fits_B = (self._room >= length) & (self._places > 0)
            if not fits_B.any():
                left.append(example)
                continue
            best = int(np.argmin(np.where(fits_B, self._room, np.iinfo(np.int64).max)))
            self._room[best] -= length
            self._places[best] -= 1
            self.held[best].append((group, example))
        return sorted(left)
