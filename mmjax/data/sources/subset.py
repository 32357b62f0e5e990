"""Some classes of another source, and a few records of each: few-shot learning, and classes that are held out."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, within
from mmjax.data.once import warn_once
from mmjax.data.onward import indexed
from mmjax.data.sources.array_record import ArrayRecord
from mmjax.data.sources.arrow import Arrow
from mmjax.data.sources.digits import Digits
from mmjax.data.sources.folder import Folder
from mmjax.data.sources.manifest import Manifest
from mmjax.data.sources.moving import Moving
from mmjax.data.sources.parquet import Parquet
from mmjax.data.sources.scenes import Scenes
from mmjax.data.sources.stamps import Stamps
from mmjax.data.sources.tfds import TFDS
from mmjax.data.sources.web_dataset import WebDataset
from mmjax.data.spelling import nearest
from mmjax.data.splits import encoded, fingerprint
from mmjax.data.types import BadRecordError, Record, Records

WHOLE = {
    "array_record": ArrayRecord,
    "arrow": Arrow,
    "digits": Digits,
    "folder": Folder,
    "manifest": Manifest,
    "moving": Moving,
    "parquet": Parquet,
    "scenes": Scenes,
    "stamps": Stamps,
    "tfds": TFDS,
    "web_dataset": WebDataset,
}
NAMED = 8  # classes in a complaint

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Subset:
    """Chosen classes of a split of another source, all of their records or a few of each.

    Which records are chosen is a function of `seed` and of what each is (its path, its line, or its content where the source
    has no better name for it), never of its place: the choice is the same on every machine and in whatever order files lie, and
    a new file takes the place of one other at the most. That of k shots is part of that of 2k.

    Labels are numbered anew, in the order of the source's classes, and records without a label are left out. Chosen records
    come in the order of their hashes; without `shots` they keep the source's order.

    Attributes:
      source: where the records come from, any source whose records have classes.
      only: names of the classes to keep; () for all.
      but: names of classes to leave out.
      shots: k, how many records of each class; 0 for all.
      seed: another seed is another choice.
      fewer: take all there are of a class that has less than `shots`, and say so; else that is refused.
    """

    source: Any = setting(WHOLE)
    only: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    shots: int = setting(everyday=True, least=0, default=0)
    seed: int = setting(least=0, default=0)
    fewer: bool = False

    def build(self) -> SubsetRecords:
        """The source's records with the labels of the chosen classes.

        Raises:
          UserError: a source without classes, a name that is no class of it, no class left, one without a record or with less
            than `shots`; and whatever the source raises.
        """
        check_ranges(self, "Subset.")
        with within("source"):
            records = indexed(self.source.build(), "Subset")
        names = self._names(tuple(records.classes))
        known = [described(records, index) for index in range(len(records))]
        kept = [index for index, own in enumerate(known) if own is not None and 0 <= own.label < len(records.classes)]
        of_class: dict[str, list[int]] = {name: [] for name in names}
        for index in kept:
            if (name := records.classes[_of(known, index).label]) in of_class:
                of_class[name].append(index)
        self._check_counts({name: len(own) for name, own in of_class.items()})
        if self.shots:
            rank = {index: (self._hash(_of(known, index).identity), _of(known, index).identity) for index in kept}
            few = [sorted(own, key=rank.__getitem__)[: self.shots] for own in of_class.values()]
            chosen = sorted((index for own in few for index in own), key=rank.__getitem__)
        else:
            chosen = sorted(index for own in of_class.values() for index in own)
        places = {records.classes.index(name): label for label, name in enumerate(names)}
        own = tuple(dataclasses.replace(_of(known, index), label=places[_of(known, index).label]) for index in chosen)
        return SubsetRecords(records, tuple(chosen), own, names)

    def _names(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not classes:
            raise UserError(f"Subset.source={type(self.source).__name__}: its records have no classes to choose among")
        for field in ("only", "but"):
            for name in getattr(self, field):
                if name not in classes:
                    raise UserError(f"Subset.{field}: {name!r} is no class of the source{nearest(name, classes)}")
        names = tuple(name for name in classes if name not in self.but and (not self.only or name in self.only))
        if not names:
            raise UserError(f"Subset.only={self.only} and but={self.but} leave no class of the {len(classes)} there are")
        return names

    def _check_counts(self, counts: dict[str, int]) -> None:
        """Raises UserError for classes with nothing, or with less than is asked for where that is not allowed."""
        asked = self.shots or 1
        short = {name: count for name, count in counts.items() if count < asked}
        if not short:
            return
        said = ", ".join(f"{name!r} {count}" for name, count in list(short.items())[:NAMED])
        more = f" and {len(short) - NAMED} more" if len(short) > NAMED else ""
        if not self.shots:
            if self.only:
                raise UserError(f"Subset.only: the split has no record of {', '.join(map(repr, short))}")
            return  # as the source itself, which has said which classes this split has nothing of
        if not self.fewer or not any(counts.values()):
            raise UserError(
                f"Subset.shots={self.shots}: the split has less of {len(short)} class(es): {said}{more}; ask for less, leave "
                "them out (Subset.but), or take what there is (Subset.fewer=true)"
            )
        warn_once(log, "Subset.shots=%d: of %d class(es) there are less: %s%s", self.shots, len(short), said, more)

    def _hash(self, identity: str) -> bytes:
        return hashlib.sha256(f"shots {self.seed}\n".encode() + encoded(identity)).digest()


@dataclasses.dataclass(frozen=True)
class Described:
    """What is known of a record without its image.

    Attributes:
      identity: a text that no other record of the split has, and that it has on every machine.
      label: its class; below 0 for none.
      texts: its captions.
    """

    identity: str
    label: int
    texts: tuple[str, ...] = ()


def described(records: Records, index: int) -> Described | None:
    """What a source says of a record (its `described(index)`, see `types.Records`), else what the record itself says when it is
    read; None where it cannot be."""
    if hasattr(records, "described"):
        return Described(*records.described(index))
    try:
        record = records[index]
    except BadRecordError:
        return None
    text = record.get("text", ())
    label = record.get("label", -1)
    return Described(_content(record), int(label), (text,) if isinstance(text, str) else tuple(text))


def image_file(records: Records, index: int) -> bytes | None:
    """The file of a record's image as the source has it, where the source can say (see `types.Records`). Raises OSError."""
    found: bytes | None = records.encoded(index) if hasattr(records, "encoded") else None
    return found


