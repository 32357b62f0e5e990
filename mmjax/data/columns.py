"""Records to the arrays of a batch: a column a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError, within
from mmjax.core.spatial import image_of, over
from mmjax.data import kinds, texts
from mmjax.data.arrays import Array, ArrayColumn, Number, Pixels
from mmjax.data.audio import Audio
from mmjax.data.classes import Class, Classes
from mmjax.data.kinds import Arrays, Column, Lost
from mmjax.data.lacking import LACKS, VALID, Lacks, lacks, spread_out
from mmjax.data.making import MAKERS
from mmjax.data.spans import Span
from mmjax.data.strings import Strings
from mmjax.data.tags import Tags
from mmjax.data.texts import Text
from mmjax.data.tokenizers import Tokenizer
from mmjax.data.types import Record
from mmjax.data.unread import refuse_unread
from mmjax.data.video import Video

COLUMNS = {
    "text": Text,
    "strings": Strings,
    "pixels": Pixels,
    "class": Class,
    "classes": Classes,
    "number": Number,
    "array": Array,
    "tags": Tags,
    "span": Span,
    "audio": Audio,
    "video": Video,
}
OWN = ("index", "valid")  # keys that a batch gets from the pipeline
GROUPS = 2**31  # the numbers that groups have are below it


class Columns:
    """Stacks records that look like the first one: the same keys, arrays of the same shape and dtype.

    A key that `specs` names becomes what its spec says. Of the others arrays are stacked, ints become int32, floats float32,
    `label` is a class, `text` and `text_pair` become `text`, `text_mask` and, if there are pairs, `text_segments`; other
    strings are left out. A record without `group` gets one from its text, or without text from its label.

    Attributes:
      names: key -> the names of its classes, in the order of their labels, for each column that has them.
      textless: whether `text` is left out because nobody reads it.
    """

    def __init__(
        self,
        first: Record,
        tokenizers: Mapping[str, Tokenizer],
        max_length: int,
        specs: Mapping[str, Any] | None = None,
        classes: tuple[str, ...] = (),
        spare: bool = False,
    ) -> None:
        """Take `first`, a record as the transforms leave it, as the model of all.

        Args:
          tokenizers: by name; "" is that of texts which name no other.
          classes: the names of `label`, as the source says them.
          spare: nobody reads `text`: where no spec names it and it has no tokenizer, it is left out.

        Raises:
          UserError: text without a tokenizer unless it is spare, a column that no record has, an image that is still uint8, or
            nothing that a batch could hold.
        """
        specs = specs or {}
        for key in OWN:
            if key in first:
                raise UserError(f"source: a record has {key!r}, which is the pipeline's own; call it otherwise")
        for key in specs:
            if key not in first:
                raise UserError(f"columns.{key}: no record has {key!r}; its keys are {', '.join(first) or 'none'}")
        self._first = {key: kinds.kind(value) for key, value in first.items()}
        self._columns: dict[str, Column] = {}
        about = kinds.About(tokenizers, max_length, classes)
        made = _made(specs)
        self.textless = spare and "text" in first and "text" not in {*specs, *made} and "" not in tokenizers
        made |= {"text"} if self.textless else set()
        for key, value in first.items():
            spec = specs.get(key) or (None if key in made else inferred(key, value, first))
            if spec is not None:
                with within(f"columns.{key}" if key in specs else ""):
                    self._columns[key] = spec.build(key, value, about, first)
        self._taken = {name for column in self._columns.values() for name in getattr(column, "taken", ())}
        self._named = frozenset(specs)
        # What a spec or its kind says is made so whatever the record holds, number by number.
        self._loose = self._named | {key for key, column in self._columns.items() if getattr(column, "dtype", "") == "float32"}
        if not self._columns:
            raise UserError(f"source: a record has nothing for a batch to hold; its keys are {', '.join(first) or 'none'}")
        self._optional = self._shapes(first)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        found = {key: getattr(column, "names", ()) for key, column in self._columns.items()}
        return {key: names for key, names in found.items() if names}

    @property
    def texts(self) -> dict[str, tuple[Tokenizer, int]]:
        """The keys that are text -> the tokenizer and the length of each."""
        return {key: own for column in self._columns.values() for key, own in getattr(column, "texts", {}).items()}

    @property
    def padding(self) -> dict[str, int]:
        """The keys that hold a value a token -> what they hold where there is none."""
        return {key: fill for column in self._columns.values() for key, fill in getattr(column, "padding", {}).items()}

    def beside(self, text: str) -> frozenset[str]:
        """The keys that hold a value for each token of a text, itself among them."""
        makers = (column for column in self._columns.values() if text in getattr(column, "texts", {}))
        return frozenset(key for column in makers for key in getattr(column, "padding", {}))

    def of(self, key: str) -> Column | None:
        """The column of a key; None where there is none."""
        return self._columns.get(key)

    def __call__(
        self,
        records: Sequence[Record],
        places: Sequence[int] | None = None,
        whole: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[dict[str, np.ndarray], Lost]:
        """The batch, and what was lost on the way to it. Raises `UserError` for a record unlike the first.

        Args:
          places: the number of each record in its source; None for the first ones.
          whole: key -> the records' arrays as one array that is the batch's own, where there is one.
        """
        for record in records:
            self._check(record)
        batch: dict[str, np.ndarray] = {}
        lost = Lost()
        for key, column in self._columns.items():
            with within(f"columns.{key}" if key in self._named else ""):
                if key in self._optional:
                    arrays, own = self._some(key, column, records)
                else:
                    values = None if whole is None else whole.get(key)
                    arrays, own = column([record[key] for record in records] if values is None else values, records)
            batch |= arrays
            lost += own
        if "group" not in batch and ("text" in self._columns or "label" in self._columns):
            batch["group"] = self._groups(records, batch, range(len(records)) if places is None else places)
        return batch, lost

    def _shapes(self, first: Record) -> dict[str, Arrays]:
        """Key that records may lack -> the arrays of one that has it. Raises `UserError` for one that is no modality."""
        own = first.get(LACKS)
        found = {}
        for key in own.optional if isinstance(own, Lacks) else ():
            if key not in first:
                known = ", ".join(name for name in first if name != LACKS)
                raise UserError(f"optional: none of the records that were looked at has {key!r}; their keys are {known}")
            if key not in self._columns:
                raise UserError(f"optional: {key!r} makes nothing of a batch; give it a column, or leave it out of optional")
            column = self._columns[key]
            found[key] = column([first[key]], [first])[0]
            pixels = isinstance(column, ArrayColumn) and found[key][key].ndim > 1 and found[key][key].dtype.kind == "f"
            over_it = image_of(key, (name for name in first if name != key))
            if not (getattr(column, "modality", False) or pixels) or over_it is not None:
                raise UserError(
                    f"optional: {key!r} is {'laid over ' + over_it if over_it else 'no modality'}; what may be lacking is a "
                    "text, an image, a sound, a video or an array of floats (a class that is none is -1, a number NaN)"
                )
            if key not in found[key]:
                made = ", ".join(found[key])
                raise UserError(f"optional: the column of {key!r} makes {made}; what may be lacking is a modality")
        return found

    def _some(self, key: str, column: Column, records: Sequence[Record]) -> tuple[Arrays, Lost]:
        """What a column makes of the records that have its key; zeros for the others."""
        has_B = np.array([key not in lacks(record) for record in records])
        own = [record for record, has in zip(records, has_B, strict=True) if has]
        rows, lost = column([record[key] for record in own], own) if own else ({}, Lost())
        return {**spread_out(rows, self._optional[key], has_B), f"{key}_{VALID}": has_B}, lost

    def _groups(self, records: Sequence[Record], batch: Mapping[str, np.ndarray], places: Sequence[int]) -> np.ndarray:
        """[B, 2] int32 from the texts, [B] from the labels where there are none."""
        if "text" in self._columns:
            return np.stack([texts.text_group(_told(record, place)) for record, place in zip(records, places, strict=True)])
        label = batch["label"]
        classes: np.ndarray = label if label.ndim == 1 else np.full(len(records), -1, np.int32)
        # What has no class is a group of its own, numbered from the far end, where no class is.
        return np.where(classes < 0, GROUPS - 1 - np.asarray(places), classes).astype(np.int32)

    def _check(self, record: Record) -> None:
        """Raises `UserError` for a record that is unlike the first in what no spec leaves open."""
        gone = lacks(record)
        taken = self._taken - {one for key in gone for one in getattr(self._columns.get(key), "taken", ())}
        for key in (*self._columns, *taken):
            if key not in record and key not in gone:
                raise UserError(f"source: a record lacks {key!r}, unlike the first record")
        for key, value in record.items():
            here = kinds.kind(value)
            if key in self._loose or (key in self._taken and here == ((), kinds.STRING)):
                continue
            if key not in self._columns and key not in self._taken:
                if not kinds.is_left_out(value):
                    raise UserError(f"source: a record has {key!r}, unlike the first record")
            elif here != self._first[key]:
                tip = "; add Resize(size) or RandomCrop(size) to transforms" if key == "image" else ""
                first = kinds.written(self._first[key])
                raise UserError(f"{key}: a record's is {kinds.written(here)}, the first record's {first}{tip}")


def _told(record: Record, place: int) -> str:
    """A record's text, also one that was left out of it; of a record without one a text that is no other's."""
    own = record.get(LACKS)
    text = record.get("text", own.text if isinstance(own, Lacks) else None)
    return f"\0{place}" if text is None else str(text)


def _made(specs: Mapping[str, Any]) -> set[str]:
    """The keys of a batch that columns of other keys make. Raises `UserError` for one that two of them make."""
    found = [spec.of for spec in specs.values() if isinstance(spec, MAKERS)]
    for key, spec in specs.items():
        if isinstance(spec, MAKERS) and (spec.of in specs or found.count(spec.of) > 1):
            raise UserError(f"columns.{key}.of={spec.of!r}: another column makes that text too; give one of them another name")
    return set(found)


def inferred(key: str, value: Any, first: Record) -> Any:
    """The column of a key that no spec names; None for what a batch does not hold. Raises `UserError` for a sound or a
    video."""
    refuse_unread(key, value)
    if key == "text":
        return Text()
    if key == "text_pair":
        return None  # `text` takes it
    if key == "label" and isinstance(value, int | np.integer):
        return Class()
    if isinstance(value, np.ndarray):
        image = image_of(key, (name for name in first if name != key))
        kind = "" if image is None else over(image, [key])[key]
        if kind in ("points", "boxes"):
            return Array("float32")
        if (kind == "map" or key == "label") and value.dtype.kind in "iu":
            return Class()
        return Pixels() if value.ndim == 3 and value.dtype == np.uint8 and not kind else Array("")
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return Array("int32")
    return Number() if isinstance(value, float | np.floating) else None
