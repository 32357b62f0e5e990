"""The lines of a table, with their numbers: JSONL, or fields that a character separates."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError

Line = tuple[int, dict[str, Any]]
SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHERS = (",", ";", "\t", "|")  # that a `.csv` may have, the likeliest first


def read_lines(path: str, separator: str, wanted: Collection[str]) -> Iterator[Line]:
    """(line number, field -> value) of a `.csv`, `.tsv` or `.jsonl` file in UTF-8.

    An empty value of a table is "" and one of JSONL may be None.

    Args:
      separator: of the fields; "" for a tab in `.tsv` and, in `.csv`, the first of `, ; tab |` that parts a header into fields
        of which one is wanted; where none does, a comma.
      wanted: names of fields that the header may have.

    Raises:
      UserError: no such file, another suffix, a separator that is none, not UTF-8, or a malformed line.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"Manifest.path={path!r}: no such file")
    suffix = file.suffix.lower()
    if suffix not in (*SEPARATORS, ".jsonl"):
        raise UserError(f"Manifest.path={path!r}: write .csv, .tsv or .jsonl, not {file.suffix or 'a name without a suffix'}")
    separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if separator and (len(separator) != 1 or separator in '"\r\n'):
        raise UserError(f"Manifest.separator={separator!r}: give one character, for instance ';', or nothing")
    if separator and suffix == ".jsonl":
        raise UserError(f"Manifest.separator={separator!r}: the lines of {path} are JSON, which has none")
    try:
        yield from _jsonl(file) if suffix == ".jsonl" else _table(file, separator, wanted)
    except UnicodeDecodeError as error:
        raise UserError(f"Manifest.path={path!r}: not UTF-8 text ({error})") from None


def _jsonl(file: Path) -> Iterator[Line]:
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
            yield number, values


def _table(file: Path, separator: str, wanted: Collection[str]) -> Iterator[Line]:
    separator = separator or (_separator(file, wanted) if file.suffix.lower() == ".csv" else SEPARATORS[".tsv"])
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            for name in header:
                if name and header.count(name) > 1:
                    raise UserError(f"{file}:{reader.line_num}: the header has {name!r} more than once")
            for values in reader:
                if len(values) != len(header) and values:
                    names = ", ".join(header)
                    raise UserError(f"{file}:{reader.line_num}: as many values as the header has are needed ({names})")
                if values:
                    yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise UserError(f"{file}:{reader.line_num}: not {file.suffix[1:].upper()} ({error})") from None


def _separator(file: Path, wanted: Collection[str]) -> str:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
    for separator in OTHERS:
        try:
            names = next(csv.reader([header], delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        if len(names) > 1 and any(name.strip() in wanted for name in names):
            return separator
    return SEPARATORS[".csv"]