def _content(record: Record) -> str:
    """A hash of all that a record holds but its label, whose number depends on other records."""
    parts: list[str | bytes] = []
    for key in sorted(record):
        if key not in ("label", "group"):
            value = record[key]
            array = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else None
            parts += [key, repr(value)] if array is None else [key, f"{array.dtype} {array.shape}", array.tobytes()]
    return fingerprint(parts)


def _of(known: Sequence[Described | None], index: int) -> Described:
    found = known[index]
    assert found is not None
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetRecords:
    """Some records of others, labelled anew.

    Attributes:
      records: those of the source.
      indices: the places of the chosen ones there.
      own: what each is, with its new label.
      classes: the names of the chosen classes, in the order of the new labels.
    """

    records: Records
    indices: tuple[int, ...]
    own: tuple[Described, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Record:
        return {**self.records[self.indices[index]], "label": self.own[index].label}

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        return image_file(self.records, self.indices[index])

    def described(self, index: int) -> tuple[str, int, tuple[str, ...]]:
        return dataclasses.astuple(self.own[index])

    def counts(self) -> dict[str, int]:
        """Class -> how many records it has here."""
        found = Counter(self.classes[own.label] for own in self.own)
        return {name: found[name] for name in self.classes}

    def texts(self) -> Iterator[str]:
        for own in self.own:
            yield from own.texts

    def fingerprint(self) -> str:
        parts = (part for own in self.own for part in (own.identity, str(own.label), *own.texts, ""))
        return fingerprint([*self.classes, "", *parts])
