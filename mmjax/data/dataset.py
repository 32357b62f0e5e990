"""The batches of one split: of training an endless stream, of evaluation each record once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.core.errors import UserError, within
from mmjax.data.arrays import ArrayColumn, NumberColumn
from mmjax.data.batches import Batch, Batches
from mmjax.data.bins import Fill
from mmjax.data.classes import ClassColumn, ClassesColumn
from mmjax.data.columns import OWN, Columns, Lost
from mmjax.data.lacking import LOOKED, find_stand_ins
from mmjax.data.once import say_once, warn_once
from mmjax.data.onward import OnwardRecords, hold
from mmjax.data.order import PASS, Draws, Order
from mmjax.data.packing import Packing
from mmjax.data.passages import Windows
from mmjax.data.reader import Batching, Reader, Rows, Stream, spread
from mmjax.data.spans import windowed
from mmjax.data.strings import Strings
from mmjax.data.tags import TagsColumn, with_names
from mmjax.data.texts import Text
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Records
from mmjax.data.unread import reading

if TYPE_CHECKING:
    from mmjax.data.pipeline import Data

log = logging.getLogger(__name__)


class Dataset:
    """Batches of one split, as numpy arrays.

    Attributes:
      path: `data.NAME`, its place in the experiment; "" outside of one.
      size: number of records, of passages in windows that of all windows.
      windows: of passages, what each window is of; None for other data.
      classes: names in label order, () if there are none.
      batch_size: rows of the global batch.
      fingerprint: hash of exactly which examples it holds.
      tokenizers: name -> what encodes texts; "" is that of texts which name no other.
      lost: what texts, sounds and videos lost among the batches taken so far: cut, and unknown tokens.
      fill: how well rows of several texts were filled so far.
      together: the key whose equal values are in one training batch, see `Grouped`; "" for none.
      bad: path -> reason of the unreadable records met so far. Counted when a batch is taken, also one that a worker made;
        each process of a distributed run counts its own rows.
    """

    def __init__(
        self,
        data: Data,
        records: Records,
        tokenizers: Mapping[str, Tokenizer],
        seed: int,
        name: str = "",
        spare: bool = False,
    ) -> None:
        self.path = f"data.{name}" if name else ""
        for transform in data.transforms:
            if hasattr(transform, "check_tokenizer") and "" in tokenizers:
                transform.check_tokenizer(tokenizers[""])
        records = windowed(records, data.columns, tokenizers, data.max_length, bool(data.transforms))
        self.windows = records if isinstance(records, Windows) else None
        self.size = len(records)
        self.batch_size = data.batch_size
        self.fingerprint = records.fingerprint()
        self.tokenizers = dict(tokenizers)
        self.lost, self.fill = Lost(), Fill()
        self.bad: dict[str, str] = {}
        self._data = data
        texts = dict.fromkeys(("text", *(key for key, spec in data.columns.items() if isinstance(spec, Text))))
        whole = {key: spec.of for key, spec in data.columns.items() if isinstance(spec, Strings)}
        drawn, copies = [key for key in texts if key not in whole], {key: of for key, of in whole.items() if of}
        self.together = self._lists(records, data)
        order = Order.of(records, seed, data.shuffle, name, data.order, data.block_window)
        unread = reading(data.columns)
        lacking = find_stand_ins(data.optional, spread(records, LOOKED), records.__getitem__, unread)
        self._reader = Reader(records, data.transforms, order, data.cache_mb, drawn, copies, unread, lacking)
        first, bad = self._reader.record(0, 0, Draws(0, PASS), whole=True)
        named = with_names(data.columns, records)
        self._columns = Columns(first, tokenizers, data.max_length, named, tuple(records.classes), spare)
        self._classes = tuple(records.classes)
        self._record, self._first = first, self._columns([first])[0]
        self._packing = None if data.packing is None else self._packed(data)
        self._count_bad(bad)
        if isinstance(records, OnwardRecords):
            hold(records, data, self.path, self._packing)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Key -> the names of its classes in the order of their labels, for each column that has them."""
        return self._columns.names

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of `label`, in the order of their labels; () where there are none."""
        return self._columns.names.get("label", self._classes)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What encodes texts that name no other; None where there is none."""
        return self.tokenizers.get("")

    @property
    def textless(self) -> bool:
        """Whether its records have a `text` that is left out, since nobody reads it."""
        return self._columns.textless

    @property
    def truncated(self) -> int:
        """Truncated texts among the batches taken so far."""
        return self.lost.truncated

    @property
    def onward(self) -> OnwardRecords | None:
        """Its records, where these can only be read onward."""
        records = self._reader.records
        return records if isinstance(records, OnwardRecords) else None

    @property
    def some(self) -> str:
        """Which records are looked at where not all are, in words."""
        return "evenly spaced" if self.onward is None else "first"

    @property
    def packed(self) -> bool:
        """Whether rows of its training batches hold several texts."""
        return self._packing is not None and self._packing.several

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that the texts of a training batch may have, increasing, where these are in buckets; () for one shape."""
        return () if self._packing is None else self._packing.lengths

    @property
    def bucketed(self) -> str:
        """The key of the text that is in buckets; "" for none."""
        return "" if self._packing is None or not self._packing.lengths else self._packing.key

    @property
    def window_examples(self) -> int:
        """Texts of a window of packed rows, said or drawn; 0 where rows hold one text each."""
        return self._packing.spec.examples if isinstance(self._packing, Packing) else 0

    def texts(self) -> dict[str, tuple[Tokenizer, int]]:
        """Key of a text -> its tokenizer and length."""
        return self._columns.texts

    def match(self, key: str, names: tuple[str, ...]) -> None:
        """Give the labels of a column as places among `names`, which hold all of its own. Before any batch is read."""
        column = self._columns.of(key)
        assert isinstance(column, ClassColumn | ClassesColumn | TagsColumn)
        column.match(names)
        if not isinstance(column, ClassColumn):  # the shape may have changed
            self._first = self._columns([self._record])[0]

    def unit(self, key: str) -> tuple[float, float]:
        """(mean, deviation) that a column of numbers takes off and divides by; (0, 1) of another."""
        column = self._columns.of(key)
        return (column.mean, column.deviation) if isinstance(column, NumberColumn) else (0.0, 1.0)

    def can_match(self, key: str) -> bool:
        """Whether the labels of a key are classes, or tags, which `match` can number anew."""
        return isinstance(self._columns.of(key), ClassColumn | ClassesColumn | TagsColumn)

    def limit(self, key: str, classes: int) -> None:
        """Refuse labels of `classes` and more, where no names say how many there are. Before any batch is read.

        Raises:
          UserError: the key holds numbers that are no labels.
        """
        column = self._columns.of(key)
        if isinstance(column, NumberColumn):
            raise UserError(f"{self.path}: {key!r} is a number, and a label is a class: give it the column Class()")
        if isinstance(column, ClassColumn | ArrayColumn) and column.limit is None:
            column.limit = classes

    def shares(self, key: str) -> None:
        """Refuse numbers above 1 of an array that says which classes an example has. Before any batch is read."""
        column = self._columns.of(key)
        if isinstance(column, ArrayColumn):
            column.shares = True

    def try_records(self, most: int) -> Iterator[Batch]:
        """Batches of one of `most` evenly spaced records, uncounted. Raises `UserError` for one that cannot be."""
        for index in spread(self._reader.records, most):
            record, _ = self._reader.record(index, index, Draws(0, PASS))
            yield self._columns([record])[0]

    def unreadable(self, most: int) -> dict[str, str]:
        """Path -> reason of the files that cannot be read among `most` evenly spaced records, or all where there are fewer."""
        return self._reader.unreadable(most)

    def train_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each key of the global batch of `batches`, taken from the first record.

        Args:
          length: which of the `lengths`; 0 for the last of them.
        """
        if self._packing is None:
            return self.spec()
        return {**self._packing.shapes(self._first, length), "index": ((self.batch_size,), np.dtype(np.int32))}

    def spec(self, batch_size: int | None = None) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The same of `epoch`, whose rows are records."""
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
        return self._read(self._stream(self.batch_size, rows, once=False), start_step, self._data.workers)

    def epoch(self, rows: Sequence[int] | None = None, batch_size: int | None = None) -> Batches:
        """Each record once, in order, with random numbers that depend on the record alone; read in threads of this process.

        The last batch is filled up by repeating the last record. `valid` is False there, and for a record that stands in for
        an unreadable one. Raises `UserError` as `batches` does.
        """
        size = self.batch_size if batch_size is None else batch_size
        return self._read(self._stream(size, rows, once=True), 0, 0)

    def _read(self, stream: Stream, start: int, workers: int) -> Batches:
        return Batches(stream, start, self._data.threads, self._data.prefetch, workers, self._take)

    def _stream(self, batch_size: int, rows: Sequence[int] | None, once: bool) -> Stream:
        made = range(batch_size) if rows is None else rows
        assert made and min(made) >= 0 and max(made) < batch_size, f"rows {made} of a batch of {batch_size}"
        return Stream(self._reader, self._columns, batch_size, tuple(made), once, None if once else self._packing)

    @staticmethod
    def _lists(records: Any, data: Data) -> str:
        """The key by which records are kept together. Raises UserError where batches would part them."""
        if not hasattr(records, "lists"):
            return ""
        rows = records.lists().rows
        if data.batch_size % rows:
            near = max(1, round(data.batch_size / rows)) * rows
            raise UserError(f"batch_size={data.batch_size} is no multiple of source.rows={rows}, a query's: use {near}")
        if data.packing is not None:
            raise UserError(f"packing: each of the source's queries has {rows} rows of one batch, a record each; leave it away")
        return str(records.key)

    def _packed(self, data: Data) -> Batching:
        """What puts texts together by their lengths."""
        with within("packing"):
            if data.optional:
                raise UserError(
                    f"rows of a text that may be lacking are not packed; leave it away, or optional={data.optional}"
                )
            packing: Batching = data.packing.build(self._reader, self._columns, data.batch_size)
        held = packing.shapes(self._first)
        if rest := [name for name in self._first if name not in (*held, *OWN, "group")]:
            say_once(log.name, logging.INFO, f"{self.path or 'data'}: rows of several texts hold no {', '.join(rest)}")
        return packing

    def _take(self, rows: Rows | UserError) -> Batch:
        with within(self.path):
            if isinstance(rows, UserError):
                raise rows
            self.lost += rows.lost
            self.fill += rows.fill
            self._count_bad(rows.bad)
        return rows.batch

    def _count_bad(self, bad: dict[str, str]) -> None:
        for path, reason in bad.items():
            if path not in self.bad:
                self.bad[path] = reason
                whose = f"{self.path}: " if self.path else ""
                warn_once(log, "%scannot read %s (%s); another record takes its place", whose, path, reason)
        limit = self._data.bad_record_limit
        if len(self.bad) > limit * self.size:
            path, reason = next(iter(self.bad.items()))
            many = f"{len(self.bad)} of {self.size} records cannot be read, more than bad_record_limit={limit} allows"
            raise UserError(f"{many}; the first: {path} ({reason})")
