"""In which turn records come: from places [0, 2^62) of an endless stream to the indices of records, computed for any place."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from mmjax.data.permutation import Permutation
from mmjax.data.types import Cuts, Share

Bits = Callable[..., np.random.BitGenerator]  # of further numbers
EPOCHS = 2  # whose keys, or permutations, are kept: neighbouring batches meet at an epoch's end
PERIOD = 1 << 20  # places, at most, after which the turn of shares begins again


class Turn(Protocol):
    """An order of the records of one source."""

    def at(self, places: np.ndarray) -> np.ndarray:
        """Indices int64 of the records at places int64, of one shape."""
        ...

    def among(self, index: int) -> Sequence[int] | np.ndarray:
        """The indices of the records that may stand in for an unreadable one."""
        ...


class InTurn:
    """One after the other, from the first again after the last."""

    def __init__(self, size: int) -> None:
        self.size = size

    def at(self, places: np.ndarray) -> np.ndarray:
        return places % self.size

    def among(self, index: int) -> range:
        return range(self.size)


class Onward(InTurn):
    """Of records without an end, which can only be read onward: the windows come in their order, and each is permuted."""

    def __init__(self, windows: Cuts, bits: Bits | None) -> None:
        """Without `bits` they come as they are read."""
        super().__init__(windows.size)
        self._windows, self._bits = windows, bits

    def at(self, places: np.ndarray) -> np.ndarray:
        if self._bits is None:
            return places
        windows = self._windows.of(places)
        found = np.empty_like(places)
        for window in np.unique(windows).tolist():
            here, start = windows == window, self._windows.start(window)
            own = Permutation(self._windows.start(window + 1) - start, self._bits(window))
            found[here] = start + own(places[here] - start)
        return found

    def among(self, index: int) -> range:
        window = int(self._windows.of(index))
        return range(self._windows.start(window), self._windows.start(window + 1))


class _Epochs(InTurn, abc.ABC):
    """Each epoch of `size` places is a permutation of its own, a function of the bits of its number."""

    def __init__(self, size: int, bits: Bits) -> None:
        super().__init__(size)
        self._bits = bits
        self._kept: dict[int, Callable[[np.ndarray], np.ndarray]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": {}}

    def at(self, places: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(places, self.size)
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = self._epoch(epoch)(within[here])
        return found

    def _epoch(self, epoch: int) -> Callable[[np.ndarray], np.ndarray]:
        kept = self._kept
        if epoch not in kept:
            # Assigned whole, never changed: other threads read it.
            self._kept = kept = dict([*kept.items(), (epoch, self._made(epoch))][-EPOCHS:])
        return kept[epoch]

    @abc.abstractmethod
    def _made(self, epoch: int) -> Callable[[np.ndarray], np.ndarray]:
        """Places [0, size) of an epoch to indices."""


class Shuffled(_Epochs):
    """All records of an epoch in an order of their own, which is computed and takes no memory."""

    def _made(self, epoch: int) -> Callable[[np.ndarray], np.ndarray]:
        return Permutation(self.size, self._bits(epoch))


class Stored(_Epochs):
    """The same by a permutation of all records that is held, eight bytes a record: that of runs begun before `Shuffled`."""

    def _made(self, epoch: int) -> Callable[[np.ndarray], np.ndarray]:
        return np.random.Generator(self._bits(epoch)).permutation(self.size).__getitem__


class Blocks(_Epochs):
    """An epoch is a permutation of the blocks, and one of the records within so many consecutive ones of these at a time.

    Blocks are what storage reads as a whole: the shards of a tar, the row groups of a table. A reader has `window` of them in
    hand, and what it holds is 16 bytes a block.
    """

    def __init__(self, sizes: np.ndarray, window: int, bits: Bits) -> None:
        """`sizes`: how many records each block has, int64, in the order of the records."""
        super().__init__(int(sizes.sum()), bits)
        self._sizes, self._window = np.asarray(sizes, np.int64), window

    def _made(self, epoch: int) -> Callable[[np.ndarray], np.ndarray]:
        blocks = Permutation(len(self._sizes), self._bits(epoch))(np.arange(len(self._sizes)))
        first = np.cumsum(self._sizes) - self._sizes  # of each block, among the records
        ends = np.cumsum(self._sizes[blocks])  # of each block, in this epoch
        last = np.append(ends[self._window - 1 : -1 : self._window], ends[-1])  # of each window
        return functools.partial(self._within, epoch, first[blocks], ends, last)

    def _within(self, epoch: int, first: np.ndarray, ends: np.ndarray, last: np.ndarray, places: np.ndarray) -> np.ndarray:
        windows = np.searchsorted(last, places, side="right")
        found = np.empty_like(places)
        for window in np.unique(windows).tolist():
            here = windows == window
            start = 0 if window == 0 else int(last[window - 1])
            own = Permutation(int(last[window]) - start, self._bits(epoch, window + 1))  # 0 would be the blocks' own bits
            found[here] = start + own(places[here] - start)
        block = np.searchsorted(ends, found, side="right")
        start_of_block = np.where(block > 0, ends[block - 1], 0)
        return first[block] + found - start_of_block


class Lists(InTurn):
    """Lists of records, each in so many rows side by side: an epoch is a permutation of the lists, and of the items of each.

    Of a list of more items than rows so many are drawn. Where there are fewer, an index of `records` and above, that of an item
    plus `records`, stands for a row that is empty.
    """

    def __init__(self, members: Sequence[np.ndarray], rows: int, records: int, bits: Bits | None = None) -> None:
        """`members`: the indices of each list's items, below `records`. Without `bits` all come in their order."""
        super().__init__(len(members) * rows)
        self._members, self.rows, self._records, self._bits = tuple(members), rows, records, bits

    def shuffled(self, bits: Bits) -> Lists:
        """The same, in an order of each epoch's own."""
        return Lists(self._members, self.rows, self._records, bits)

    def at(self, places: np.ndarray) -> np.ndarray:
        slots, row = np.divmod(places, self.rows)
        found = np.empty_like(places)
        for slot in np.unique(slots).tolist():
            here = slots == slot
            epoch, place = divmod(slot, len(self._members))
            found[here] = self._row(epoch, place, row[here])
        return found

    def among(self, index: int) -> range:
        """Empty rows, so that nothing stands in for an item of a query."""
        return range(self._records, 2 * self._records)

    def _row(self, epoch: int, place: int, row: np.ndarray) -> np.ndarray:
        """The indices of some rows of the list at a place of an epoch."""
        if self._bits is None:
            own = self._members[place]
            return np.where(row < len(own), own[row % len(own)], own[0] + self._records)
        chosen = int(Permutation(len(self._members), self._bits(epoch))(np.array([place]))[0])
        own = self._members[chosen]
        drawn = own[Permutation(len(own), self._bits(epoch, chosen + 1))(row % len(own))]  # 0 would be the lists' own bits
        return np.where(row < len(own), drawn, own[0] + self._records)


