"""Which record is at which place of the endless training stream, and the random numbers that belong to a place.

Everything is a function of (seed, position), so a run can start at any step, with any number of processes.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.onward import OnwardRecords
from mmjax.data.turns import Blocks, InTurn, Onward, Shares, Shuffled, Stored, Turn
from mmjax.data.types import Share

ORDERS = ("records", "blocks", "stored")
PASS = "pass"  # what random numbers of a pass over the records in order are for


class Order:
    """Position in the stream -> index of a record."""

    def __init__(self, size: int, seed: int, shuffle: bool, stream: str = "", turn: Turn | None = None) -> None:
        """`stream` is the name of the data: two of one size are read in orders, and with draws, of their own. Without a `turn`
        each epoch is a permutation of its own, or the records in their order where nothing is shuffled."""
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.stream = stream
        self._turn = turn or (Shuffled(size, self._bits("order")) if shuffle else InTurn(size))

    @classmethod
    def of(cls, records: Any, seed: int, shuffle: bool, stream: str = "", how: str = "records", window: int = 1) -> Order:
        """The order in which records are drawn.

        Args:
          records: of any source; one that has `shares()`, `blocks()` or `lists()`, or can only be read onward, is read as
            these say, see `types.Records`.
          how: `records`, each epoch a permutation of all; `blocks`, one of blocks, and of the records within `window` blocks at
            a time; `stored`, the permutations of runs that were begun before there was a choice, held in memory.

        Raises:
          UserError: an unknown order, blocks where there are none, or `stored` for a mixture.
        """
        if how not in ORDERS:
            raise UserError(f"order={how!r}: use one of {', '.join(ORDERS)}")
        plain = cls(len(records), seed, shuffle, stream)
        return cls(len(records), seed, shuffle, stream, plain._of(records, how, window, "order"))

    def purpose(self, name: str) -> str:
        """What random numbers of this stream are for; those of `train` as they were before names counted."""
        return name if self.stream in ("", "train") else f"{name}/{self.stream}"

    def draws(self) -> Draws:
        """The random numbers of the places of the training stream."""
        return Draws(self.seed, self.purpose("train"))

    def indices(self, start: int, stop: int) -> list[int]:
        """Indices of the records at positions [start, stop)."""
        return self._turn.at(np.arange(start, stop)).tolist()

    def replacement(self, index: int, attempt: int) -> int:
        """The record to take for an unreadable one, at the first attempt, the second and so on; in a mixture of its share."""
        among = self._turn.among(index)
        drawn = np.random.Generator(_philox(self.seed, self.purpose("replacement"), index, attempt)).integers(len(among))
        return int(among[int(drawn)])

    def partner(self, index: int, drawn: int) -> int:
        """The record that a transform of the one at `index` gets where it has drawn another; of what can only be read onward
        one of those in hand."""
        if not isinstance(self._turn, Onward):
            return drawn
        near = self._turn.among(index)
        return near[drawn % len(near)]

    def _of(self, records: Any, how: str, window: int, purpose: str) -> Turn:
        if isinstance(records, OnwardRecords):
            if how != "records":
                raise UserError(f"order={how!r}: what can only be read onward is shuffled within its window; use records")
            return Onward(records.windows, self._bits(purpose) if self.shuffle else None)
        if hasattr(records, "lists"):
            if how != "records":
                raise UserError(f"order={how!r}: records that are kept together are drawn query by query; use records")
            return records.lists().shuffled(self._bits(purpose)) if self.shuffle else records.lists()
        shares = records.shares() if hasattr(records, "shares") else ()
        if shares and how == "stored":
            raise UserError("order='stored' is that of runs before mixtures; use records")
        if shares:
            return Shares(shares, [self._of_share(share, how, window, f"{purpose}/{share.name}") for share in shares])
        if how == "blocks":
            if not hasattr(records, "blocks"):
                named = type(records).__name__.removesuffix("Records")
                raise UserError(f"order='blocks': {named} has no blocks, and reads each record alike; use records")
            sizes = records.blocks()
            assert sizes.sum() == len(records), f"blocks of {sizes.sum()} records, of {len(records)}"
            return Blocks(sizes, window, self._bits(purpose)) if self.shuffle else InTurn(len(records))
        return self._whole(len(records), how, purpose)

    def _of_share(self, share: Share, how: str, window: int, purpose: str) -> Turn:
        if share.records is not None:
            return self._of(share.records, how, window, purpose)
        if how == "blocks":
            raise UserError("order='blocks': records that are chosen one by one lie in no blocks; use records")
        return self._whole(len(share.places), how, purpose)

    def _whole(self, size: int, how: str, purpose: str) -> Turn:
        if not self.shuffle:
            return InTurn(size)
        return (Stored if how == "stored" else Shuffled)(size, self._bits(purpose))

    def _bits(self, purpose: str) -> Bits:
        return Bits(self.seed, self.purpose(purpose))


class Bits:
    """Random bits that are a function of a seed, of what they are for, and of further numbers."""

    def __init__(self, seed: int, purpose: str) -> None:
        self.seed, self.purpose = seed, purpose

    def __call__(self, *rest: int) -> np.random.Philox:
        return _philox(self.seed, self.purpose, *rest)


class Draws:
    """One generator that is moved from place to place: its numbers at a place depend on (seed, purpose, place) alone.

    Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a place has the
    counters of its own, and setting one is five times cheaper than a new generator. Not to be shared between threads.

    Attributes:
      training: whether they are those of training, and not of a pass over the records in order.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self.training = purpose != PASS
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
