"""Which examples tar files hold and where: an index of 12 bytes an example, made once and mapped into memory.

An example is a run of members whose names share all up to the first dot of the base name, as the webdataset library has it
(https://github.com/webdataset/webdataset, `base_plus_ext` and `group_by_keys`): `a/12.jpg` and `a/12.seg.PNG` are the fields
`jpg` and `seg.png` of the example `a/12`.
"""

from __future__ import annotations

import array
import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.files.fetched import Sparing
from mmjax.data.files.kept import made_once
from mmjax.data.files.open_files import OpenFiles
from mmjax.data.files.remote import is_address
from mmjax.data.files.tar import BLOCK, Read, TarError, compression, members
from mmjax.data.images import printable
from mmjax.data.splits import fingerprint, place_of
from mmjax.data.types import BadRecordError

THREADS = 8  # that read headers: they wait for the disk
WINDOW = 1 << 14  # bytes that are read with a header
AT_ONCE = 1 << 22  # bytes up to which a whole example is read at once
LARGEST = BLOCK << 32  # bytes of a shard, whose blocks are counted in 32 bits
ARRAYS = ("starts", "keys", "counts", "ends", "twice")
NAMED = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)  # webdataset's, but for ".name.jpg", which it takes for a folder's
META = re.compile(r"__[^/]*__($|/)")  # webdataset's own notes

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """Examples of tar files by number, in the order of the files and of the members in them.

    Attributes:
      files: the tar files.
      folder: where the index lies.
      fields: extension -> how many examples have it.
      digest: changes with the examples, with their order and with what parts them into files, not with where these lie.
      starts: uint32 [N], the block of 512 bytes at which an example begins.
      keys: uint64 [N], `splits.place_of` its key.
      counts: int64 [S], how many examples each file has.
      ends: int64 [S], the byte where the last example of each file ends.
      twice: int64, increasing: the examples whose key another one of their file has.
      bounds: int64 [S + 1], the first example of each file, and how many there are.
    """

    files: OpenFiles
    folder: Path
    fields: dict[str, int]
    digest: str
    starts: np.ndarray
    keys: np.ndarray
    counts: np.ndarray
    ends: np.ndarray
    twice: np.ndarray
    bounds: np.ndarray

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return mapped, (self.files, self.folder)

    def __len__(self) -> int:
        return len(self.starts)

    def shard(self, index: int) -> int:
        """The number of the file that holds an example."""
        return int(np.searchsorted(self.bounds, index, "right")) - 1

    def example(self, index: int, wanted: Callable[[str], bool], whole: bool) -> tuple[str, dict[str, bytes]]:
        """The key of an example, and extension -> content of those members that are wanted.

        Args:
          whole: most of its bytes are wanted: they are read at once, if they are not too many.

        Raises:
          BadRecordError: the file is gone or unreadable, an extension stands twice, or the key stands in two places.
          UserError: the file has changed.
        """
        shard = self.shard(index)
        where = path = printable(self.files.paths[shard])
        where += f" example {index - int(self.bounds[shard])}"
        start = int(self.starts[index]) * BLOCK
        last = index + 1 == self.bounds[shard + 1]
        end = int(self.ends[shard]) if last else int(self.starts[index + 1]) * BLOCK
        window = end - start if whole and end - start <= AT_ONCE else WINDOW
        read = buffered(lambda place, count: self.files.read(shard, place, count, where), window)
        key, found = None, {}
        try:
            for member in members(read, start, end, whole=False):
                named = parted(member.name)
                if named is None:
                    continue
                if key is None:
                    key, where = named[0], f"{path} {printable(named[0])}"
                if named[0] != key:
                    raise BadRecordError(where, f"{named[0]!r} stands where the index has no other example")
                if named[1] in found:
                    raise BadRecordError(where, f"it has {named[1]!r} more than once")
                found[named[1]] = read(member.data, member.size) if wanted(named[1]) else None
        except TarError as error:
            raise BadRecordError(where, str(error)) from None
        if key is None:
            raise BadRecordError(where, "nothing stands where the index has it")
        at = int(np.searchsorted(self.twice, index))
        if at < len(self.twice) and self.twice[at] == index:
            raise BadRecordError(where, "its key stands in more than one place of the shard: sort the members by their names")
        return key, {field: content for field, content in found.items() if content is not None}


def parted(name: str) -> tuple[str, str] | None:
    """The key of a member and its extension in lower case; None for what is of no example: no extension, hidden, webdataset's
    own notes."""
    found = None if META.match(name) else NAMED.fullmatch(name)
    return None if found is None else (found[1], found[2].lower())


