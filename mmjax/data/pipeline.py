"""From a source to batches: `Data` says what, `Dataset` gives it.

The global batch is a pure function of (seed, step): row r of step s is place p = s * batch_size + r of the stream, the record
there is `permutation(seed, p // size)[p % size]`, and its random numbers are a function of (seed, p). A process makes only its
own rows, and any number of processes, threads or workers make the same batches.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from mmjax.core.config import setting
from mmjax.core.errors import UserError, within
from mmjax.data.columns import Columns
from mmjax.data.order import Draws, Order
from mmjax.data.reader import Reader, Rows, Stream
from mmjax.data.sources import SOURCES
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.transforms import TRANSFORMS
from mmjax.data.types import Records

Batch = dict[str, np.ndarray]
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Data:
    """A source, what is done to its records, and how they are batched.

    Attributes:
      source: where the records come from.
      transforms: applied to each record in this order.
      batch_size: rows of the global batch.
      max_length: tokens of a text, special tokens included. Longer ones are truncated and counted.
      shuffle: draw a permutation each epoch; False takes the records in their order.
      workers: processes that read; 0 reads in threads of this one.
      threads: threads that read, in each worker where there are workers; 0 reads when a batch is asked for.
      prefetch: batches kept ready, by each worker where there are workers.
      cache_mb: megabytes for records that are the same each time, if the whole split fits (in each worker): read once, then
        kept as the leading transforms without randomness leave them; 0 reads each record anew.
      bad_record_limit: share of unreadable records above which the run stops; each one below it is replaced by another.
    """

    source: Any = setting(SOURCES, everyday=True)
    transforms: tuple[Any, ...] = setting(TRANSFORMS, default=())
    batch_size: int = setting(everyday=True, default=128)
    max_length: int = setting(everyday=True, default=32)
    shuffle: bool = True
    workers: int = 0
    threads: int = 2
    prefetch: int = 4
    cache_mb: int = 256
    bad_record_limit: float = 0.01

    def build(self, tokenizer: Tokenizer | None, seed: int, name: str = "") -> Dataset:
        """Open the source and read its first record.

        Args:
          name: that of the data in an experiment: it begins every complaint, now and while reading.

        Raises:
          UserError: a number out of range, whatever the source raises, an empty source, text and no tokenizer, or transforms
            that do not fit the records.
        """
        with within(f"data.{name}" if name else ""):
            self._check(seed)
            records = self.source.build()
            if not len(records):
                raise UserError(f"source: {self.source!r} has no records")
            return Dataset(self, records, tokenizer, seed, name)

    def _check(self, seed: int) -> None:
        least = {"batch_size": 1, "max_length": 1, "workers": 0, "threads": 0, "prefetch": 1, "cache_mb": 0}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise UserError(f"{field}={getattr(self, field)}: give a whole number from {low} up")
        if not 0 <= self.bad_record_limit <= 1:
            raise UserError(f"bad_record_limit={self.bad_record_limit} is a share: give a number from 0 to 1")
        if seed < 0:
            raise UserError(f"seed={seed}: give a whole number from 0 up")

    def texts(self, name: str = "") -> Iterator[str]:
        """All that a tokenizer should be trained on: the source's own texts, then those that transforms can write.

        `name` begins every complaint, as in `build`.
        """
        with within(f"data.{name}" if name else ""):
            records = self.source.build()
            yield from records.texts()
            for transform in self.transforms:
                if hasattr(transform, "texts"):
                    yield from transform.texts(records)


class Dataset:
    """Batches of one split, as numpy arrays.

    Attributes:
      path: `data.NAME`, its place in the experiment; "" outside of one.
      size: number of records.
      classes: names in label order, () if there are none.
      batch_size: rows of the global batch.
      fingerprint: hash of exactly which examples it holds.
      tokenizer: what encodes texts, or None.
      truncated: truncated captions among the batches taken so far.
      bad: path -> reason of the unreadable records met so far. Counted when a batch is taken, also one that a worker made;
        each process of a distributed run counts its own rows.
    """

    def __init__(self, data: Data, records: Records, tokenizer: Tokenizer | None, seed: int, name: str = "") -> None:
        self.path = f"data.{name}" if name else ""
        self.size = len(records)
        self.classes = tuple(records.classes)
        self.batch_size = data.batch_size
        self.fingerprint = records.fingerprint()
        self.tokenizer = tokenizer
        self.truncated = 0
        self.bad: dict[str, str] = {}
        self._data = data
        self._reader = Reader(records, data.transforms, Order(self.size, seed, data.shuffle), data.cache_mb)
        first, bad = self._reader.record(0, 0, Draws(0, "pass"))
        self._columns = Columns(first, tokenizer, data.max_length)
        self._first = self._columns([first])[0]
        self._count_bad(bad)

    def spec(self, batch_size: int | None = None) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each key of the global batch of `batches`, taken from the first record."""
        size = self.batch_size if batch_size is None else batch_size
        spec = {key: ((size, *value.shape[1:]), value.dtype) for key, value in self._first.items()}
        return {**spec, "index": ((size,), np.dtype(np.int32))}

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """The training batch of one step, or some rows of it, read here and now."""
        return self._take(self._stream(self.batch_size, rows, once=False)[step])

    def batches(self, start_step: int = 0, rows: Sequence[int] | None = None) -> Batches:
        """The endless training stream from a step on; starting late costs nothing. Close it when done.

        Args:
          rows: the rows of the global batch to make, in increasing order; None for all. `index` tells them.

        Raises:
          UserError: later, from a batch: a record unlike the first, or more unreadable records than `bad_record_limit` allows.
        """
        return Batches(self, self._stream(self.batch_size, rows, once=False), start_step, self._data.workers)

    def epoch(self, rows: Sequence[int] | None = None, batch_size: int | None = None) -> Batches:
        """Each record once, in order, with random numbers that depend on the record alone; read in threads of this process.

        The last batch is filled up by repeating the last record. `valid` is False there, and for a record that stands in for
        an unreadable one. Raises `UserError` as `batches` does.
        """
        size = self.batch_size if batch_size is None else batch_size
        return Batches(self, self._stream(size, rows, once=True), 0, workers=0)

    def _stream(self, batch_size: int, rows: Sequence[int] | None, once: bool) -> Stream:
        made = range(batch_size) if rows is None else rows
        assert made and min(made) >= 0 and max(made) < batch_size, f"rows {made} of a batch of {batch_size}"
        return Stream(self._reader, self._columns, batch_size, tuple(made), once)

    def _take(self, rows: Rows | UserError) -> Batch:
        with within(self.path):
            if isinstance(rows, UserError):
                raise rows
            self.truncated += rows.truncated
            self._count_bad(rows.bad)
        return rows.batch

    def _count_bad(self, bad: dict[str, str]) -> None:
        for path, reason in bad.items():
            if path not in self.bad:
                self.bad[path] = reason
                whose = f"{self.path}: " if self.path else ""
                log.warning("%scannot read %s (%s); another record takes its place", whose, path, reason)
        limit = self._data.bad_record_limit
        if len(self.bad) > limit * self.size:
            path, reason = next(iter(self.bad.items()))
            many = f"{len(self.bad)} of {self.size} records cannot be read, more than bad_record_limit={limit} allows"
            raise UserError(f"{many}; the first: {path} ({reason})")


class Batches(Iterator[Batch]):
    """Batches one after the other, read ahead by grain; `close` (or `with`) frees its threads and worker processes."""

    def __init__(self, dataset: Dataset, stream: Stream, start: int, workers: int) -> None:
        data = dataset._data
        options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=max(data.prefetch, data.threads))
        steps = grain.MapDataset.source(stream).slice(slice(start, None)).to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads absl's flags to pass them on
            steps = steps.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=data.prefetch))
        self._dataset = dataset
        self._rows = iter(steps)

    def __next__(self) -> Batch:
        return self._dataset._take(next(self._rows))

    def close(self) -> None:
        """Stop reading; may be called again."""
        self._rows.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
