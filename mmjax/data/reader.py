"""The part of the pipeline that runs in threads and worker processes: it has no state that its results depend on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data.allocator import keep_freed_memory
from mmjax.data.bins import Fill
from mmjax.data.columns import Columns, Lost
from mmjax.data.images import Opened, left_opened
from mmjax.data.lacking import Lacking, lacks
from mmjax.data.laid import Laid, says
from mmjax.data.onward import OnwardRecords
from mmjax.data.order import PASS, Draws, Order
from mmjax.data.types import BadRecordError, Record, Records, Transform
from mmjax.data.unread import Read, held

ATTEMPTS = 64  # unreadable records in a row before reading is given up
NUMBERS = 2**62  # that records without an end have
AWAY = 3  # files in a row that storage does not give: it is not these that something is wrong with
THREADS = 4  # that look for unreadable records: reading waits for the disk, decoding lets go of the interpreter


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a batch, and what happened on the way: it travels with them, so counts are right whoever read them.

    Attributes:
      batch: key -> [B, ...].
      replaced: bool [B], True where another record stands in for an unreadable one.
      lost: what texts lost.
      bad: path -> reason, of the unreadable records.
      fill: how well rows of several texts were filled.
    """

    batch: dict[str, np.ndarray]
    replaced: np.ndarray
    lost: Lost
    bad: dict[str, str]
    fill: Fill = Fill()


