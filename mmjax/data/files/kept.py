"""What a source works out once and finds again the next time: indices of its files, in a cache folder of this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import filelock

from mmjax.core.errors import UserError
from mmjax.data.files import remote
from mmjax.data.splits import encoded


def folder() -> Path:
    """`MMJAX_CACHE`, else `mmjax` in the cache folder of the user."""
    own = os.environ.get("MMJAX_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmjax"


def made_once(kind: str, of: Iterable[str], make: Callable[[Path], None]) -> Path:
    """The folder that `make` has filled, now or in an earlier run; several processes wait for the one that makes it.

    It is written beside its place and moved there when it is whole, so that what lies there is whole.

    Args:
      kind: what it is and in which version: "tar-1".
      of: texts that say what it is made of: when one changes, it is made anew.
      make: fills an empty folder.

    Raises:
      UserError: the cache folder cannot be written, or its disk is full; a file that `make` could not read, by its name; and
        what `make` raises.
    """
    digest = hashlib.sha256()
    for part in of:
        digest.update(encoded(part) + b"\0")
    place = folder() / kind / digest.hexdigest()[:32]
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{place}.lock"):
            if not place.is_dir():
                _make(place, make)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, None)  # numpy says without a number that it could not write all
        if not full and not _below(error.filename, place.parent):  # what `make` read
            if error.filename is None:
                raise
            raise UserError(f"{os.fsdecode(error.filename)}: {error.strerror}") from None
        tip = "free some of its disk" if full else "make it writable"
        raise UserError(f"{place.parent}: {error.strerror or error}; {tip}, or set MMJAX_CACHE to another folder") from None
    return place


def _below(file: str | bytes | None, parent: Path) -> bool:
    """Whether a file, as an error names it, is in the folder of this kind, or a folder above that, which could not be made."""
    if file is None:
        return False
    path = Path(os.fsdecode(file)).absolute()
    own = parent.absolute()
    return own in path.parents or path == own or path in own.parents


def _make(place: Path, make: Callable[[Path], None]) -> None:
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        make(beside)
        beside.rename(place)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def identities(paths: Sequence[str]) -> list[str]:
    """For each file its path, its size in bytes and when it was last changed; of an address what `remote.stamps` says.

    Raises:
      UserError: a file that is not there; of an address also what `remote.asked` says.
    """
    if paths and all(map(remote.is_address, paths)):
        return [f"{path}\n{size}\n{mark}" for path, (size, mark) in zip(paths, remote.stamps(paths), strict=True)]
    found = []
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        found.append(f"{os.path.abspath(path)}\n{stat.st_size}\n{stat.st_mtime_ns}")
    return found
