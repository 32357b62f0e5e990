"""The lines of a table, with their numbers: JSONL, or fields that a character separates; block by block."""

from __future__ import annotations

import abc
import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data.files import remote
from mmjax.data.tables import quick

Line = tuple[int, dict[str, Any]]
SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHERS = (",", ";", "\t", "|")  # that a `.csv` may have, the likeliest first
FIRST, BLOCK = 1 << 16, 1 << 22  # bytes that are read at once
BOM = b"\xef\xbb\xbf"


Bad = Callable[[int, str], None]  # (number of a line, what is wrong with it)


def read_lines(path: str, separator: str, wanted: Collection[str], bad: Bad | None = None) -> Iterator[Line]:
    """(line number, field -> value) of a `.csv`, `.tsv` or `.jsonl` file in UTF-8.

    An empty value of a table is "" and one of JSONL may be None.

    Args:
      separator: of the fields; "" for a tab in `.tsv` and, in `.csv`, the first of `, ; tab |` that parts a header into fields
        of which one is wanted; where none does, a comma.
      wanted: names of fields that the header may have.
      bad: told of a malformed line, which is then left out; None refuses it. Where no line can be told from the next any more
        (a quote in a table that is not closed), the file is refused in any case.

    Raises:
      UserError: no such file, another suffix, a separator that is none, not UTF-8, or a malformed line; of an address also what
        `remote.asked` says.
    """
    with open_table(path, separator, wanted) as table:
        table.bad = bad
        while table.more():
            yield from table.lines()


def open_table(path: str, separator: str, wanted: Collection[str]) -> Table:
    """The file on its way, see `read_lines`."""
    separator = check_path(path, separator)
    return JsonLines(path) if _suffix(path) == ".jsonl" else Separated(path, separator, wanted)


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _is_there(path: str) -> bool:
    if not remote.is_address(path):
        return Path(path).is_file()
    try:
        remote.asked(path, lambda storage, place: storage.info(place))
    except FileNotFoundError:
        return False
    return True


def check_path(path: str, separator: str) -> str:
    """The separator as a character, or "". Raises `UserError` for a path or a separator that cannot be."""
    suffix = _suffix(path)
    known = suffix in (*SEPARATORS, ".jsonl")
    if (known or not remote.is_address(path)) and not _is_there(path):
        raise UserError(f"Manifest.path={path!r}: no such file")
    if not known:
        raise UserError(f"Manifest.path={path!r}: write .csv, .tsv or .jsonl, not {suffix or 'a name without a suffix'}")
    separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if separator and (len(separator) != 1 or separator in '"\r\n'):
        raise UserError(f"Manifest.separator={separator!r}: give one character, for instance ';', or nothing")
    if separator and suffix == ".jsonl":
        raise UserError(f"Manifest.separator={separator!r}: the lines of {path} are JSON, which has none")
    return separator


