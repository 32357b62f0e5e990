"""Another source of whose records only a share keeps its label."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.once import warn_once
from mmjax.data.onward import indexed
from mmjax.data.sources.subset import NAMED, WHOLE, described, image_file
from mmjax.data.splits import fingerprint
from mmjax.data.types import Record, Records

TELLING = ("group", "name")  # keys of a record that would say its class all the same

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class HideLabels:
    """The records of `source`, of which a share, drawn by `seed` whatever their class, keeps its label; the others have -1.

    Which do is the same in every run, and classes of which none does are named in the log. What else would tell
    a class, `group` and `name`, no record has.

    Attributes:
      source: any source of records with the whole number `label`.
      keep: the share that keeps it, rounded to whole records and at least one.
      seed: of the draw.
    """

    source: Any = setting(WHOLE, everyday=True)
    keep: float = setting(everyday=True, above=0, most=1, default=0.1)
    seed: int = setting(least=0, default=0)

    def build(self) -> HiddenRecords:
        """Raises `UserError` for a number out of range, or records without a label."""
        check_ranges(self, "HideLabels.")
        records = indexed(self.source.build(), "HideLabels")
        if len(records) and not isinstance(records[0].get("label"), int | np.integer):
            raise UserError(f"HideLabels.source={self.source!r}: its records have no whole number `label`")
        kept = max(1, round(self.keep * len(records)))
        order = np.random.default_rng(self.seed).permutation(len(records))
        labelled_N = np.zeros(len(records), bool)
        labelled_N[order[:kept]] = True
        self._tell_bare(records, np.flatnonzero(labelled_N))
        return HiddenRecords(records, labelled_N)

    def _tell_bare(self, records: Records, kept: np.ndarray) -> None:
        """Say in the log which classes no record is labelled with: nothing but a teacher can tell of them."""
        known = (described(records, int(index)) for index in kept)
        present = {own.label for own in known if own is not None}
        bare = [name for label, name in enumerate(records.classes) if label not in present]
        if bare:
            said = ", ".join(map(repr, bare[:NAMED])) + (f" and {len(bare) - NAMED} more" if len(bare) > NAMED else "")
            warn_once(log, "HideLabels.keep=%g: no record of %d class(es) keeps its label: %s", self.keep, len(bare), said)


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenRecords:
    """See `HideLabels`.

    Attributes:
      records: with all their labels.
      labelled: bool [N], whether a record keeps its own.
    """

    records: Records
    labelled: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        return self.records.classes

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Record:
        record = {key: value for key, value in self.records[index].items() if key not in TELLING}
        return record if self.labelled[index] else {**record, "label": -1}

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        return image_file(self.records, index)

    def texts(self) -> Iterator[str]:
        return self.records.texts()

    def fingerprint(self) -> str:
        return fingerprint([self.records.fingerprint(), self.labelled.tobytes()])