class Batching(Protocol):
    """The training batches of a stream whose texts are put together by their lengths; safe to share between threads and to
    pickle.

    Attributes:
      key: of the text.
      lengths: tokens that the texts of a batch may have, increasing; () where all batches are of one shape.
      several: whether a row holds several texts.
    """

    key: str
    lengths: tuple[int, ...]
    several: bool

    def shapes(self, first: Mapping[str, np.ndarray], length: int = 0) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each key of a batch, from those of the records one by one; of texts of one of the `lengths`, 0 for
        the last of them."""
        ...

    def drawn(self, step: int, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """The records of some rows of a step, and the place in the stream of each, whose random numbers it has."""
        ...

    def reach(self, steps: int) -> int:
        """How many records, at most, consecutive steps are made of."""
        ...

    def __call__(self, step: int, rows: Sequence[int]) -> Rows:
        """Some rows of the batch of a step. Raises `UserError` as `Reader.stack` does."""
        ...


class Reader:
    """Reads, transforms and stacks records; safe to share between threads and to pickle.

    The leading transforms that draw nothing (they say `random = False`) give the same each time: of a split that fits in
    `cache_mb` their results are kept, and read and made once.
    """

    def __init__(
        self,
        records: Records,
        transforms: Sequence[Transform],
        order: Order,
        cache_mb: int = 0,
        captions: Sequence[str] = ("text",),
        copies: Mapping[str, str] | None = None,
        unread: Sequence[Read] = (),
        lacking: Lacking | None = None,
    ) -> None:
        """Read `records` so.

        Args:
          captions: the keys of texts, which may be several in a tuple: one is drawn.
          copies: key -> the key of a text all of whose captions it gets.
          unread: what reads sounds and videos, before the transforms; where one of them draws, only the record as it comes is
            kept.
          lacking: what is done about keys that a record may lack.
        """
        self.records, self.unread, self.lacking = records, tuple(unread), lacking or Lacking({})
        self._drawn = any(one.random for one in unread)
        known = () if self._drawn else transforms
        fixed = list(itertools.takewhile(lambda transform: not getattr(transform, "random", True), known))
        self.fixed, self.random = tuple(fixed), tuple(transforms[len(fixed) :])
        # What comes last, and can write where the batch has it, does so when records are stacked.
        last = self.random[-1] if self.random and says(self.random[-1], "into") else None
        self._last = None if getattr(last, "field", "") in self.lacking.optional else last
        self._opened = bool(transforms) and says(transforms[0], "opened") and getattr(transforms[0], "field", "") == "image"
        self.order, self._captions, self._copies = order, tuple(captions), dict(copies or {})
        # Numbers of what is read onward never come again.
        self._cache_bytes = 0 if isinstance(records, OnwardRecords) else cache_mb * 1_000_000
        self._kept: dict[int, Record] = {}

    def stack(self, columns: Columns, indices: Sequence[int], places: Sequence[int], draws: Draws) -> Rows:
        """The records at `indices`, each with the random numbers of its place.

        Raises:
          UserError: a record unlike the first, a mistaken transform, or too many unreadable records in a row.
        """
        bad: dict[str, str] = {}
        replaced_B = np.zeros(len(indices), bool)
        found = []
        laid = Laid(len(indices), self._last)
        for row, (index, place) in enumerate(zip(indices, places, strict=True)):
            record, missed, replaced_B[row] = self._record(index, place, draws, last=False)
            found.append(laid(self.lacking.stripped(record), row))
            bad |= missed
        batch, lost = columns(found, indices, laid.whole)
        return Rows(batch, replaced_B, lost, bad)

    def record(self, index: int, place: int, draws: Draws, whole: bool = False) -> tuple[Record, dict[str, str]]:
        """The record as the transforms leave it, or the one that stands in for it; and path -> reason of unreadable ones.

        Unreadable ones are also those that a transform asked for, which others have stood in for. `whole`: with what stands in
        for keys that it lacks.
        """
        record, bad, _ = self._record(index, place, draws)
        return record if whole else self.lacking.stripped(record), bad

    def unreadable(self, most: int) -> dict[str, str]:
        """Path -> reason of what cannot be read, of all records or, where there are more than `most`, of that many of them.

        These are `spread`. Records are read in threads and not transformed; the result has their order.
        """

        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(self.unreadable_at, spread(self.records, most))
            return {error.path: error.reason for error in found if error is not None}

    def unreadable_at(self, index: int) -> BadRecordError | None:
        """What is wrong with a record that cannot be read; it is not transformed."""
        try:
            self._read(self.lacking.filled(self.records[index]), index, None)
        except BadRecordError as error:
            return error
        return None

    def _record(self, index: int, place: int, draws: Draws, last: bool = True) -> tuple[Record, dict[str, str], bool]:
        """As `record`, and whether another one stands in for it; without the `last` transform, for who runs it."""
        bad: dict[str, str] = {}
        away: set[str] = set()
        chosen = index
        partners = Partners(self.records, self.order, bad, index, self.lacking)
        for attempt in range(ATTEMPTS):
            try:
                return self._transformed(chosen, draws.at(place), partners, draws.training, last), bad, attempt > 0
            except BadRecordError as error:
                bad[error.path] = error.reason
                _check_there(error, away)
                chosen = self.order.replacement(index, attempt)
        raise _given_up(bad)

    def _transformed(self, index: int, rng: np.random.Generator, partners: Partners, training: bool, last: bool) -> Record:
        record = self._before_draws(index, rng, partners)
        record = whole = self._read(record, index, rng if training else None) if self._drawn else record
        for key in self._captions:
            if isinstance(texts := record.get(key), tuple | list):
                if not texts:
                    raise UserError(f"{key}: a record has no text of the several that one is drawn of")
                record = {**record, key: texts[rng.integers(len(texts))]}
        drawn = record
        for transform in self.random if last or self._last is None else self.random[:-1]:
            record = transform(record, rng, partners)
        for name, key in self._copies.items():
            if key in lacks(record):  # what only stands in is no text of the record's
                record = {**record, name: None}
            elif key in record:  # all captions, unless a transform has written another text
                record = {**record, name: whole[key] if key in drawn and record[key] == drawn[key] else record[key]}
        return record

    def _before_draws(self, index: int, rng: np.random.Generator, partners: Partners) -> Record:
        """The record after the leading transforms that draw nothing; kept where all of them fit."""
        kept = self._kept.get(index)
        if kept is not None:
            return dict(kept)
        with left_opened(self._opened):
            record = self.lacking.filled(self.records[index])
        record = record if self._drawn else self._read(record, index, None)
        for transform in self.fixed:
            record = transform(record, rng, partners)
        if _size(record) * self.order.size <= self._cache_bytes:
            record = {key: np.asarray(value) if isinstance(value, Opened) else value for key, value in record.items()}
            for value in record.values():
                if isinstance(value, np.ndarray):
                    value.flags.writeable = False  # a transform that wrote into it would change every later epoch
            self._kept[index] = dict(record)  # one of its own, which no later transform can change
        return record

    def _read(self, record: Record, index: int, rng: np.random.Generator | None) -> Record:
        for one in self.unread:
            record = one(record, rng, f"record {index}")
        return record


class Partners:
    """The records as a transform sees them: for one that cannot be read another stands in, always the same.

    Whatever else the records show can be asked of it too.
    """

    def __init__(self, records: Records, order: Order, bad: dict[str, str], index: int, lacking: Lacking) -> None:
        """`bad` takes path -> reason of those that cannot be read; `index` is that of the record that is transformed."""
        self._records, self._order, self._bad, self._own, self._lacking = records, order, bad, index, lacking
        self._count = NUMBERS if isinstance(records, OnwardRecords) else len(records)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._records.classes

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Record:
        index = chosen = self._order.partner(self._own, index)
        met: dict[str, str] = {}
        away: set[str] = set()
        for attempt in range(ATTEMPTS):
            try:
                return self._lacking.filled(self._records[chosen])
            except BadRecordError as error:
                met[error.path] = error.reason
                self._bad[error.path] = error.reason
                _check_there(error, away)
                chosen = self._order.replacement(index % self._count, attempt)
        raise _given_up(met)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._records, name)

    def texts(self) -> Iterator[str]:
        return self._records.texts()

    def fingerprint(self) -> str:
        return self._records.fingerprint()


def spaced(size: int, most: int) -> list[int]:
    """All indices below `size` or, where these are more than `most`, that many of them, evenly spaced, the last included."""
    if size <= most:
        return list(range(size))
    return [size - 1 - step * size // most for step in reversed(range(most))]


def spread(records: Records, most: int) -> list[int]:
    """The indices to look at where nobody wants to look at all: `spaced`, or the first of what can only be read onward."""
    return list(range(min(most, len(records)))) if isinstance(records, OnwardRecords) else spaced(len(records), most)


def _check_there(error: BadRecordError, away: set[str]) -> None:
    """Raise `UnreachableError` where several files in a row, said in `away`, cannot be fetched: to wait for each of many, and
    to put what is at hand in their place, would be another run."""
    if isinstance(error.__cause__, UnreachableError):
        away.add(str(error.__cause__))
        if len(away) >= AWAY:
            raise UnreachableError(f"source: {AWAY} files in a row cannot be fetched; the last: {error.__cause__}")


def _given_up(bad: dict[str, str]) -> UserError:
    path, reason = next(iter(bad.items()))
    return UserError(f"source: {ATTEMPTS} records drawn in a row cannot be read; the first: {path} ({reason})")


def _size(record: Record) -> int:
    """Bytes of its arrays, of sounds and videos, and a kilobyte for the rest."""
    return 1000 + held(record) + sum(value.nbytes for value in record.values() if isinstance(value, np.ndarray | Opened))


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches by number, for grain: the training stream, or one pass over the records in order.

    A `UserError` is given back as a value: grain would wrap what a worker raises.

    Attributes:
      reader: what reads.
      columns: what stacks.
      batch_size: rows of the global batch.
      rows: the rows of it that this process makes, in order.
      once: False for the endless training stream, True for one pass in order with the last batch filled up.
      packing: what puts the texts of the training stream together by their lengths; None for nothing.
    """

    reader: Reader
    columns: Columns
    batch_size: int
    rows: tuple[int, ...]
    once: bool
    packing: Batching | None = None

    def __len__(self) -> int:
        return -(-self.reader.order.size // self.batch_size) if self.once else 2**53

    def __getitem__(self, step: int) -> Rows | UserError:
        keep_freed_memory()  # here, where the process is that reads
        try:
            return self._pass(step) if self.once else self._train(step)
        except UserError as error:
            return error

    def _train(self, step: int) -> Rows:
        if self.packing is not None:
            return self._with_index(self.packing(step, self.rows))
        indices, places = self.drawn(step)
        return self._with_index(self.reader.stack(self.columns, indices, places, self.reader.order.draws()))

    def drawn(self, step: int) -> tuple[list[int], list[int]]:
        """The records of a step's rows in the training stream, and the place of each, whose random numbers it has; where rows
        hold several texts, of so many that come with the step."""
        if self.packing is not None:
            return self.packing.drawn(step, self.rows)
        start = step * self.batch_size
        around = self.reader.order.indices(start + self.rows[0], start + self.rows[-1] + 1)
        return [around[row - self.rows[0]] for row in self.rows], [start + row for row in self.rows]

    def _pass(self, step: int) -> Rows:
        places = [step * self.batch_size + row for row in self.rows]
        there = [place for place in places if place < self.reader.order.size]
        indices = there or [self.reader.order.size - 1]
        # The seed stays out of it: every run evaluates the same captions and crops.
        rows = self.reader.stack(self.columns, indices, indices, Draws(0, PASS))
        filled = len(places) - len(indices)  # rows that only fill the batch up count nowhere
        batch = {key: np.concatenate([x, np.repeat(x[-1:], filled, axis=0)]) if filled else x for key, x in rows.batch.items()}
        replaced_B = np.concatenate([rows.replaced, np.repeat(rows.replaced[-1:], filled)])
        rows = self._with_index(Rows(batch, replaced_B, rows.lost if there else Lost(), rows.bad))
        rows.batch["valid"] = (np.array(places) < self.reader.order.size) & ~rows.replaced
        return rows

    def _with_index(self, rows: Rows) -> Rows:
        rows.batch["index"] = np.array(self.rows, np.int32)
        return rows