class Table(abc.ABC):
    """A file that is read in blocks of whole lines: `more()` takes the next one, which `columns` or `lines` reads.

    Attributes:
      file: its path, or its address, of which only what is asked for is read.
      line: the number of the block's first line.
      block: its bytes.
    """

    def __init__(self, file: str) -> None:
        self.file, self.line, self.block = file, 1, b""
        self._stream: Any
        self._carried, self._begun, self._lines = b"", False, 0
        self.bad: Bad | None = None

    def __enter__(self) -> Table:
        try:
            self._stream = remote.RemoteFile(self.file) if remote.is_address(self.file) else open(self.file, "rb")
        except OSError as error:
            raise UserError(f"Manifest.path={self.file!r}: {error.strerror}") from None
        try:
            self._begin()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def more(self) -> bool:
        """Take the next block; False at the end of the file."""
        self.line += self._lines
        self._lines, self.block = 0, self._next()
        return bool(self.block)

    @abc.abstractmethod
    def _begin(self) -> None:
        """Read what stands before the first line."""

    @abc.abstractmethod
    def columns(self, types: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """How many rows the block has, and its columns as pyarrow's arrays: of all fields named here that it has, in their
        types. None where that could mean anything else than what `lines` says, which is to be asked then."""

    def again(self) -> None:
        """The block was not read after all."""
        self._lines = 0

    @abc.abstractmethod
    def lines(self) -> Iterator[Line]:
        """The block line by line, blank ones left out. Raises `UserError` for a malformed one."""

    def _refuse(self, number: int, reason: str) -> None:
        """Raises `UserError`, unless somebody is told of bad lines."""
        if self.bad is None:
            raise UserError(f"{self.file}:{number}: {reason}") from None
        self.bad(number, reason)

    def _next(self) -> bytes:
        """Bytes that end with a line, or with the file."""
        parts = [self._carried]
        while True:
            data = self._stream.read(BLOCK if self._begun else FIRST)
            if not self._begun:
                data = data.removeprefix(BOM)
            self._begun = True
            end = data.rfind(b"\n") + 1
            if end or not data:
                break
            parts.append(data)
        self._carried = data[end:]
        return b"".join([*parts, data[:end]])

    def _text(self, block: bytes) -> str:
        try:
            return block.decode("utf-8")
        except UnicodeDecodeError as error:
            near = f"{self.line + block.count(10, 0, error.start)}"
            raise UserError(f"Manifest.path={self.file!r}: not UTF-8 text (line {near}: {error})") from None


class JsonLines(Table):
    """An object a line."""

    def _begin(self) -> None:
        """There is nothing."""

    def columns(self, types: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        found = quick.of_json(self.block, types)
        if found is not None:
            self._lines = found[0]
        return found

    def lines(self) -> Iterator[Line]:
        for number, line in enumerate(io.StringIO(self._text(self.block), newline=None), self.line):
            self._lines = number + 1 - self.line
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                self._refuse(number, f"not JSON ({error.msg}, column {error.colno})")
                continue
            except RecursionError:
                self._refuse(number, "not JSON that can be read: too many brackets in each other")
                continue
            if isinstance(values, dict):
                yield number, values
            else:
                self._refuse(number, 'write one object a line, {"image": ..., "text": ...}')


class Separated(Table):
    """Fields parted by a character, with a header."""

    def __init__(self, file: str, separator: str, wanted: Collection[str]) -> None:
        super().__init__(file)
        self.separator, self.wanted, self.header = separator, wanted, [""]
        self._whole, self._at = "", 0

    def _begin(self) -> None:
        text = self._text(self._next())
        if not self.separator:
            self.separator = _separator(text, self.wanted) if _suffix(self.file) == ".csv" else SEPARATORS[".tsv"]
        reader = self._reader(self._pieces(text))
        try:
            self.header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise self._malformed(reader.line_num, error) from None
        for name in self.header:
            if name and self.header.count(name) > 1:
                raise UserError(f"{self.file}:{reader.line_num}: the header has {name!r} more than once")
        self._lines = reader.line_num
        self._carried = self._whole[self._at :].encode() + self._carried

    def more(self) -> bool:
        self.line += self._lines
        self._lines = 0
        at = self._carried.rfind(b"\n") + 1
        if at:  # what followed a header, or a value with ends of lines
            self.block, self._carried = self._carried[:at], self._carried[at:]
        else:
            self.block = self._next()
        return bool(self.block)

    def columns(self, types: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        found = quick.of_separated(self.block, self.separator, self.header, types)
        if found is None:
            return None
        self._lines, rows, columns = found
        return rows, columns

    def lines(self) -> Iterator[Line]:
        reader = self._reader(self._pieces(self._text(self.block)))
        try:
            for values in reader:
                self._lines = reader.line_num
                if len(values) != len(self.header) and values:
                    names = ", ".join(self.header)
                    self._refuse(self.line - 1 + reader.line_num, f"as many values as the header has are needed ({names})")
                elif values:
                    yield self.line - 1 + reader.line_num, dict(zip(self.header, values, strict=True))
                if self._at == len(self._whole):
                    break
        except csv.Error as error:
            raise self._malformed(reader.line_num, error) from None

    def _reader(self, pieces: Iterator[str]) -> Any:
        return csv.reader(pieces, delimiter=self.separator, strict=True)

    def _malformed(self, number: int, error: csv.Error) -> UserError:
        return UserError(f"{self.file}:{self.line - 1 + number}: not {_suffix(self.file)[1:].upper()} ({error})")

    def _pieces(self, text: str) -> Iterator[str]:
        """Line by line, and on into the next blocks where a value has ends of lines in it; `_at` is how far it came."""
        while text:
            at = 0
            for piece in io.StringIO(text, newline=""):
                at += len(piece)
                self._whole, self._at = text, at
                yield piece
            text = self._text(self._next())


def _separator(text: str, wanted: Collection[str]) -> str:
    header = next(io.StringIO(text, newline=""), "")
    for separator in OTHERS:
        try:
            names = next(csv.reader([header], delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        if len(names) > 1 and any(name.strip() in wanted for name in names):
            return separator
    return SEPARATORS[".csv"]