def buffered(read: Read, window: int) -> Read:
    """The same bytes, of which `window` are read at once and kept."""
    at, held = 0, b""

    def get(place: int, count: int) -> bytes:
        nonlocal at, held
        if place < at or place + count > at + len(held):
            if count > window:
                return read(place, count)
            at, held = place, read(place, window)
        return held[place - at : place - at + count]

    return get


def opened(files: OpenFiles) -> Shards:
    """The examples of tar files, from the index of an earlier run or one that is made now by reading all headers.

    Raises:
      UserError: a file that is no tar, is compressed or cut, or holds what is refused, by its name and that of the member; or
        the cache folder cannot be written.
    """
    folder = made_once("shards-1", files.said(), lambda folder: _index(files, folder))
    return mapped(files, folder)


def mapped(files: OpenFiles, folder: Path) -> Shards:
    """The examples of tar files, by their index in a folder. Raises `UserError` where that is gone."""
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        about = json.loads((folder / "about.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: the index of the shards is gone or broken ({error}): delete the folder and start again"
        ) from None
    bounds = np.concatenate([[0], np.cumsum(arrays["counts"], dtype=np.int64)])
    return Shards(files, folder, about["fields"], about["digest"], **arrays, bounds=bounds)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What one file holds: as `Shards` has it, of this file alone."""

    starts: np.ndarray
    keys: np.ndarray
    end: int
    fields: Counter[str]
    left_out: int
    first_out: str


def _index(files: OpenFiles, folder: Path) -> None:
    """Read the headers of all files, several files at once, and write what they hold."""
    log.info("reading the headers of %d shard(s), %.1f GB", len(files.paths), sum(size for size, _ in files.stamps) / 1e9)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda number: _scan(files, number), range(len(files.paths))))
    counts = np.array([len(one.starts) for one in found], np.int64)
    starts, keys = (np.concatenate([getattr(one, name) for one in found]) for name in ("starts", "keys"))
    if not len(starts):
        raise UserError(f"{printable(files.paths[0])}: no example in it or in any other file: members are named KEY.EXTENSION")
    ends = np.array([one.end for one in found], np.int64)
    twice = [_twice(one.keys) + before for one, before in zip(found, np.cumsum(counts) - counts, strict=True)]
    arrays = {"starts": starts, "keys": keys, "counts": counts, "ends": ends, "twice": np.concatenate(twice)}
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    fields = sum((one.fields for one in found), Counter())
    digest = fingerprint(array.tobytes() for array in (counts, keys, starts, ends))
    (folder / "about.json").write_text(json.dumps({"fields": dict(fields.most_common()), "digest": digest}))
    if left_out := sum(one.left_out for one in found):
        first = next(one.first_out for one in found if one.left_out)
        log.warning("%d member(s) of the shards are of no example, having no extension or being hidden: %s", left_out, first)


def _scan(files: OpenFiles, number: int) -> _Found:
    path, (size, _) = printable(files.paths[number]), files.stamps[number]
    if is_address(files.paths[number]):
        read = buffered(Sparing(files.paths[number], files.stamps[number]), WINDOW)
    else:
        read = buffered(lambda place, count: _for_index(files, number, place, count), WINDOW)
    packed = compression(read(0, 8))
    if packed:
        way = f"unpack it ({packed[1]}), or read it by Streamed"
        raise UserError(f"{path} is compressed with {packed[0]}, which takes reading from the start: {way}")
    if size > LARGEST or not size:
        raise UserError(f"{path} has {size} bytes, and a shard has some and at most {LARGEST}")
    starts, keys, fields = array.array("I"), array.array("Q"), Counter[str]()
    left_out, first_out, end, key, own = 0, "", 0, None, set[str]()
    try:
        for member in members(read, 0, size):
            named = parted(member.name)
            if named is None:
                if not META.match(member.name):
                    left_out, first_out = left_out + 1, first_out or f"{path} {printable(member.name)}"
                continue
            if named[0] != key:
                key, own = named[0], set()
                starts.append(member.start // BLOCK)
                keys.append(place_of(key))
            end = member.end
            fields[named[1]] += named[1] not in own
            own.add(named[1])
    except TarError as error:
        raise UserError(f"{path}: {error}") from None
    return _Found(np.array(starts, np.uint32), np.array(keys, np.uint64), end, fields, left_out, first_out)


def _for_index(files: OpenFiles, number: int, place: int, count: int) -> bytes:
    try:
        return files.read(number, place, count, printable(files.paths[number]))
    except BadRecordError as error:
        raise UserError(str(error)) from None


def _twice(keys: np.ndarray) -> np.ndarray:
    """The places of the values that are there more than once, increasing."""
    _, number, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[number] > 1)
