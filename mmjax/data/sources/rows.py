"""Reading a manifest: every line checked, every complaint with the file's name and the line's number."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data.sources.splits import ALIASES, SPLITS
from mmjax.data.spelling import nearest

Row = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "image": (str,),
    "text": (str, list),
    "text_pair": (str,),
    "label": (str, int),
    "group": (str, int),
}
_KINDS = {
    "image": "a path",
    "text": "a string, or a list of one or more",
    "text_pair": "a string",
    "label": "a string or a whole number",
    "group": "a string or a whole number",
}


def read_rows(path: str, fields: Mapping[str, str]) -> list[Row]:
    """The lines of a `.csv` or `.jsonl` file, checked.

    Args:
      path: the file, UTF-8.
      fields: name in the file for each of "image", "text", "text_pair", "label" and "group".

    Returns:
      Non-empty; every row has the same ones of the keys "image", "text" (str or tuple of str), "text_pair", "label", "group"
      and "split", and "fields", all names in its line.

    Raises:
      UserError: no such file, another suffix, no lines, a malformed line, or a line whose fields differ from the first one's.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"Manifest.path={path!r}: no such file")
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if file.suffix.lower() not in readers:
        raise UserError(f"Manifest.path={path!r}: write .csv or .jsonl, not {file.suffix or 'a name without a suffix'}")
    rows: list[Row] = []
    try:
        for line, values in readers[file.suffix.lower()](file):
            row = _row(f"{path}:{line}", values, fields)
            if rows and rows[0].keys() != row.keys():
                differ = ", ".join(sorted(rows[0].keys() ^ row.keys()))
                raise UserError(f"{path}:{line}: every line has what the first one has; here {differ} differs")
            if rows and type(rows[0].get("label")) is not type(row.get("label")):
                pair = f"{row['label']!r} here, {rows[0]['label']!r} in the first line"
                raise UserError(f"{path}:{line}: labels are all strings or all whole numbers; {pair}")
            rows.append(row)
    except UnicodeDecodeError as error:
        raise UserError(f"Manifest.path={path!r}: not UTF-8 text ({error})") from None
    if not rows:
        raise UserError(f"Manifest.path={path!r}: it has no lines")
    _number_labels(rows)
    return rows


def _read_jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}:{number}: not JSON ({error.msg}, column {error.colno})") from None
            if not isinstance(values, dict):
                raise UserError(f'{file}:{number}: write one object a line, {{"image": ..., "text": ...}}')
            yield number, {key: value for key, value in values.items() if value is not None}


def _read_csv(file: Path) -> Iterator[tuple[int, Row]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for values in reader:
                if None in values or None in values.values():
                    names = ", ".join(reader.fieldnames or ())
                    raise UserError(f"{file}:{reader.line_num}: as many values as the header has are needed ({names})")
                yield reader.line_num, {key: value for key, value in values.items() if value != ""}
        except csv.Error as error:
            raise UserError(f"{file}:{reader.reader.line_num}: not CSV ({error})") from None


def _row(where: str, values: Row, fields: Mapping[str, str]) -> Row:
    row: Row = {"fields": tuple(values)}
    for key, kinds in _TYPES.items():
        if fields[key] in values:
            value = values[fields[key]]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise UserError(f"{where}: {fields[key]}={value!r} is not {_KINDS[key]}")
            row[key] = value
    if isinstance(row.get("text"), list):
        if not row["text"] or not all(isinstance(text, str) for text in row["text"]):
            raise UserError(f"{where}: {fields['text']}={row['text']!r} is not {_KINDS['text']}")
        row["text"] = tuple(row["text"])
    if "text_pair" in row and "text" not in row:
        raise UserError(f"{where}: {fields['text_pair']} needs a {fields['text']} before it")
    if "image" not in row and "text" not in row:
        raise UserError(f"{where}: neither {fields['image']!r} nor {fields['text']!r}; it has {', '.join(values) or 'nothing'}")
    if "split" in values:
        split = ALIASES.get(str(values["split"]), str(values["split"]))
        if split not in SPLITS:
            raise UserError(f"{where}: split={split!r} is not a split{nearest(split, SPLITS)}")
        row["split"] = split
    return row


def _number_labels(rows: list[Row]) -> None:
    """Labels that are all written as whole numbers become numbers, so that 10 sorts after 2."""
    labels = [row.get("label") for row in rows]
    if all(isinstance(label, str) and label.isdecimal() and str(int(label)) == label for label in labels):
        for row in rows:
            row["label"] = int(row["label"])
