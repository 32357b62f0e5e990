"""Batches of texts of like lengths: what `Data.packing=Buckets()` says, and the batches as a function of their number alone.

The records of window w are those at places [w n, (w + 1) n) of the stream, n = `window` batches. They are sorted by the tokens
of their texts (of equal ones the earlier place first) and parted into batches, which come in an order drawn for the window. So
each record comes once, in the window that it would come in anyway, and any process makes any row of any step without a state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.bins import Fill
from mmjax.data.columns import Columns
from mmjax.data.files.recent import Recent
from mmjax.data.lengths import lengths_of, the_text, token_lengths
from mmjax.data.order import Bits
from mmjax.data.permutation import Permutation
from mmjax.data.reader import Reader, Rows

PLANS = 4  # windows that batches being made are of: one ends while the next begins


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Batches of texts that are about equally long, each cut to the smallest of a few lengths that holds its longest text.

    For training; an evaluation pads every text to `max_length`. A row is a record as ever, with its label, image and random
    numbers, and each record comes once an epoch: which others are in its batch is all that changes. A step is compiled for each
    of the lengths, before the first one.

    Each process, and each of its workers, reads every record of a window for the lengths, images too, before it reads its own
    rows. That is little for texts, and much where records are images.

    Attributes:
      lengths: tokens of the texts of a batch, increasing; the data's `max_length` is always the last. () for a quarter of that,
        a half and all.
      window: batches whose records are sorted together. More of them leave less padding, and mix less.
      of: the key of the text whose lengths count and which is cut, where records have several; the others are as ever.
    """

    lengths: tuple[int, ...] = setting(least=1, default=())
    window: int = setting(least=1, default=16)
    of: str = ""

    def build(self, reader: Reader, columns: Columns, batch_size: int) -> Bucketing:
        """For data. Raises `UserError` unless its texts can be so."""
        if self.window < 1:
            raise UserError(f"packing.window={self.window}: give a whole number of batches from 1 up")
        key = the_text(columns, "buckets are of the lengths of texts", self.of)
        return Bucketing(key, self._ladder(columns.texts[key][1]), self.window, reader, columns, batch_size)

    def _ladder(self, longest: int) -> tuple[int, ...]:
        """The lengths, the longest last."""
        own = self.lengths or tuple(sorted({-(-longest // 4), -(-longest // 2)}))
        if any(after <= before for before, after in zip((0, *own), own, strict=False)):
            raise UserError(f"packing.lengths={own}: give whole numbers from 1 up, each larger than the one before it")
        if own[-1] > longest:
            raise UserError(f"packing.lengths={own}: no text has more than max_length={longest} tokens; leave {own[-1]} away")
        return own if own[-1] == longest else (*own, longest)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batches of a window, in the order in which they come.

    Attributes:
      indices, places: [window, B] int64: the records, and their places in the stream.
      tokens: [window, B] int64, of their texts.
      lengths: [window] int64, what the texts of each batch are cut to.
    """

    indices: np.ndarray
    places: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray


class Bucketing:
    """The training batches of a stream in buckets; see `reader.Batching`."""

    several = False

    def __init__(
        self, key: str, lengths: tuple[int, ...], window: int, reader: Reader, columns: Columns, batch_size: int
    ) -> None:
        self.key, self.lengths = key, lengths
        self._window, self._batch_size = window, batch_size
        self._cut = columns.beside(key)
        self._reader, self._columns, self._plans = reader, columns, Recent(PLANS)

    def shapes(self, first: Mapping[str, np.ndarray], length: int = 0) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        length = length or self.lengths[-1]
        tails = {key: (length, *x.shape[2:]) if key in self._cut else x.shape[1:] for key, x in first.items()}
        return {key: ((self._batch_size, *tail), first[key].dtype) for key, tail in tails.items()}

    def drawn(self, step: int, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        plan, turn = self.plan(step // self._window), step % self._window
        return plan.indices[turn, list(rows)].tolist(), plan.places[turn, list(rows)].tolist()

    def reach(self, steps: int) -> int:
        return (-(-steps // self._window) + 1) * self._window * self._batch_size

    def __call__(self, step: int, rows: Sequence[int]) -> Rows:
        indices, places = self.drawn(step, rows)
        plan, turn = self.plan(step // self._window), step % self._window
        length = int(plan.lengths[turn])
        found = self._reader.stack(self._columns, indices, places, self._reader.order.draws())
        longest = int(lengths_of(found.batch[f"{self.key}_mask"]).max())
        if longest > length:  # a file that could not be read, and now can, or the reverse
            raise UserError(
                f"packing: a text of step {step} has {longest} tokens, and had {length} or fewer when the step was planned: "
                "something has changed the records"
            )
        batch = {key: np.ascontiguousarray(x[:, :length]) if key in self._cut else x for key, x in found.batch.items()}
        # Told once, by whoever makes the first row: the rows are sorted, so the padding of some is not that of the batch.
        first = Fill(self._batch_size * length, int(plan.tokens[turn].sum()), self._batch_size)
        return dataclasses.replace(found, batch=batch, fill=first if 0 in rows else Fill())

    def plan(self, window: int) -> Plan:
        """What its batches are. Raises `UserError` as `Reader.stack` does."""
        found: Plan = self._plans.get(window, lambda: (self._planned(window), 1))
        return found

    def _planned(self, window: int) -> Plan:
        order, size = self._reader.order, self._window * self._batch_size
        places = np.arange(window * size, (window + 1) * size)
        indices = np.array(order.indices(window * size, (window + 1) * size))
        draws = order.draws()
        read = functools.partial(token_lengths, self._reader, self._columns, self.key)
        each = (slice(first, first + self._batch_size) for first in range(0, size, self._batch_size))  # no more at a time
        tokens = np.concatenate([read(indices[one].tolist(), places[one].tolist(), draws) for one in each])
        sorted_ = np.argsort(tokens, kind="stable").reshape(self._window, self._batch_size)
        turns = Permutation(self._window, Bits(order.seed, order.purpose("buckets"))(window))(np.arange(self._window))
        taken = sorted_[turns]
        lengths = np.array(self.lengths)[np.searchsorted(self.lengths, tokens[taken].max(axis=1))]
        return Plan(indices[taken], places[taken], tokens[taken], lengths)
