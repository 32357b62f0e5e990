"""The records of a source with its classes in balance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, within
from mmjax.data.onward import indexed
from mmjax.data.sources.subset import WHOLE, Subset, described
from mmjax.data.splits import fingerprint
from mmjax.data.types import Record, Records, Share


@dataclasses.dataclass(frozen=True)
class Balanced:
    """Each class comes as often as any other in training, whatever its size; an evaluation reads each record once.

    The classes take turns, each in an order of its own, epoch after epoch. Records without a class are left out of training,
    and are read by an evaluation.

    Attributes:
      source: where the records come from, any source whose records have classes.
      power: a class of n records weighs n ** power: 0 for all alike, 1 for as they are, 0.5 for between.
    """

    source: Any = setting({**WHOLE, "subset": Subset}, everyday=True)
    power: float = setting(least=0, most=1, default=0.0)

    def build(self) -> BalancedRecords:
        """The records of the source.

        Raises:
          UserError: no classes, none of them with a record; and what the source raises.
        """
        check_ranges(self, "Balanced.")
        with within("source"):
            records = indexed(self.source.build(), "Balanced")
        known: Any = getattr(records, "labels", None)
        if known is None or len(known) != len(records):
            told = (described(records, index) for index in range(len(records)))
            known = [-1 if one is None else one.label for one in told]
        labels = np.asarray(known, np.int64)
        classes = np.unique(labels[labels >= 0])
        if not classes.size:
            raise UserError(f"Balanced.source={type(self.source).__name__}: its records have no classes to balance")
        names = [records.classes[label] if label < len(records.classes) else str(label) for label in classes.tolist()]
        places = [np.flatnonzero(labels == label) for label in classes]
        # A thousandth is near enough: turns are counted in whole numbers, and roots have none in common.
        weights = [round(float(len(own) ** self.power), 3) for own in places]
        return BalancedRecords(records, tuple(map(Share, names, weights, places)))


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedRecords:
    """See `Balanced`.

    Attributes:
      records: those of the source.
      classed: the places of the records of each class.
    """

    records: Records
    classed: tuple[Share, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.records.classes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Record:
        return self.records[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("records", "blocks"):
            raise AttributeError(name)
        return getattr(self.records, name)

    def shares(self) -> tuple[Share, ...]:
        return self.classed

    def texts(self) -> Iterator[str]:
        return self.records.texts()

    def fingerprint(self) -> str:
        return fingerprint([self.records.fingerprint(), *(f"{share.name} {share.weight!r}" for share in self.classed)])
