"""Records that can only be read from their beginning on: compressed files, what another program gives, a library's iterator.

They are numbered without an end: after the last one the first comes again. A window of them is in hand at a time, so that the
record of a number is a function of the number alone, as of any other records; but to come to it all before it are read, or all
since a position that was noted.
"""

from __future__ import annotations

import abc
import itertools
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data.once import say_once, warn_once
from mmjax.data.types import Cuts, Record

NOTED = 64  # positions of windows that are remembered, at least
FAR = 100_000  # examples that are passed over in silence

log = logging.getLogger(__name__)


class OnwardRecords(abc.ABC):
    """See the module; safe to share between threads. What a source of your own builds where it can only be read onward.

    `len` is what an evaluation reads and what the steps of an epoch are counted by; training reads on, and begins again where
    the examples end.

    Attributes:
      windows: what is in hand at a time, and shuffled: no window reaches over the end of `size` examples, so that where these
        are all there are each comes once before any comes again.

    Usage:

        class Log(OnwardRecords):
            def __init__(self): super().__init__(size=100_000, window=1_000)
            def read(self, position):  # position: any JSON, of your own; None for the beginning
                for line in lines_after(position): yield line, line.offset
            def record(self, example): return {"text": example.text}
            def fingerprint(self): return "the log of May"
    """

    def __init__(self, size: int, window: int) -> None:
        """`size`: what `len` is; `window`: examples in hand at a time, at most. Raises `UserError` for less than 1."""
        for name, value in (("size", size), ("window", window)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"source: {type(self).__name__}: {name}={value!r}: give a whole number from 1 up")
        self._size, self.windows = size, Cuts(size, window)
        self._hand = _Hand(self)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in label order, () if there are none."""
        return ()

    @abc.abstractmethod
    def read(self, position: Any) -> Iterator[tuple[Any, Any]]:
        """The examples after a position that this gave earlier, or all of them after None, up to the last; each with the
        position after it, JSON-able. Always the same ones. Raises `UserError` for what cannot be read."""

    @abc.abstractmethod
    def record(self, example: Any) -> Record:
        """What `read` gave, as a record. Raises `BadRecordError` for one that cannot be read."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A hash of exactly which examples there are."""

    def texts(self) -> Iterator[str]:
        """Its own captions, to train a tokenizer on, those of the first `len` examples; none unless it says so."""
        return iter(())

    def first(self, count: int) -> Iterator[Any]:
        """The first examples of `read`, apart from what is in hand."""
        return (example for example, _ in itertools.islice(self.read(None), count))

    def hold(self, examples: int) -> None:
        """Have at least so many in hand, and the windows around them: as many as threads may ask for at once."""
        self._hand.most = max(self._hand.most, -(-examples // max(1, len(self) // self.windows.count)) + 1)

    def positions(self) -> list[list[Any]]:
        """What `go_on` takes: where the windows of late begin, JSON-able."""
        return self._hand.positions()

    def go_on(self, positions: Sequence[Sequence[Any]]) -> None:
        """Read from the last of these positions that is not too late, instead of from the beginning."""
        self._hand.note(positions)

    def text_of(self, position: Any) -> str:
        """A position as JSON: what it was, if the object is changed later. Raises `UserError` where it is none."""
        try:
            return json.dumps(position)
        except (TypeError, ValueError) as error:
            what = f"a position that {type(self).__name__}.read gives is no JSON ({error}): {position!r}"
            raise UserError(f"source: {what[:200]}") from None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: int, /) -> Record:
        return self.record(self._hand[number])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hand": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._hand = _Hand(self)


def indexed(records: Any, what: str) -> Any:
    """The records, which `what` looks up in any order. Raises `UserError` where they can only be read onward."""
    if isinstance(records, OnwardRecords):
        name = type(records).__name__.removesuffix("Records")
        raise UserError(
            f"{name} can only be read from its beginning on, and {what} looks records up in any order: "
            "`mmjax data prepare` makes ArrayRecord files of it, which can be"
        )
    return records


def hold(records: OnwardRecords, data: Any, path: str, packing: Any) -> None:
    """Have in hand what the threads of `data.Data` ask for at once, `packing` being its `reader.Batching` or None.

    Raises:
      UserError: worker processes, each of which would read all of it.
    """
    where = path or "data"
    if data.workers:
        raise UserError(f"{where}.workers={data.workers}: what can only be read onward is read once; use 0")
    steps = max(data.prefetch, data.threads) + data.threads + 1
    records.hold(steps * data.batch_size if packing is None else packing.reach(steps))
    if data.shuffle:
        window = len(records) // records.windows.count
        say_once(log.name, logging.INFO, f"{where}: read onward, and shuffled within {window:,} examples at a time")


class _Hand:
    """The windows in hand, and the reading that goes on after them.

    Attributes:
      most: windows that are held.
    """

    def __init__(self, records: OnwardRecords) -> None:
        self._records, self.most = records, 2
        self._lock = threading.Lock()
        self._windows: dict[int, list[Any]] = {}
        # Window -> the position where it begins, as JSON, and how many examples of this turn through them come before it.
        self._starts: dict[int, tuple[str, int]] = {0: ("null", 0)}
        self._reading: Iterator[Any] | None = None
        self._next, self._since = 0, 0
        self._position: Any = None

    def __getitem__(self, number: int) -> Any:
        window = self._records.windows.of(number)
        with self._lock:
            if window not in self._windows:
                self._come_to(window)
            return self._windows[window][number - self._records.windows.start(window)]

    def positions(self) -> list[list[Any]]:
        start = self._records.windows.start
        with self._lock:
            return [[start(window), json.loads(at), since] for window, (at, since) in sorted(self._starts.items()) if window]

    def note(self, positions: Sequence[Sequence[Any]]) -> None:
        windows = self._records.windows
        with self._lock:
            for number, position, since in positions:
                window = windows.of(number)
                if windows.start(window) == number:  # else they are of another window's size
                    self._starts[window] = (json.dumps(position), since)

    def _come_to(self, window: int) -> None:
        nearest = max(start for start in self._starts if start <= window)
        if self._reading is None or not nearest <= self._next <= window:
            at, self._since = self._starts[nearest]
            self._next, self._position, self._windows = nearest, json.loads(at), {}
            self._reading = self._records.read(self._position)
        passed = self._records.windows.start(window) - self._records.windows.start(self._next)
        if passed > FAR:
            warn_once(log, "the stream is read onward to come to where the run is: %d examples are passed over", passed)
        try:
            while self._next <= window:
                self._take(kept=self._next > window - self.most)
        except BaseException:
            self._reading = None  # it may be broken in the middle of a window
            raise

    def _take(self, kept: bool) -> None:
        """Read the next window."""
        self._starts[self._next] = (self._records.text_of(self._position), self._since)
        windows = self._records.windows
        found = [self._example() for _ in range(windows.start(self._next + 1) - windows.start(self._next))]
        if kept:
            self._windows[self._next] = found
        self._windows.pop(self._next - self.most, None)
        self._next += 1
        if len(self._starts) > 2 * (room := NOTED + 4 * self.most):
            self._starts = {start: self._starts[start] for start in [0, *sorted(self._starts)[-room:]]}

    def _example(self) -> Any:
        for _ in range(2):
            assert self._reading is not None
            for given in self._reading:
                if not isinstance(given, tuple | list) or len(given) != 2:
                    name = type(self._records).__name__
                    raise UserError(f"source: {name}.read gives an example and the position after it; found {given!r:.60}")
                (example, self._position), self._since = given, self._since + 1
                return example
            self._check_end()
            self._reading, self._position, self._since = self._records.read(None), None, 0
        raise UserError("source: there are no examples in it")

    def _check_end(self) -> None:
        """An evaluation would count the first ones twice, and an epoch would be another than is said."""
        if 0 < self._since < len(self._records):
            raise UserError(f"source.records={len(self._records)}: the stream ends after {self._since}; give {self._since}")
