"""From a source to batches: `Data` says what, `Dataset` gives it.

The global batch is a pure function of (seed, step): row r of step s is place p = s * batch_size + r of the stream, the record
there is that of `Order` (of an epoch a permutation, `permutation(seed, p // size)(p % size)`), and its random numbers are a
function of (seed, p). A process makes only its own rows, and any number of processes, threads or workers make the same batches.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmjax.core.config import setting
from mmjax.core.errors import UserError, within
from mmjax.data.columns import COLUMNS
from mmjax.data.corpus import corpus
from mmjax.data.dataset import Dataset
from mmjax.data.fields import far, with_optional
from mmjax.data.once import warn_once
from mmjax.data.packing import PACKINGS
from mmjax.data.sources import SOURCES
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.transforms import TRANSFORMS
from mmjax.data.transforms.sided import check_before
from mmjax.data.types import Records

log = logging.getLogger(__name__)
FAR = "%s: each record may fetch a file of its own; order='blocks' reads one file after the other"


@dataclasses.dataclass(frozen=True)
class Data:
    """A source, what is done to its records, and how they are batched.

    Attributes:
      source: where the records come from.
      transforms: applied to each record in this order.
      columns: key of a record -> what becomes of it in a batch: a text by a named tokenizer, a sound, a class, several
        classes, a number, an array. Keys that are not named here become what they look like (see `data.columns`).
      batch_size: rows of the global batch.
      max_length: tokens of a text, special tokens included. Longer ones are truncated and counted.
      shuffle: draw a permutation each epoch; False takes the records in their order.
      order: of what is shuffled: `records`, each epoch any permutation of them, which is computed and takes no memory;
        `blocks`, one of the source's blocks (the shards of a tar, the row groups of a table) and then of the records within
        `block_window` of them, where storage is far away; `stored`, that of runs which were begun before there was a choice,
        eight bytes a record.
      block_window: blocks that are mixed at a time.
      workers: processes that read; 0 reads in threads of this one.
      threads: threads that read, in each worker where there are workers; 0 reads when a batch is asked for.
      prefetch: batches kept ready, by each worker where there are workers.
      packing: what is done about the padding of training batches: `Packed` puts several texts into each row, `Buckets` cuts
        batches of texts of like lengths; None for one text a row, and all of `max_length`.
      cache_mb: megabytes for records that are the same each time, if the whole split fits (in each worker): read once, then
        kept as the leading transforms without randomness leave them; 0 reads each record anew.
      bad_record_limit: share of unreadable records above which the run stops; each one below it is replaced by another.
      optional: keys of the modalities that a record may lack: it has no such key there, or None, "" or an empty list. The
        batch holds zeros then, and `KEY_valid` [B] bool says which rows have it; encoders, fusions and losses go by that.
    """

    source: Any = setting(SOURCES, everyday=True)
    transforms: tuple[Any, ...] = setting(TRANSFORMS, default=())
    columns: Mapping[str, Any] = setting(COLUMNS, default_factory=dict)
    batch_size: int = setting(everyday=True, default=128)
    max_length: int = setting(everyday=True, default=32)
    shuffle: bool = True
    order: str = "records"
    block_window: int = setting(least=1, default=16)
    workers: int = 0
    threads: int = 2
    prefetch: int = 4
    packing: Any = setting(PACKINGS, default=None)
    cache_mb: int = 256
    bad_record_limit: float = 0.01
    optional: tuple[str, ...] = ()

    def open(self, name: str = "") -> Records:
        """The records of the source; `name` as in `build`, which raises the same."""
        with within(f"data.{name}" if name else ""):
            records: Records = with_optional(self.source, self.optional).build()
            if not len(records):
                raise UserError(f"source: {self.source!r} has no records")
            return records

    def build(
        self,
        tokenizer: Tokenizer | None,
        seed: int,
        name: str = "",
        tokenizers: Mapping[str, Tokenizer] | None = None,
        records: Records | None = None,
        spare: bool = False,
    ) -> Dataset:
        """Open the source and read its first record.

        Args:
          tokenizer: of texts that name no other; None where there is none.
          tokenizers: those that columns name.
          name: that of the data in an experiment: it begins every complaint, now and while reading.
          records: those of the source, where it is open already.
          spare: nobody reads texts that no column names: without a tokenizer they are left out.

        Raises:
          UserError: a number out of range, whatever the source raises, an empty source, text and no tokenizer, or transforms
            that do not fit the records.
        """
        with within(f"data.{name}" if name else ""):
            self._check(seed)
            records = self.open() if records is None else records
            if self.shuffle and self.order != "blocks":
                for path in far(self.source):
                    warn_once(log, FAR, path)
            named = {**(tokenizers or {}), **({} if tokenizer is None else {"": tokenizer})}
            return Dataset(self, records, named, seed, name, spare)

    def _check(self, seed: int) -> None:
        least = {"batch_size": 1, "max_length": 1, "block_window": 1, "workers": 0, "threads": 0, "prefetch": 1, "cache_mb": 0}
        for field, low in least.items():
            if not getattr(self, field) >= low:
                raise UserError(f"{field}={getattr(self, field)}: give a whole number from {low} up")
        if not 0 <= self.bad_record_limit <= 1:
            raise UserError(f"bad_record_limit={self.bad_record_limit} is a share: give a number from 0 to 1")
        if seed < 0:
            raise UserError(f"seed={seed}: give a whole number from 0 up")
        check_before(self.transforms)

    def texts(self, name: str = "", tokenizer: str = "", opened: Callable[[], Records] | None = None) -> Iterator[str]:
        """All that a tokenizer should be trained on: the source's own texts, then those that transforms can write.

        Args:
          name: begins every complaint, as in `build`.
          tokenizer: the name of one that columns name: then the texts of those columns.
          opened: gives the records of the source, where somebody keeps them.
        """
        with within(f"data.{name}" if name else ""):
            yield from corpus(
                self.columns, self.transforms, tokenizer, opened or with_optional(self.source, self.optional).build
            )
