"""What compressed files hold, from their beginning on."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data.files.open_files import OpenFiles
from mmjax.data.files.tar import Read, compression
from mmjax.data.images import printable
from mmjax.data.types import BadRecordError

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")  # a name's; what a file is compressed with its first bytes say
AT_ONCE = 1 << 20  # bytes
PACKED = 1 << 16  # bytes that are unpacked at a time
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
            library = _zstandard(path)
            begin = library.ZstdDecompressor().decompressobj
            broken, stream = (*BROKEN, library.ZstdError), io.BufferedReader(_Pieces(_frames(raw, begin)), AT_ONCE)
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


def _zstandard(path: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path} is compressed with zstd: pip install 'mmjax[zstd]'") from None
    return zstandard


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


class _Pieces(io.RawIOBase):
    """Bytes that come in pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces, self._held = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._held = piece
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count


def _frames(raw: Any, begin: Callable[[], Any]) -> Iterator[bytes]:
    """What frames of zstd hold, one after another; `begin` gives what unpacks one. The library's own reader takes a file that
    is cut for one that ends."""
    packed, frame = raw.read(PACKED), None
    while packed:
        frame = frame or begin()
        yield frame.decompress(packed)
        packed = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
        packed = packed or raw.read(PACKED)
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")
