"""Modalities that an example may lack: `Data.optional` names their keys.

A transform never meets a record without them: what a record lacks is filled in from another one that has it, and taken out
again after the last transform. The batch holds zeros there, and `KEY_valid` [B] bool says which rows have it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.types import BadRecordError, Record

LACKS = "lacks"  # the key of a record that says what it lacks
VALID = "valid"  # the part of a modality that says which rows have it
LOOKED = 256  # records that are looked at for one that has a key


@dataclasses.dataclass(frozen=True)
class Lacks:
    """What a record says of what it lacks.

    Attributes:
      optional: the keys that it may lack.
      keys: those that it lacks.
      text: its text, where that was left out of it: rows of one text are each other's positives all the same.
    """

    optional: tuple[str, ...]
    keys: frozenset[str]
    text: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Lacking:
    """What is done about the keys that a record may lack.

    Attributes:
      stand_ins: key -> the value, of a record that has it, by which one that lacks it goes through the transforms.
      optional: all keys that a record may lack; those that a transform writes have no stand-in.
    """

    stand_ins: Mapping[str, Any]
    optional: tuple[str, ...] = ()

    def filled(self, record: Record) -> Record:
        """A record as its source gives it, with something under each key. Raises `UserError` for a key that is taken."""
        if not self.optional:
            return record
        for key in (LACKS, *(f"{key}_{VALID}" for key in self.optional)):
            if key in record:
                raise UserError(f"source: a record has {key!r}, which data.optional gives; call it otherwise")
        gone = frozenset(key for key in self.stand_ins if is_nothing(record.get(key)))
        own = {key: value for key, value in record.items() if key not in gone}
        kept = {key: self.stand_ins[key] for key in gone}
        return {**own, **kept, LACKS: Lacks(self.optional, gone)}

    @staticmethod
    def stripped(record: Record) -> Record:
        """A record after its last transform, without what only stood in."""
        gone = lacks(record)
        return {key: value for key, value in record.items() if key not in gone} if gone else record


def find_stand_ins(
    optional: Sequence[str], indices: Sequence[int], read: Callable[[int], Record], unread: Sequence[Any] = ()
) -> Lacking:
    """For each key the value of the first record that has it; a key that none has is one that a transform writes, or nobody.

    Args:
      indices: of the records to look at.
      read: gives a record as its source does.
      unread: what reads sounds and videos (`unread.Read`): one that cannot be read stands in for none.

    Raises:
      UserError: a key given twice.
    """
    if isinstance(optional, str) or len(set(optional)) < len(optional):
        raise UserError(f"optional={optional!r}: give a tuple of keys, each once")
    found: dict[str, Any] = {}
    for index in indices if optional else ():
        if len(found) == len(optional):
            break
        try:
            record = read(index)
        except BadRecordError:
            continue
        for key in [key for key in optional if key not in found and not is_nothing(record.get(key))]:
            with contextlib.suppress(BadRecordError):
                reader = next((one for one in unread if one.key == key), None)
                found[key] = record[key] if reader is None else reader.whole(reader({key: record[key]}, None, "stand-in"))
    return Lacking({key: found[key] for key in optional if key in found}, tuple(optional))


def is_nothing(value: Any) -> bool:
    """Whether a value is none: None, an empty text, path or list, a file of neither bytes nor a path."""
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
        return all(is_nothing(own) for own in value.values())
    return value is None or (isinstance(value, str | bytes | list | tuple) and not len(value))


def lacks(record: Record) -> frozenset[str]:
    """The keys that a record lacks."""
    own = record.get(LACKS)
    return own.keys if isinstance(own, Lacks) else frozenset()


def without(record: Record, keys: frozenset[str]) -> Record:
    """The record, lacking these too. Raises `UserError` for one that it may not lack."""
    own = record.get(LACKS)
    if keys and (not isinstance(own, Lacks) or not keys <= {*own.optional}):
        known = own.optional if isinstance(own, Lacks) else ()
        raise UserError(f"{min(keys - {*known})!r} is left out of some records: name it in data.optional, which has {known}")
    if not isinstance(own, Lacks):
        return record
    text = record.get("text") if "text" in keys - own.keys else own.text
    return {**record, LACKS: Lacks(own.optional, own.keys | keys, text)}


def spread_out(rows: Mapping[str, np.ndarray], shapes: Mapping[str, np.ndarray], has_B: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of the rows that have a key -> of all rows, zeros where it is lacking.

    Args:
      rows: of those that have it, [n, ...].
      shapes: the same keys, arrays of any number of rows.
      has_B: which rows these are, bool [B].
    """
    if has_B.all() and rows:
        return dict(rows)
    found = {}
    for key, like in shapes.items():
        found[key] = np.zeros((len(has_B), *like.shape[1:]), like.dtype)
        if rows:
            found[key][has_B] = rows[key]
    return found