class Shares:
    """Several shares take turns, each as often as its weight says, and each in its own order.

    The turn repeats itself after a period in which each share has its weight's whole number of places, spread evenly: over any
    stretch a share's count is within one a share of what its weight says, and after each period exact.
    """

    def __init__(self, shares: Sequence[Share], turns: Sequence[Turn]) -> None:
        self._places, self._turns = [share.places for share in shares], list(turns)
        self._counts = whole_weights([share.weight for share in shares])
        of = np.repeat(np.arange(len(shares)), self._counts)
        rank = np.concatenate([np.arange(count) for count in self._counts])
        # The k-th of n is due at (k + 1/2) / n of the period. Equal fractions round to equal floats, and unequal ones, below
        # `PERIOD`, to unequal ones; of equal ones the first share's comes first.
        turn = np.lexsort((of, (rank + 0.5) / np.asarray(self._counts)[of]))
        self._of, self._rank = of[turn], rank[turn]

    def at(self, places: np.ndarray) -> np.ndarray:
        periods, within = np.divmod(places, len(self._of))
        shares = self._of[within]
        found = np.empty_like(places)
        for share in np.unique(shares).tolist():
            here = shares == share
            local = self._turns[share].at(periods[here] * self._counts[share] + self._rank[within[here]])
            found[here] = _taken(self._places[share], local)
        return found

    def among(self, index: int) -> Sequence[int] | np.ndarray:
        return next((own for own in self._places if _holds(own, index)), self._places[0])


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The least whole numbers in the ratio of some weights as they are written, 0.1 being a tenth; where these would sum to
    more than `PERIOD`, the nearest that do not, at least 1 each."""
    exact = [Fraction(str(weight)) for weight in weights]
    times = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * times) for weight in exact]
    whole = [one // math.gcd(*whole) for one in whole]
    total = sum(whole)
    return whole if total <= PERIOD else [max(1, round(Fraction(one, total) * (PERIOD // 2))) for one in whole]


def _taken(places: Sequence[int] | np.ndarray, local: np.ndarray) -> np.ndarray:
    return places.start + local if isinstance(places, range) else np.asarray(places)[local]


def _holds(places: Sequence[int] | np.ndarray, index: int) -> bool:
    return index in places if isinstance(places, range) else bool(np.isin(index, places))
