"""What compressed files hold, from their beginning on."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data.files.open_files import OpenFiles
from mmjax.data.files.tar import Read, compression
from mmjax.data.images import printable
from mmjax.data.types import BadRecordError

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")  # a name's; what a file is compressed with its first bytes say
AT_ONCE = 1 << 20  # bytes
BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError)


@contextlib.contextmanager
def unpacked(files: OpenFiles, number: int) -> Iterator[io.BufferedReader[Any]]:
    """What a file holds, unpacked where it is compressed with gzip, bzip2, xz or zstd; it can be read onward.

    Raises:
      UserError: the file has changed, is gone, damaged or cut, or is compressed otherwise. Also from the block, where it reads.
      UnreachableError: storage does not give it.
    """
    path = printable(files.paths[number])
    raw: Any = io.BufferedReader(_Raw(files, number), AT_ONCE)
    broken: tuple[type[Exception], ...] = BROKEN
    stream: io.BufferedReader[Any] = raw
    found = compression(raw.peek(8)[:8])
    try:
        if found is None:
            pass
        elif found[0] == "zstd":
            broken, stream = _zstd(raw, path)
        elif found[0] in ("gzip", "bzip2", "xz"):
            opener: Any = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}[found[0]]
            stream = io.BufferedReader(opener(raw) if found[0] != "gzip" else opener(fileobj=raw), AT_ONCE)
        else:
            raise UserError(f"{path} is compressed with {found[0]}: use gzip, bzip2, xz or zstd")
        yield stream
    except broken as error:
        if isinstance(error, UnreachableError):
            raise
        raise UserError(f"{path} is damaged or cut ({' '.join(str(error).split()) or type(error).__name__})") from None


def onward(stream: io.BufferedReader[Any]) -> Read:
    """Reading by place, which goes onward, or over what was read last again."""
    at, last = 0, b""

    def read(place: int, count: int) -> bytes:
        nonlocal at, last
        again = last[place - at :] if at - len(last) <= place < at else b""
        assert place + len(again) >= at, f"byte {place} is before byte {at}"
        while at < place and (passed := len(stream.read(min(place - at, AT_ONCE)))):
            at += passed
        found = stream.read(max(0, count - len(again)))
        at, last = at + len(found), again + found
        return last[:count]

    return read


class _Raw(io.RawIOBase):
    """A file of `OpenFiles`, which notices when it changes."""

    def __init__(self, files: OpenFiles, number: int) -> None:
        super().__init__()
        self._files, self._number, self._place = files, number, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        path = printable(self._files.paths[self._number])
        try:
            found = self._files.read(self._number, self._place, len(buffer), path)
        except BadRecordError as error:
            if isinstance(error.__cause__, UnreachableError):
                raise error.__cause__ from None
            raise UserError(str(error)) from None
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


def _zstd(raw: Any, path: str) -> tuple[tuple[type[Exception], ...], io.BufferedReader[Any]]:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path} is compressed with zstd: pip install 'mmjax[zstd]'") from None
    reader: Any = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return (*BROKEN, zstandard.ZstdError), io.BufferedReader(reader, AT_ONCE)
