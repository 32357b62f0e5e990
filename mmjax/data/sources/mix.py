"""Several sources as one: each comes as often as its weight says."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError, nearest, within
from mmjax.data.once import warn_once
from mmjax.data.onward import indexed
from mmjax.data.sources.coco import Coco
from mmjax.data.sources.conll import Conll
from mmjax.data.sources.hide_labels import HideLabels
from mmjax.data.sources.subset import WHOLE, Subset, image_file
from mmjax.data.splits import fingerprint
from mmjax.data.texts import text_group
from mmjax.data.turns import PERIOD
from mmjax.data.types import BadRecordError, Record, Records, Share

PARTS = {**WHOLE, "coco": Coco, "conll": Conll, "hide_labels": HideLabels, "subset": Subset}
OWN = {"group", "image_id", "name"}  # of one source's records: numbers that mean nothing among another's, a name of a class

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Mix:
    """Records of several sources in turn, for training; in an evaluation each record of each source once, one after another.

    Over any stretch of the stream the records of a source are as many as its weight says, to within one a source, whatever the
    sizes; each source is read in its own order, epoch after epoch, so a small one with a large weight comes more often (how
    often is said). Adding a source changes the order of no other.

    All sources have records of the same keys. Classes are matched by name. Groups are those of one source, so that equal
    numbers of two sources are no positives; in sources that give none, examples of equal texts are.

    Attributes:
      sources: by names of your own.
      weights: how often each comes; () for each record as often as any other.
      optional: keys that a source, or some of its records, may lack; `Data.optional` comes to them.

    Usage:

        Mix({"pairs": WebDataset("pairs-*.tar"), "own": Folder("photos")}, {"pairs": 3.0, "own": 1.0})
    """

    sources: Mapping[str, Any] = setting(PARTS)
    weights: Mapping[str, float] = setting(above=0, default_factory=dict)
    optional: tuple[str, ...] = ()

    def build(self) -> MixRecords:
        """Open all of them.

        Raises:
          UserError: no source, a weight of 0 or below or of no source, a source without one, weights further apart than a
            million, sources whose first records have other keys; and what the sources raise.
        """
        if not self.sources:
            raise UserError("Mix.sources is empty: give one or more by name")
        self._check_weights()
        parts = {}
        for name, source in self.sources.items():
            with within(f"Mix.sources.{name}"):
                parts[name] = indexed(source.build(), "Mix")
                if not len(parts[name]):
                    raise UserError(f"{source!r} has no records")
        firsts = {name: _first(name, records) for name, records in parts.items()}
        keys = _common(firsts, frozenset(self.optional))
        named = [name for name, records in parts.items() if records.classes]
        if "label" in keys and 0 < len(named) < len(parts):
            bare = next(name for name in parts if name not in named)
            raise UserError(f"Mix.sources.{bare} has no names of its classes and {named[0]} has: they are matched by name")
        self._say_how_often({name: len(records) for name, records in parts.items()})
        weights = tuple(float(self.weights[name]) for name in parts) if self.weights else ()
        own = tuple(frozenset(first.keys() & OWN) for first in firsts.values())
        return MixRecords(tuple(parts), tuple(parts.values()), weights, keys, own, frozenset(self.optional))

    def _check_weights(self) -> None:
        for name, weight in self.weights.items():
            if name not in self.sources:
                raise UserError(f"Mix.weights.{name}: no source has that name{nearest(name, self.sources)}")
            if not 0 < weight < float("inf"):
                raise UserError(f"Mix.weights.{name}={weight}: give a number above 0, or leave the source out")
        for name in self.sources:
            if self.weights and name not in self.weights:
                raise UserError(f"Mix.weights has none of {name!r}: give one to each source, or to none")
        total = sum(self.weights.values())
        for name, weight in self.weights.items():
            if weight / total < 2 / PERIOD:
                raise UserError(f"Mix.weights.{name}={weight} is less than a millionth of all, {total:g}: leave the source out")

    def _say_how_often(self, sizes: Mapping[str, int]) -> None:
        """Say in the log which sources are read more often than the one that is read least."""
        often = {name: self.weights[name] / size for name, size in sizes.items()} if self.weights else {}
        least = min(often, key=often.__getitem__, default="")
        more = {name: often[name] / often[least] for name in often if often[name] > 1.005 * often[least]}
        if more:
            said = ", ".join(f"{name} ({sizes[name]:,} records) {times:.3g} times" for name, times in more.items())
            warn_once(log, "Mix: while %s (%s records) is read once, %s", least, f"{sizes[least]:,}", said)


@dataclasses.dataclass(frozen=True, eq=False)
class MixRecords:
    """The records of all sources, one source after another.

    Attributes:
      names: of the sources.
      parts: their records.
      weights: of the sources; () where the records are drawn alike.
      keys: what every record has.
      own: which of the keys `OWN` the records of each source have.
      classes: names of the classes of all sources, in the order in which they are first met.
    """

    names: tuple[str, ...]
    parts: tuple[Records, ...]
    weights: tuple[float, ...]
    keys: frozenset[str]
    own: tuple[frozenset[str], ...]
    optional: frozenset[str] = frozenset()

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(itertools.chain.from_iterable(records.classes for records in self.parts)))

    @functools.cached_property
    def _labels(self) -> list[list[int]]:
        """For each source the new label of each of its own."""
        place = {name: label for label, name in enumerate(self.classes)}
        return [[place[name] for name in records.classes] for records in self.parts]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(records) for records in self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int, /) -> Record:
        part, place = self._place(index)
        record = self.parts[part][place]
        lacking = self.keys - record.keys() - self.optional
        if lacking:
            raise BadRecordError(
                f"{self.names[part]}[{place}]", f"it has no {min(lacking)!r}, as its source's first record has"
            )
        found = {key: value for key, value in record.items() if key in self.keys or key == "name"}
        if "label" in found and self.classes:
            label, own = found["label"], self._labels[part]
            found["label"] = own[label] if 0 <= label < len(own) else min(label, -1)
        return found | self._positives(index, part, place, record)

    def _place(self, index: int) -> tuple[int, int]:
        """The source of a record, and its number there."""
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        part, place = self._place(index)
        return image_file(self.parts[part], place)

    def _positives(self, index: int, part: int, place: int, record: Record) -> Record:
        """What a record is a positive of: of classified data the class, which the batch takes from the label; else what its
        source says, apart from what others say; where only some sources say it, of the rest the same texts."""
        found: Record = {}
        if any("group" in own for own in self.own) and not ("label" in self.keys and "text" not in self.keys):
            if "group" in self.own[part]:
                found["group"] = np.array([part + 1, int(record["group"]), 0], np.int32)
            else:
                texts = record.get("text", f"\0{index}")  # one without a text is a group of its own
                found["group"] = np.array([0, *text_group(texts if isinstance(texts, str) else "\n".join(texts))], np.int32)
        if any("image_id" in own for own in self.own):
            found["image_id"] = int(record["image_id"] if "image_id" in self.own[part] else place) * len(self.parts) + part
        return found

    def shares(self) -> tuple[Share, ...]:
        """One a source; () where the records are drawn alike."""
        starts = (0, *self._ends)
        ranges = (range(start, end) for start, end in itertools.pairwise(starts))
        whole = zip(self.names, self.weights, ranges, self.parts, strict=True) if self.weights else ()
        return tuple(Share(*own) for own in whole)

    def blocks(self) -> np.ndarray:
        """Those of all sources. Raises `UserError` where a source has none."""
        for name, records in zip(self.names, self.parts, strict=True):
            if not hasattr(records, "blocks"):
                raise UserError(f"order='blocks': Mix.sources.{name} has no blocks, and reads each record alike; use records")
        return np.concatenate([records.blocks() for records in self.parts])  # type: ignore[attr-defined]

    def texts(self) -> Iterator[str]:
        for records in self.parts:
            yield from records.texts()

    def fingerprint(self) -> str:
        of = (records.fingerprint() for records in self.parts)
        return fingerprint([*self.names, *of, *map(repr, self.weights), *self.classes, "", *sorted(self.keys)])


def _first(name: str, records: Records) -> Record:
    """The first record that can be read."""
    trouble: BadRecordError | None = None
    for index in range(min(len(records), 16)):
        try:
            return records[index]
        except BadRecordError as error:
            trouble = trouble or error
    raise UserError(f"Mix.sources.{name}: none of its first records can be read; the first: {trouble}")


def _common(firsts: Mapping[str, Record], optional: frozenset[str]) -> frozenset[str]:
    """The keys of all sources' records but `OWN`. Raises `UserError` where one has a key that another has not, unless it is
    `optional`."""
    every = set.intersection(*(set(record) for record in firsts.values())) - OWN
    every |= optional & {key for record in firsts.values() for key in record}
    for name, record in firsts.items():
        for key in record.keys() - OWN - every:
            has = next(other for other, own in firsts.items() if key not in own)
            raise UserError(f"Mix.sources.{name} has {key!r} and {has} has not: leave it out there, or give it here")
    return frozenset(every)
