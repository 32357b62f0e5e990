"""The members of a tar file and where their bytes lie: ustar, GNU and pax headers, read without unpacking anything.

The format is that of POSIX.1-2017 (`pax`, "ustar Interchange Format") with GNU's long names and numbers in base 256. Everything
that is not plainly a regular file is refused rather than guessed at, and the sum of every header is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512  # bytes: headers are one, contents are filled up to whole ones
LONGEST = 1 << 20  # bytes of a name or a pax header
PLAIN = (b"0", b"\0", b"7", b"5")  # files, and folders
MARKS = (b"L", b"K", b"x", b"X", b"g")  # what says more of the next member
EMPTY = bytes(BLOCK)
REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"M": "part of a file in several volumes",
}
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"PK\x03\x04": ("zip", "unzip"),
}
Read = Callable[[int, int], bytes]  # (offset, count) -> that many bytes, fewer at the end of the file

_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_RECORD = re.compile(rb"(\d+) ([^=]+)=")


class TarError(ValueError):
    """What is wrong with a tar file, in one line that names the byte or the member."""


class Member(NamedTuple):
    """A regular file in a tar file.

    Attributes:
      name: its path, bytes that are not UTF-8 escaped as `os.fsdecode` does.
      start: the byte where its headers begin.
      data: the byte where its content begins.
      size: bytes of its content.
    """

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """The byte where the next member's headers begin."""
        return _after(self.data, self.size)


def members(read: Read, start: int, end: int, whole: bool = True) -> Iterator[Member]:
    """The regular files between two bytes of a tar file; folders are passed over.

    Args:
      read: what gives its bytes.
      start: where a header begins.
      end: the size of the file or, where not `whole`, the byte at which to stop, where a header begins.
      whole: go up to the mark of the end, which has to be there.

    Raises:
      TarError: a header that is none, a cut file, or a member that is no regular file or whose name leads out of the folder.
    """
    place = first = start
    long: bytes | None = None  # what headers before it say of the next member
    extended: dict[bytes, bytes] = {}
    while whole or place < end:
        block = read(place, BLOCK)
        if len(block) < BLOCK:
            raise TarError(f"it is cut: it ends at byte {place + len(block)}, without the empty block that marks the end")
        if block == EMPTY:
            if first != place:
                raise TarError(f"it is cut: the member whose long name stands at byte {first} does not follow")
            if not whole:
                raise TarError(f"it has its end at byte {place}, before byte {end}")
            _check_rest(read, place, end)
            return
        kind, name, size = _header(block, place)
        path = extended.get(b"path") or long or name
        if _is_folder(kind, path):
            size = 0  # what it says is no content
        elif kind not in MARKS and b"size" in extended:
            size = _size(extended[b"size"], place)
        data = place + BLOCK
        if data + size > end:
            raise TarError(f"it is cut: {_shown(path)} has bytes {data} to {data + size}, and the end is at byte {end}")
        place = _after(data, size)
        if kind in MARKS:
            content = _content(read, data, size)
            if kind == b"L":
                long = content.partition(b"\0")[0]
            elif kind in (b"x", b"X"):
                extended |= _pax(content, data)
            elif kind == b"g" and (own := {b"path", b"size"} & _pax(content, data).keys()):
                raise TarError(f"the global header at byte {data} gives every member one {own.pop().decode()}")
            if kind == b"g" and first == data - BLOCK:
                first = place
            continue
        _check(kind, path, extended, data - BLOCK)
        if not _is_folder(kind, path):
            yield Member(path.decode("utf-8", "surrogateescape"), first, data, size)
        first, long, extended = place, None, {}


def compression(start: bytes) -> tuple[str, str] | None:
    """The name of what a file is compressed with, by its first bytes, and of the program that unpacks it; None for neither."""
    return next((found for magic, found in COMPRESSED.items() if start.startswith(magic)), None)


def _after(data: int, size: int) -> int:
    return data + -(-size // BLOCK) * BLOCK


def _header(block: bytes, place: int) -> tuple[bytes, bytes, int]:
    """The kind of a header, the name in it and the size of what follows."""
    found = _number(block[148:156], "sum", place)
    told = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if found != told:
        raise TarError(f"no header at byte {place}: its sum is {told}, and it says {found}")
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return block[156:157], name, _number(block[124:136], "size", place)


def _number(field: bytes, what: str, place: int) -> int:
    if field[0] == 0x80:  # GNU's base 256
        return int.from_bytes(field[1:], "big")
    found = _OCTAL.fullmatch(field)
    if found is None or (what == "sum" and not found[1]):
        raise TarError(f"no header at byte {place}: its {what} is {field!r}")
    return int(found[1] or b"0", 8)


def _is_folder(kind: bytes, path: bytes) -> bool:
    return kind == b"5" or (kind == b"\0" and path.endswith(b"/"))


def _size(extended: bytes, place: int) -> int:
    if not extended.isdigit():
        raise TarError(f"the member at byte {place} has the size {extended!r}")
    return int(extended)


def _content(read: Read, data: int, size: int) -> bytes:
    if size > LONGEST:
        raise TarError(f"the header at byte {data - BLOCK} is followed by a name or by settings of {size} bytes")
    return read(data, size)


def _pax(content: bytes, place: int) -> dict[bytes, bytes]:
    """Keyword -> value of a pax header."""
    found, at = {}, 0
    while at < len(content):
        record = _RECORD.match(content, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(content) or content[end - 1 : end] != b"\n":
            raise TarError(f"the pax header at byte {place} is not readable at byte {place + at}")
        found[record[2]] = content[record.end() : end - 1]
        at = end
    return found


def _check(kind: bytes, path: bytes, extended: dict[bytes, bytes], place: int) -> None:
    """Raises TarError for a member that is no regular file or folder, or whose name leads out of where it is unpacked."""
    if kind in PLAIN and path and path[0] != b"/"[0] and b".." not in path and b"\0" not in path and not extended:
        return  # nearly all of them
    shown = _shown(path)
    if kind in REFUSED or any(key.startswith(b"GNU.sparse") for key in extended):
        raise TarError(f"{shown} is {REFUSED.get(kind, 'a sparse file')}: leave it out, or put the file itself in")
    if kind not in PLAIN:
        raise TarError(f"{shown} (byte {place}) is of the unknown kind {kind!r}")
    if not path or b"\0" in path:
        raise TarError(f"the member at byte {place} has no name, or one with a zero byte: {shown}")
    if path.startswith(b"/") or b".." in path.split(b"/"):
        raise TarError(f"{shown} leads out of the folder that holds it: names are relative, without '..'")


def _shown(path: bytes) -> str:
    return repr(path.decode("utf-8", "backslashreplace"))


def _check_rest(read: Read, place: int, end: int) -> None:
    """Raises TarError for anything but zeros after the mark of the end."""
    while place < end:
        rest = read(place, 1 << 20)
        if not rest:
            return
        if rest.count(0) != len(rest):
            at = place + len(rest) - len(rest.lstrip(b"\0"))
            raise TarError(f"something follows the end, at byte {at}: of tar files that are joined only the first is read")
        place += len(rest)
