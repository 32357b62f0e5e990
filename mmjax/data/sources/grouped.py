"""The records of a source with those of a query side by side, and in one batch."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, within
from mmjax.data.once import say_once
from mmjax.data.onward import indexed
from mmjax.data.sources.hide_labels import HideLabels
from mmjax.data.sources.subset import WHOLE, Subset
from mmjax.data.splits import fingerprint
from mmjax.data.turns import Lists
from mmjax.data.types import BadRecordError, Record, Records

MOST = 2**31  # what a number of a query is below
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Records of one query stay together: in training each query has `rows` rows of a batch, side by side, and none in another.

    `Ranking` compares the items of a query that are in one batch. Queries are shuffled, and the items of each; of one that has
    more than `rows` items so many are drawn, others in each epoch. Where there are fewer, rows are filled up with records whose
    query is -1, which count in no ranking (in other tasks on the same data they do); so are those that stand in for items that
    cannot be read. Items without a query, and those that are alone in theirs, teach nothing of an order: they are left out. How
    many are filled up, cut and left out is said. An evaluation reads each record once.

    Attributes:
      source: where the records come from.
      by: the key whose equal values make a query: a whole number, or a text ("red shoes"). Negative numbers, None and "" are
        none. A source that does not say its values without its images reads all of these once, at the start.
      rows: of a batch, for each query; the batch size is a multiple of it.
      key: what the number of the query is called in the batch. Whole numbers stay as they are, texts are numbered.
    """

    source: Any = setting({**WHOLE, "hide_labels": HideLabels, "subset": Subset}, everyday=True)
    by: str = setting(everyday=True, default="query")
    rows: int = setting(least=2, everyday=True, default=8)
    key: str = "query"

    def build(self) -> GroupedRecords:
        """The records of the source, each with `key`, int.

        Raises:
          UserError: no record with `by`, a value that is no whole number and no text, no query of two items; and what the
            source raises.
        """
        check_ranges(self, "Grouped.")
        with within("source"):
            records = indexed(self.source.build(), "Grouped")
        query_N = _numbered(self.by, _values(records, self.by))
        order_N = np.argsort(query_N, kind="stable")
        ends = np.flatnonzero(np.diff(query_N[order_N])) + 1
        lists = [own for own in np.split(order_N, ends) if len(own) > 1 and query_N[own[0]] >= 0]
        if not lists:
            raise UserError(f"Grouped.by={self.by!r}: none of the {len(records)} records shares it with another")
        self._tell(len(records), np.array([len(own) for own in lists]))
        return GroupedRecords(records, self.key, self.rows, query_N, tuple(lists))

    def _tell(self, size: int, items: np.ndarray) -> None:
        """Say what is filled up, cut and left out."""
        missing, more = np.maximum(self.rows - items, 0), np.maximum(items - self.rows, 0)
        parts = [
            f"{np.count_nonzero(missing)} have fewer ({missing.sum() / (self.rows * len(items)):.0%} of the rows are empty)"
        ]
        parts += [f"{np.count_nonzero(more)} have more (an epoch leaves {more.sum()} items out)"]
        alone = size - int(items.sum())
        parts = [part for part, some in zip(parts, (missing.any(), more.any()), strict=True) if some]
        parts += [f"{alone} records without another of their query are left out"] * bool(alone)
        said = "; " + ", ".join(parts) if parts else ""
        line = f"Grouped: {len(items)} queries by {self.by!r} of {self.rows} rows each{said}"
        say_once(log.name, logging.INFO, line)


@dataclasses.dataclass(frozen=True, eq=False)
class GroupedRecords:
    """See `Grouped`. From index N on records are those from 0 again, with a query of -1.

    Attributes:
      records: those of the source, N.
      key: the key of the query's number.
      rows: of a batch, for each query.
      query: int64 [N], the number of each record's query, -1 for none.
      members: the places of the items of each query.
    """

    records: Records
    key: str
    rows: int
    query: np.ndarray
    members: tuple[np.ndarray, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.records.classes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Record:
        own = index % len(self)
        return {**self.records[own], self.key: int(self.query[own]) if index == own else -1}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("records", "blocks", "shares"):
            raise AttributeError(name)
        return getattr(self.records, name)

    def lists(self) -> Lists:
        """See `types.Records`."""
        return Lists(self.members, self.rows, len(self))

    def texts(self) -> Iterator[str]:
        return self.records.texts()

    def fingerprint(self) -> str:
        return fingerprint([self.records.fingerprint(), self.key, str(self.rows), self.query.tobytes()])


def _values(records: Records, key: str) -> Sequence[Any]:
    """What each record has under a key; None for one that cannot be read."""
    if hasattr(records, "values_of"):
        with within("Grouped.by"):
            known: Sequence[Any] = records.values_of(key)
        return known
    found: list[Any] = []
    for index in range(len(records)):
        try:
            record = records[index]
        except BadRecordError:
            found.append(None)
            continue
        if key not in record:
            raise UserError(f"Grouped.by={key!r}: record {index} has no {key!r}; it has {', '.join(record)}")
        found.append(record[key])
    return found


def _numbered(key: str, values: Sequence[Any]) -> np.ndarray:
    """int64 [N]: whole numbers as they are, texts in the order in which they are met; -1 for none."""
    numbers: dict[str, int] = {}
    found, texts = np.full(len(values), -1, np.int64), 0
    for place, value in enumerate(values):
        if value is None or value == "" or (isinstance(value, float | np.floating) and np.isnan(value)):
            continue
        if isinstance(value, str):
            texts += 1
            found[place] = numbers.setdefault(value, len(numbers))
        elif isinstance(value, int | np.integer) and not isinstance(value, bool) and value < MOST:
            found[place] = max(-1, value)
        else:
            raise UserError(f"Grouped.by={key!r}: {value!r} of record {place} is no whole number below 2^31, and no text")
    if 0 < texts < np.count_nonzero(found >= 0):
        raise UserError(f"Grouped.by={key!r}: some records have a text, some a number; queries are all the one or the other")
    return found
