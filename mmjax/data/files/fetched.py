"""Files at an address, as files of this machine: fetched whole when one is first needed, and kept in a folder of bounded size.

Any number of processes and threads share the folder. A file is fetched under a name of its own, with a lock on it, and gets its
place when it is whole; those that were not used for longest go when room is needed. What somebody reads may go too: on Linux a
file that is open or mapped stays readable when its name is gone, and its disk is given back when it is closed. The name of a
file is a hash of its address, size and stamp, so one that has changed is another.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import filelock

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data.files import kept, remote
from mmjax.data.files.remote import Stamp, is_address
from mmjax.data.types import BadRecordError

try:
    import fcntl
except ImportError:  # on Windows: files of a disk need none of it
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

GIGABYTES = "MMJAX_CACHE_GB"
DEFAULT = 50.0
CHUNK = 1 << 25  # bytes that are asked for at once
ATTEMPTS = 20  # to open a file before others have made it go
WAIT = 0.05  # seconds between looks whether there is room
AGAIN = 60.0  # seconds before what could not be fetched is asked for again
PART = ".part"
SKIPPED = 1 << 22  # bytes of a file that a request has to spare to be worth it
TRIED = 8  # requests before that is judged

_failed: dict[str, tuple[float, str]] = {}


def limit() -> int:
    """Bytes that the folder holds at most: `MMJAX_CACHE_GB`, else 50 GB. Raises `UserError` for what is no size."""
    said = os.environ.get(GIGABYTES, "")
    try:
        found = float(said) if said else DEFAULT
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise UserError(f"{GIGABYTES}={said!r}: give a number of gigabytes above 0")
    return int(found * 1e9)


def folder() -> Path:
    """Where files lie."""
    return kept.folder() / "fetched"


def check_sizes(paths: Sequence[str], stamps: Sequence[tuple[int, ...]]) -> None:
    """Raise `UserError` for a file at an address that the folder cannot hold."""
    for path, stamp in zip(paths, stamps, strict=True):
        if is_address(path) and stamp[0] > limit():
            raise UserError(
                f"{path} has {stamp[0] / 1e9:.3g} GB, and files are fetched whole into {folder()}, which holds "
                f"{limit() / 1e9:.3g}: set {GIGABYTES} higher, or write smaller files"
            )


def used(path: str, stamp: tuple[int, ...], act: Callable[[str], T]) -> T:
    """`act` with the path of a file on this machine, which opens it: `path` itself, or the copy of what is at that address.

    Args:
      stamp: what `remote.stamps` said of it when the run looked at it; of no meaning for a file of a disk.

    Raises:
      BadRecordError: it is gone. UnreachableError: it cannot be fetched at any attempt.
      UserError: it has changed; there is no room for it, on the disk or in the bound; what `act` raises.
    """
    if not is_address(path):
        return act(path)
    for _ in range(ATTEMPTS):
        place = _whole(path, (stamp[0], stamp[1]))
        try:
            return act(str(place))
        except Exception:
            if place.exists():
                raise
    raise UserError(f"{folder()}: {path} went before it could be opened, {ATTEMPTS} times: set {GIGABYTES} higher")


def still_here(path: str, stamp: tuple[int, ...]) -> bool:
    """Whether a file is on this machine; the copy of one at an address now is the one used last."""
    return not is_address(path) or _touched(_place(path, (stamp[0], stamp[1])))


def is_kept(path: str, stamp: tuple[int, ...]) -> bool:
    """The same, without its being used."""
    return not is_address(path) or _place(path, (stamp[0], stamp[1])).exists()


@contextlib.contextmanager
def as_record(where: str) -> Iterator[None]:
    """Make a `BadRecordError` of a file that cannot be fetched, which another record can stand in for."""
    try:
        yield
    except UnreachableError as error:
        raise BadRecordError(where, str(error)) from error


class Sparing:
    """Bytes of a file at an address, for one who reads some from its start to its end: by ranges where these leave out most of
    it, and otherwise of the whole file, fetched."""

    def __init__(self, address: str, stamp: Stamp) -> None:
        self._address, self._stamp, self._requests, self._file = address, stamp, 0, -1

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def __call__(self, place: int, count: int) -> bytes:
        """As `tar.Read`. Raises `UserError` where it cannot be read."""
        self._requests += 1
        try:
            if self._file < 0 and self._requests > TRIED and place < self._requests * SKIPPED:
                self._file = used(self._address, self._stamp, lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            if self._file < 0:
                return remote.ranged(self._address, place, count, self._stamp[0])
            return os.pread(self._file, count, place)
        except (BadRecordError, FileNotFoundError):
            raise UserError(f"{self._address}: no such file") from None


def _place(address: str, stamp: Stamp) -> Path:
    told = f"{address}\0{stamp[0]}\0{stamp[1]}".encode("utf-8", "surrogateescape")
    return folder() / hashlib.sha256(told).hexdigest()[:32]


def _touched(place: Path) -> bool:
    """Whether a file is there; it is now the one used last."""
    try:
        os.utime(place)
    except FileNotFoundError:
        return False
    return True


def _whole(address: str, stamp: Stamp) -> Path:
    """The copy of a file, which is fetched where there is none."""
    place = _place(address, stamp)
    if _touched(place):
        return place
    since, said = _failed.get(address, (0.0, ""))
    if said and time.monotonic() < since + AGAIN:  # each record of it would wait for all attempts
        raise UnreachableError(said)
    if fcntl is None:
        raise UserError(f"{address}: files at an address are fetched on Linux and macOS alone, whose locks processes share")
    check_sizes([address], [stamp])
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _fetched(address, stamp, place)
    except UnreachableError as error:
        _failed[address] = time.monotonic(), str(error)
        raise
    except OSError as error:
        if error.filename == address:
            raise BadRecordError(address, "no such file") from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        tip = f"free some of its disk, or set {GIGABYTES} lower" if full else "make it writable"
        raise UserError(f"{place.parent}: {error.strerror}; {tip}, or set MMJAX_CACHE to another folder") from None
    return place


def _fetched(address: str, stamp: Stamp, place: Path) -> None:
    part = place.with_name(place.name + PART)
    held = _begun(part, place)
    if held is None:
        return
    try:
        _reserve(held, stamp[0])
        _copy(address, stamp, held)
        os.fsync(held)  # what has its place is whole, also after the machine has failed
        part.rename(place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        _let_go(held)


def _begun(part: Path, place: Path) -> int | None:
    """A descriptor of the file to write, which this thread alone has locked; None where another has finished it meanwhile."""
    while True:
        held = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(held, fcntl.LOCK_EX)
        mine = _is(held, part)
        if _touched(place):
            if mine:
                part.unlink()
            _let_go(held)
            return None
        if mine:
            return held
        _let_go(held)  # who had it before has given up, or it was swept away before it was locked


def _is(held: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), os.stat(path))
    except FileNotFoundError:
        return False


def _let_go(held: int) -> None:
    fcntl.flock(held, fcntl.LOCK_UN)  # by name: a process that was forked meanwhile has the descriptor too
    os.close(held)


def _reserve(held: int, size: int) -> None:
    """Wait for room, and take it: a file that is being fetched counts with all its bytes from the start."""
    while True:
        with filelock.FileLock(folder() / ".lock"):
            if _room(size):
                os.ftruncate(held, size)
                return
        time.sleep(WAIT)


def _room(size: int) -> bool:
    """Whether so many bytes fit; for this, files go that were not used for longest. False where others are being fetched that
    leave too little: those end, and can go then."""
    most, busy, whole = limit(), 0, []
    for entry in os.scandir(folder()):
        with contextlib.suppress(FileNotFoundError):  # it was given up, or has got its place
            stat = entry.stat()
            if entry.name.endswith(PART):
                busy += 0 if _swept(Path(entry.path)) else stat.st_size
            elif entry.name != ".lock":
                whole.append((stat.st_mtime_ns, entry.path, stat.st_size))
    if busy + size > most:
        return False
    total = busy + size + sum(one[2] for one in whole)
    for _, path, own in sorted(whole):
        if total <= most:
            break
        Path(path).unlink(missing_ok=True)
        total -= own
    return True


def _swept(part: Path) -> bool:
    """Whether a file that was being fetched by a process that is no more was removed."""
    held = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return False
    if _is(held, part):
        part.unlink()
    _let_go(held)
    return True


def _copy(address: str, stamp: Stamp, held: int) -> None:
    size = stamp[0]
    try:
        for place in range(0, size, CHUNK):
            waiting: Any = memoryview(remote.ranged(address, place, CHUNK, size))
            while waiting:
                count = os.pwrite(held, waiting, place)
                place, waiting = place + count, waiting[count:]
    except UnreachableError:
        check_same(address, stamp)  # one that is shorter now has no such bytes
        raise
    check_same(address, stamp)


def check_same(address: str, stamp: Stamp) -> None:
    """Raise `UserError` for a file that is not the one that the run looked at."""
    now = remote.stamps([address])[0]
    if now != stamp:
        how = f"it has {now[0]} bytes and had {stamp[0]}" if now[0] != stamp[0] else "its etag or time has changed"
        raise UserError(f"{address} has changed since the run looked at it ({how}): start again to read it anew")
