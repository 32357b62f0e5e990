"""Files at an address, `gs://`, `s3://`, `https://` or any other protocol of fsspec: what is there, and bytes of it.

Nothing is kept here, no connection either: fsspec has those, a set for each process and thread, so that a fork or a worker
process finds its own. What fails is tried again a few times. Formats: https://filesystem-spec.readthedocs.io.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mmjax.core.errors import DEFECTS, UnreachableError, UserError

T = TypeVar("T")
Stamp = tuple[int, int]  # size in bytes, and a number that changes with the file

WAITS = (0.5, 2.0, 8.0)  # seconds before each further attempt
PATIENCE = 30.0  # seconds after which no further attempt begins: those of the clients try again of themselves
SILENCE = 60.0  # seconds without a byte after which a connection is given up
THREADS = 16  # that ask for files which no listing tells of
FEW = 8  # files of one folder that are asked for one by one rather than listed
PACKAGES = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # protocol -> the extra of this package
WEB = ("http", "https")  # which cannot be listed
# Protocol -> the field of its client that sets up a session of aiohttp.
CLIENTS = {"gs": "session_kwargs", "gcs": "session_kwargs", "http": "client_kwargs", "https": "client_kwargs"}
# What changes with a file, the surest first: a listing and a question about one file may know different ones of the later.
MARKS = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified", "created")
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*)://")


def is_address(path: Any) -> bool:
    """Whether a path is an address rather than that of a file on a disk."""
    return isinstance(path, str) and _ADDRESS.match(path) is not None


def joined(root: str, path: str) -> str:
    """A path below a root, either of which may be an address; a path that is an address, or absolute, is itself."""
    return path if is_address(path) else os.path.join(root, path)


def file_bytes(root: str, path: str) -> bytes:
    """What a file below a root holds, on a disk or at an address. Raises OSError; of an address what `asked` raises."""
    place = joined(root, path)
    return content(place) if is_address(place) else Path(place).read_bytes()


def parent(path: str) -> str:
    """The folder of a path or an address; "" for one in the working folder."""
    found = os.path.dirname(path)
    return f"{found}//" if found.endswith(":") and is_address(path) else found


def has_pattern(address: str) -> bool:
    """Whether an address names files by `*`, `?` or `[...]`. On the web `?` and `[` mean something else.

    Raises:
      UserError: a `*` on the web, where nothing can be listed.
    """
    if address.partition(":")[0] in WEB:
        if "*" in address:
            raise UserError(f"{address}: nothing can be listed at such an address: name the files, as {{000..099}} does")
        return False
    return re.search(r"[*?[]", address) is not None


def asked(address: str, act: Callable[[Any, str], T]) -> T:
    """`act(file system, path there)`, tried again where storage fails.

    Raises:
      FileNotFoundError: there is no such file; its `filename` is the address.
      UserError: the protocol is unknown, or the package that it needs is not installed.
      UnreachableError: storage has failed at every attempt, or permission is denied.
    """
    began = time.monotonic()
    for wait in (*WAITS, None):
        try:
            return act(*_opened(address))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(errno.ENOENT, "no such file", address) from None
        except (*DEFECTS, UserError, MemoryError):
            raise
        except Exception as error:  # each kind of storage has errors of its own
            if wait is None or time.monotonic() - began > PATIENCE or isinstance(error, PermissionError):
                said = " ".join(f"{error}".split())[:200] or type(error).__name__
                raise UnreachableError(f"{address} cannot be read: {said} ({type(error).__name__})") from None
            time.sleep(wait)
    raise AssertionError


def content(address: str) -> bytes:
    """All bytes of a file. Raises as `asked` does."""
    return asked(address, lambda storage, path: storage.cat_file(path))


def ranged(address: str, place: int, count: int, size: int) -> bytes:
    """`count` bytes of a file of `size` bytes from a place on, fewer at its end. Raises as `asked` does."""
    count = min(count, size - place)
    if count <= 0:
        return b""

    def read(storage: Any, path: str) -> bytes:
        found = storage.cat_file(path, start=place, end=place + count)
        if len(found) == size:  # from a server that knows no ranges
            found = found[place : place + count]
        if len(found) != count:
            raise OSError(f"{len(found)} bytes came of the {count} from byte {place} on")
        return found

    return asked(address, read)


def stamps(addresses: Sequence[str]) -> list[Stamp]:
    """The size of each file and a number that changes with it: of its etag, else of the time of its last change.

    Raises:
      UserError: one that is not there, or whose size is not said; and as `asked` does.
    """
    found: dict[str, dict[str, Any]] = {}
    folders: dict[str, list[str]] = {}
    for address in addresses:
        folders.setdefault(parent(address), []).append(address)
    for folder, files in folders.items():
        if len(files) > FEW and folder.partition(":")[0] not in WEB:
            found |= _listed(folder, files)
    rest = [address for address in addresses if address not in found]
    with ThreadPoolExecutor(THREADS) as pool:
        found |= zip(rest, pool.map(_about, rest), strict=True)
    return [_stamp(address, found[address]) for address in addresses]


def matching(pattern: str) -> list[str]:
    """The addresses of the files that a pattern names, sorted; hidden ones are passed over, as on a disk."""

    def look(storage: Any, path: str) -> list[str]:
        storage.invalidate_cache()
        found = storage.glob(path, detail=True)
        return [storage.unstrip_protocol(name) for name, about in found.items() if about["type"] == "file"]

    return sorted(one for one in _or_none(pattern, look) if not os.path.basename(one).startswith("."))


def below(folder: str, suffix: str) -> list[str]:
    """The addresses of the files with a suffix in a folder, at any depth, sorted; of a file its own address."""

    def look(storage: Any, path: str) -> list[str]:
        storage.invalidate_cache()
        found = storage.find(path, detail=True)
        return [
            storage.unstrip_protocol(name)
            for name, about in found.items()
            if about["type"] == "file" and (name.endswith(suffix) or name == path)
        ]

    return sorted(_or_none(folder, look))


class RemoteFile(io.RawIOBase):
    """A file at an address, of which only what is asked for is read. Raises as `asked` and `stamps` do."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.place = address, 0
        self.size = stamps([address])[0][0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        found = ranged(self.address, self.place, len(buffer), self.size)
        buffer[: len(found)] = found
        self.place += len(found)
        return len(found)


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address and the path there."""
    from fsspec.core import url_to_fs  # with transformers; only those who name an address need it
    from fsspec.registry import get_filesystem_class

    protocol = address.partition(":")[0]
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        extra = PACKAGES.get(protocol)
        tip = f"pip install 'mmjax[{extra}]'" if extra else " ".join(str(error).split())
        raise UserError(f"{address}: what opens {protocol}:// is not installed: {tip}") from None
    except ValueError:
        raise UserError(f"{address}: {protocol}:// is no protocol that fsspec knows, as gs:// and s3:// are") from None
    return url_to_fs(address, **_patient(protocol))


def _patient(protocol: str) -> dict[str, Any]:
    """What has a client that waits for 5 minutes, and again as often as it tries, give up a connection that says nothing.

    Those of S3 do after 15 s. What the user has set for the client in fsspec's configuration stays.
    """
    field = CLIENTS.get(protocol)
    if field is None:
        return {}
    import aiohttp  # which these clients are made of
    from fsspec.config import conf

    own = {**conf.get(protocol, {}), **(conf.get("gcs", {}) if protocol == "gs" else {})}.get(field, {})
    return {field: {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE), **own}}


def _or_none(address: str, look: Callable[[Any, str], list[str]]) -> list[str]:
    try:
        return asked(address, look)
    except FileNotFoundError:
        return []


def _listed(folder: str, addresses: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a listing says of those files that it has."""

    def look(storage: Any, path: str) -> dict[str, dict[str, Any]]:
        storage.invalidate_cache()
        there = {entry["name"]: entry for entry in storage.ls(path, detail=True)}
        names = {address: storage._strip_protocol(address) for address in addresses}
        return {address: there[name] for address, name in names.items() if name in there}

    try:
        return asked(folder, look)
    except FileNotFoundError:
        return {}


def _about(address: str) -> dict[str, Any]:
    def look(storage: Any, path: str) -> dict[str, Any]:
        storage.invalidate_cache()  # of listings: what they knew may be old
        return storage.info(path)

    try:
        return asked(address, look)
    except FileNotFoundError:
        raise UserError(f"{address}: no such file") from None


def _stamp(address: str, about: dict[str, Any]) -> Stamp:
    if about.get("type", "file") != "file":
        raise UserError(f"{address} is a folder: name the files in it")
    if about.get("size") is None:
        raise UserError(f"{address}: the server does not say how large it is, which reading it in any order takes")
    mark = next((str(about[key]) for key in MARKS if about.get(key) is not None), "")
    return int(about["size"]), int.from_bytes(hashlib.blake2b(mark.encode(), digest_size=7).digest(), "big")


def inside(value: Any) -> Any:
    """Of what HuggingFace's `Image`, `Audio` and `Video` hold, `{"bytes", "path"}`, the bytes, without any the path; any other
    value itself."""
    if not isinstance(value, Mapping):
        return value
    return value.get("path") if value.get("bytes") is None else value["bytes"]
