"""The lines of a table, with their numbers: JSONL, or fields that a character separates."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from mmjax.core.errors import UserError
from mmjax.data import remote

Line = tuple[int, dict[str, Any]]
Open = Callable[[], TextIO]
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
      UserError: no such file, another suffix, a separator that is none, not UTF-8, or a malformed line; of an address also what
        `remote.asked` says.
    """
    given = Path(path).suffix
    suffix = given.lower()
    opened = _opened(path) if suffix in (*SEPARATORS, ".jsonl") or not remote.is_address(path) else None
    if opened is None or suffix not in (*SEPARATORS, ".jsonl"):
        raise UserError(f"Manifest.path={path!r}: write .csv, .tsv or .jsonl, not {given or 'a name without a suffix'}")
    separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if separator and (len(separator) != 1 or separator in '"\r\n'):
        raise UserError(f"Manifest.separator={separator!r}: give one character, for instance ';', or nothing")
    if separator and suffix == ".jsonl":
        raise UserError(f"Manifest.separator={separator!r}: the lines of {path} are JSON, which has none")
    try:
        yield from _jsonl(path, opened) if suffix == ".jsonl" else _table(path, opened, separator, wanted)
    except UnicodeDecodeError as error:
        raise UserError(f"Manifest.path={path!r}: not UTF-8 text ({error})") from None


def _opened(path: str) -> Open:
    """What opens a file, each line with the end that it has. One at an address is fetched once, and held."""
    if not remote.is_address(path):
        if not Path(path).is_file():
            raise UserError(f"Manifest.path={path!r}: no such file")
        return lambda: open(path, encoding="utf-8-sig", newline="")
    try:
        content = remote.content(path)
    except FileNotFoundError:
        raise UserError(f"Manifest.path={path!r}: no such file") from None
    return lambda: io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")


def _jsonl(file: str, opened: Open) -> Iterator[Line]:
    with opened() as lines:
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


def _table(file: str, opened: Open, separator: str, wanted: Collection[str]) -> Iterator[Line]:
    suffix = Path(file).suffix
    separator = separator or (_separator(opened, wanted) if suffix.lower() == ".csv" else SEPARATORS[".tsv"])
    with opened() as lines:
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
            raise UserError(f"{file}:{reader.line_num}: not {suffix[1:].upper()} ({error})") from None


def _separator(opened: Open, wanted: Collection[str]) -> str:
    with opened() as lines:
        header = lines.readline()
    for separator in OTHERS:
        try:
            names = next(csv.reader([header], delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        if len(names) > 1 and any(name.strip() in wanted for name in names):
            return separator
    return SEPARATORS[".csv"]
