"""Many files read at any place by any thread: few are open at once, and one that has changed is noticed."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data.files import fetched, kept
from mmjax.data.files.remote import is_address
from mmjax.data.images import printable
from mmjax.data.types import BadRecordError

MOST = 64  # files that are open at once, in each process


class OpenFiles:
    """Files by number; safe to share between threads, to pickle and to carry through a fork.

    Attributes:
      paths: of the files.
      stamps: of each its size in bytes and when it was last changed, in nanoseconds, as they were when it was looked at; of one
        at an address what `remote.stamps` said.
    """

    def __init__(self, paths: Sequence[str], stamps: Sequence[tuple[int, int]] | None = None) -> None:
        """Look at each file, where its `stamps` are not given. Raises `UserError` for one that is not there."""
        self.paths = tuple(paths)
        self.stamps = _stamps(paths) if stamps is None else tuple(stamps)
        self._root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        self._renew()

    def said(self) -> Iterator[str]:
        """Of each file what says whether it is still the same: its path, its size and when it was changed."""
        for path, (size, changed) in zip(self.paths, self.stamps, strict=True):
            yield f"{path if is_address(path) else os.path.abspath(path)}\n{size}\n{changed}"

    def name(self, number: int) -> str:
        """The path of a file below the folder that holds all of them, with forward slashes: the same on every machine, and the
        same at an address (which `os.path` takes for a path of the working folder)."""
        return os.path.relpath(self.paths[number], self._root).replace(os.sep, "/")

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "stamps": self.stamps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, number: int, place: int, count: int, where: str) -> bytes:
        """`count` bytes from a place on, fewer at the end of the file.

        Args:
          where: names the example, for complaints.

        Raises:
          BadRecordError: the file is gone, or cannot be read.
          UserError: it has changed since it was looked at, or too many files are open.
        """
        with self._named(number, where):
            file = self._open(number)
            if not is_address(self.paths[number]):
                self._check(number, os.fstat(file.descriptor))
            found = b""
            while len(found) < count and (more := os.pread(file.descriptor, count - len(found), place + len(found))):
                found += more
            return found

    @contextlib.contextmanager
    def _named(self, number: int, where: str) -> Iterator[None]:
        try:
            with fetched.as_record(where):
                yield
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise UserError(f"{printable(self.paths[number])}: {error.strerror}: raise the limit with ulimit -n") from None
            raise BadRecordError(where, f"its file: {error.strerror}") from None

    def _check(self, number: int, stat: os.stat_result) -> None:
        """Raise `UserError` for a file that has changed: what was found in it is worth nothing. Each time: a microsecond."""
        size, was = stat.st_size, self.stamps[number][0]
        if (size, stat.st_mtime_ns) != self.stamps[number]:
            now = f"it has {size} bytes and had {was}" if size != was else "its time has changed"
            path = printable(self.paths[number])
            raise UserError(f"{path} has changed since the run looked at it ({now}): start again to read it anew")

    def _renew(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._files: OrderedDict[int, Any] = OrderedDict()

    def _opened(self, path: str) -> Any:
        """What is kept of an open file, and closes it when nobody holds it any more."""
        return _File(path)

    def _open(self, number: int) -> Any:
        """An open file, which stays open as long as somebody holds it, though others may be opened in its place."""
        if self._process != os.getpid():  # after a fork: another thread may have held the lock
            self._renew()
        path, stamp = self.paths[number], self.stamps[number]
        with self._lock:
            if number in self._files and fetched.still_here(path, stamp):
                self._files.move_to_end(number)
                return self._files[number]
        opened = fetched.used(path, stamp, self._opened)  # which may take a minute, that other files need not wait for
        with self._lock:
            if is_address(path):  # what is open of a file that has gone from the cache folder still takes its disk
                for other in [one for one in self._files if not fetched.is_kept(self.paths[one], self.stamps[one])]:
                    del self._files[other]
            self._files[number] = opened
            while len(self._files) > MOST:
                self._files.popitem(last=False)
            return opened


class _File:
    """A descriptor that is closed when nobody holds it any more: closing it under a reader would have it read another file."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _stamps(paths: Sequence[str]) -> tuple[tuple[int, int], ...]:
    if not any(map(is_address, paths)):
        return tuple(map(_stamp, paths))
    stamps = [tuple(map(int, one.split("\n")[-2:])) for one in kept.identities(paths)]
    fetched.check_sizes(paths, stamps)
    return tuple((stamp[0], stamp[1]) for stamp in stamps)


def _stamp(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{printable(path)}: {error.strerror}") from None
    return stat.st_size, stat.st_mtime_ns
