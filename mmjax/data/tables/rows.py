"""The rows of a manifest: every line checked, every complaint with the file's name and the line's number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.core.errors import UserError, nearest
from mmjax.data.spelling import nearest as nearest_of
from mmjax.data.splits import SPLITS, split_of

Row = dict[str, Any]

FILES = ("image", "audio", "video")
_TYPES: dict[str, tuple[type, ...]] = {
    "image": (str,),
    "audio": (str,),
    "video": (str,),
    "text": (str, list),
    "text_pair": (str,),
    "label": (str, int),
    "group": (str, int),
}
_KINDS = {
    "image": "a path",
    "audio": "a path",
    "video": "a path",
    "text": "a string, or a list of one or more",
    "text_pair": "a string",
    "label": "a string or a whole number",
    "group": "a string or a whole number",
}
_NEGATIVE = re.compile(r"\s*-0*[1-9]\d*(\.0*)?\s*")
_WHOLE = re.compile(r"\s*[+-]?(0|[1-9]\d*)\s*")  # no leading zeros: 007 is a name
_NUMBER = re.compile(r"\s*[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")


class Checking:
    """What is asked of the lines of one file, one after the other.

    Attributes:
      first: the first line.
      labelled: the label of the first line that has one.
    """

    def __init__(
        self,
        path: str,
        fields: Mapping[str, str],
        further: Mapping[str, str],
        maps: Mapping[str, str],
        optional: Sequence[str] = (),
    ) -> None:
        """Check the lines of a file.

        Args:
          fields: name in the file for each of "image", "audio", "video", "text", "text_pair", "label" and "group" that is read.
          further: record key -> name in the file, of values that pass as they are.
          maps: record key -> name in the file, of paths.
          optional: keys that a line may lack, None then.
        """
        self.optional = tuple(optional)
        self.path, self.fields, self.further, self.maps = path, fields, further, maps
        self.first: Row | None = None
        self.labelled: str | int | None = None

    def row(self, line: int, values: Mapping[str, Any]) -> Row:
        """The keys "image", "audio", "video", "text" (str or tuple), "text_pair", "label" (None = no class), "group", "split"
        that all lines have, and "fields", all names in the line, "further" and "maps", key -> value.

        Raises:
          UserError: a line whose fields differ from the first one's or are not what they should be.
        """
        where = f"{self.path}:{line}"
        row = _row(where, dict(values), self.fields, bool(self.further))
        row |= {key: None for key in self.optional if key in self.fields and key not in row}
        row["further"] = {key: _further(where, values, key, field) for key, field in self.further.items()}
        row["maps"] = {key: _map(where, values, key, field) for key, field in self.maps.items()}
        self.first = self.first or row
        if self.first.keys() != row.keys():
            raise UserError(f"{where}: every line has what the first one has; here {self._difference(row, values)}")
        if row.get("label") is not None:
            self.labelled = row["label"] if self.labelled is None else self.labelled
            if type(self.labelled) is not type(row["label"]):
                pair = f"{row['label']!r} here, {self.labelled!r} in the first line that has one"
                raise UserError(f"{where}: labels are all strings or all whole numbers; {pair}")
        return row

    def _difference(self, row: Row, values: Mapping[str, Any]) -> str:
        """What a line has otherwise than the first one, and what can be done."""
        assert self.first is not None
        key = min(self.first.keys() ^ row.keys(), key=lambda key: (key not in _TYPES, key != "text", key))
        field = self.fields.get(key, key)
        if key in row:
            return f"{field} is there, and the first line has none: leave out the lines without, or give each a {field}"
        state = "empty" if field in values else "missing"
        rest = ", or have no texts read by Manifest.text_field=''" if key == "text" and row.keys() & {*FILES} else ""
        return f"{field} is {state}: leave out such lines, or give each a {field}{rest}"


def _row(where: str, given: Row, fields: Mapping[str, str], further: bool) -> Row:
    """`further`: whether the line has other fields that are asked for, and so need be neither an image nor a text."""
    values = {name: value for name, value in given.items() if value is not None and value != ""}
    row: Row = {"fields": tuple(given)}
    for key, field in fields.items():
        if key == "label" and field in given and no_class(given[field]):
            row[key] = None
        elif field in values:
            value = values[field]
            if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
                raise UserError(f"{where}: {field}={value!r} is not {_KINDS[key]}")
            row[key] = value
    if isinstance(row.get("text"), list):
        if not row["text"] or not all(isinstance(text, str) for text in row["text"]):
            raise UserError(f"{where}: {fields['text']}={row['text']!r} is not {_KINDS['text']}")
        row["text"] = tuple(row["text"])
    if "text_pair" in row and "text" not in row:
        empty = ", and that is empty: leave out such lines, or fill it" if fields["text"] in given else ""
        raise UserError(f"{where}: {fields['text_pair']} needs a {fields['text']} before it{empty}")
    if not row.keys() & {*FILES, "text"} and not further:
        asked = [fields[key] for key in ("image", "text") if key in fields] or [
            fields[key] for key in ("audio", "video") if key in fields
        ][:1]
        said = f"neither {asked[0]!r} nor {asked[1]!r}" if len(asked) == 2 else f"no {asked[0]!r}"
        empty = "".join(f"; its {field!r} is empty: leave out such lines, or fill it" for field in asked if field in given)
        raise UserError(f"{where}: {said}; it has {', '.join(values) or 'nothing'}{empty}")
    if "split" in values:
        split = split_of(str(values["split"]))
        if split not in SPLITS:
            raise UserError(f"{where}: split={split!r} is not a split{nearest_of(split, SPLITS)}")
        row["split"] = split
    return row


def no_class(label: Any) -> bool:
    """Whether a line says that it has no class: nothing, or a negative whole number."""
    if isinstance(label, str):
        return not label.strip() or _NEGATIVE.fullmatch(label) is not None
    return label is None or (isinstance(label, int) and label < 0)


def _further(where: str, values: Mapping[str, Any], key: str, field: str) -> Any:
    """What a line says of a further field; None where it is left empty."""
    value = _there(where, values, f"fields.{key}", field)
    if value is not None and not isinstance(value, str | int | float | list):
        raise UserError(f"{where}: {field}={value!r} is not a string, a number or a list (Manifest.fields.{key})")
    return value


def _map(where: str, values: Mapping[str, Any], key: str, field: str) -> str | None:
    """The path of a label map; None where it is left empty: nothing of that image is labelled."""
    value = _there(where, values, f"maps.{key}", field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {field}={value!r} is not a path (Manifest.maps.{key})")
    return value


def _there(where: str, values: Mapping[str, Any], option: str, field: str) -> Any:
    if field in values and values[field] in (None, ""):
        return None
    if field not in values:
        raise UserError(
            f"{where}: {field!r} is not there{nearest(field, values)}, and Manifest.{option} names it: each line has it"
        )
    return values[field]


def numbered(labels: Sequence[str | int]) -> list[str | int]:
    """Labels that are all written as whole numbers become numbers, so that 10 sorts after 2."""
    if all(isinstance(label, str) and label.isdecimal() and str(int(label)) == label for label in labels):
        return [int(label) for label in labels]
    return list(labels)


def is_number(written: str) -> bool:
    return _NUMBER.fullmatch(written) is not None


def is_whole(written: str) -> bool:
    return _WHOLE.fullmatch(written) is not None


def number(written: str) -> int | float:
    """What is written as a number."""
    return int(written) if is_whole(written) else float(written)
