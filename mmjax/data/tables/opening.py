"""From files of columns to records: what all of them say is read once, and kept in the cache folder."""

from __future__ import annotations

import abc
import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data.fields import KINDS, Fields
from mmjax.data.files import fetched, kept
from mmjax.data.files.remote import is_address
from mmjax.data.once import warn_once
from mmjax.data.splits import fingerprint
from mmjax.data.tables import schema
from mmjax.data.tables.blocks import BlockRecords, Blocks, keys_of
from mmjax.data.tables.schema import Column
from mmjax.data.types import BadRecordError

log = logging.getLogger(__name__)


class Opening(abc.ABC):
    """Files of one source, on their way to records; a format says how its files are read.

    Attributes:
      paths: of the files.
      below: the same below the folder of the data, with forward slashes.
      stats: size in bytes and time of the last change of each; of one at an address what `remote.stamps` says.
      columns: field -> column of the first file, of the fields that records are made of.
    """

    version: ClassVar[str]  # of what lies in the cache folder

    def __init__(
        self, spec: Fields, root: str, paths: Sequence[str], features: Mapping[str, Any] | None = None, mapping: Any = None
    ) -> None:
        """Look at the first file.

        Args:
          features: HuggingFace's, where something else than the files says them.
          mapping: int64 [N], the numbers of the rows that are meant, in this order; None for all.

        Raises:
          UserError: it cannot be read, or its columns are not what `spec` asks for.
        """
        self.spec, self.source, self.root, self.paths = spec, type(spec).__name__, root, tuple(paths)
        self.identities = kept.identities(paths)
        self.stats = tuple(tuple(map(int, one.split("\n")[-2:])) for one in self.identities)
        fetched.check_sizes(self.paths, self.stats)
        self.below = tuple(Path(os.path.relpath(path, root or ".")).as_posix() for path in paths)
        self.mapping = mapping
        self._features = features
        own = self.schema_of(paths[0])
        with opening(self.source, paths[0]):
            self._there = schema.fields_of(paths[0], own)
        self._found = spec.found(self._there)
        self.columns = schema.wanted(self.source, paths[0], self._there, {**self._found, **spec.fields})
        self.label = self.columns.get(self._found.get("label", ""))
        self._names = self._names_of(paths[0], own)

    @abc.abstractmethod
    def schema_of(self, path: str) -> Any:
        """pyarrow's schema of a file. Raises `UserError` where it cannot be read."""

    @abc.abstractmethod
    def scan(self, number: int, path: str, strings: Column | None) -> tuple[list[tuple[int, ...]], bytes, set[Any]]:
        """What a file holds: a row of whole numbers for each of its blocks, bytes that change with what is in it, and the
        values of the column `strings`. Raises `UserError` where it cannot be read."""

    @abc.abstractmethod
    def held(self, layout: np.ndarray) -> Blocks:
        """What reads the blocks; `layout`: what `scan` gave, over all files."""

    def hindrance(self, layout: np.ndarray) -> str:
        """What of the layout is to be said in the log; "" for nothing."""
        return ""

    def records(self) -> Any:
        """The rows of the split, a `BlockRecords`.

        Raises:
          UserError: a file that cannot be read or has other columns than the first, no rows at all or none in the split.
        """
        mapped = [] if self.mapping is None else [fingerprint([self.mapping.tobytes()])]
        folder = kept.made_once(self.version, [repr(self.spec), *self.identities, *mapped], self._index)
        layout = np.load(folder / "layout.npy")
        if hindrance := self.hindrance(layout):
            warn_once(log, "%s", hindrance)
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        places = np.load(folder / "places.npy") if (folder / "places.npy").exists() else self.mapping
        records = self._records(layout, tuple(about["names"]), places, about["digest"])
        if not len(records):
            rows = int(records.ends[-1]) if self.mapping is None else len(self.mapping)
            raise UserError(f"{self.source}.split={self.spec.split!r}: none of the {rows} rows are in it")
        return records

    def _index(self, folder: Path) -> None:
        strings = self.label if self.label and self.label.said == schema.STRING and not self.spec.names else None
        layout: list[tuple[int, ...]] = []
        digests, values = [], set()
        for number, path in enumerate(self.paths):
            self._check(path)
            blocks, digest, own = self.scan(number, path, strings)
            layout += blocks
            digests.append(digest)
            values |= own
        if not layout:
            raise UserError(f"{self.source}: the {len(self.paths)} file(s) in {self.root or '.'} have no rows")
        table = np.array(layout, np.int64)
        names = self._names or schema.names_among(values)
        all_rows = self._records(table, names, self.mapping, "")
        ends = (0, 0) if self.mapping is None or not len(self.mapping) else (self.mapping.min(), self.mapping.max())
        if not 0 <= ends[0] <= ends[1] < all_rows.ends[-1]:
            raise UserError(f"{self.source}: {self.root} has indices beyond the {all_rows.ends[-1]} rows of its files")
        places = self.spec.kept(keys_of(all_rows))
        if places is not None:
            np.save(folder / "places.npy", places if self.mapping is None else self.mapping[places])
        np.save(folder / "layout.npy", table)
        about = {"names": names, "digest": fingerprint(digests)}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")

    def _records(self, layout: np.ndarray, names: tuple[str, ...], places: np.ndarray | None, digest: str) -> BlockRecords:
        reading = self.spec.reading(self._found, names, self.root)
        return BlockRecords(self.held(layout), self.columns, reading, places, digest, repeated=self.mapping is not None)

    def _check(self, path: str) -> None:
        """Raise `UserError` for a file with other columns than the first, or other names of classes."""
        own = self.schema_of(path)
        with opening(self.source, path):
            there = schema.fields_of(path, own)
        schema.check_same(self.source, self.paths[0], self.columns, path, there)
        for kind in KINDS:
            field = getattr(self.spec, "pair_field" if kind == "text_pair" else f"{kind}_field")
            if field in there and field not in self._there:
                raise UserError(f"{self.source}: {self.paths[0]} has no column {field!r}, which {path} has")
        if self.label and self._names_of(path, own) != self._names:
            raise UserError(f"{self.source}: the classes of {self.label.field!r} in {path} are not those in {self.paths[0]}")

    def _names_of(self, path: str, own: Any) -> tuple[str, ...]:
        """The names of the classes that a file's schema says."""
        features = schema.features_of(path, own.metadata) if self._features is None else self._features
        return schema.class_names(features, self.label.field) if self.label else ()


def distinct(path: str, column: Any, meant: Column) -> Iterable[Any]:
    """The different values of a pyarrow column."""
    import pyarrow.compute as pc

    if meant.parts:
        return {meant.value(cell, path) for cell in column}
    return set(pc.unique(column).to_pylist())


def check_unchanged(path: str, stat: tuple[int, ...]) -> None:
    """Raise `BadRecordError` for a file that has not the size and the time of change any more; OSError where it is gone. One at
    an address is looked at when it is fetched."""
    if is_address(path):
        return
    now = os.stat(path)
    if (now.st_size, now.st_mtime_ns) != stat:
        raise BadRecordError(path, "the file was changed after it was opened")


@contextlib.contextmanager
def unreadable(path: str) -> Iterator[None]:
    """Make a `BadRecordError` of what pyarrow and the system say of a file."""
    import pyarrow as pa

    try:
        with fetched.as_record(path):
            yield
    except UserError:
        raise
    except FileNotFoundError:
        raise BadRecordError(path, "no such file") from None
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        raise BadRecordError(path, f"{' '.join(str(error).split())} ({type(error).__name__})") from None


@contextlib.contextmanager
def opening(source: str, path: str) -> Iterator[None]:
    """Make a `UserError` of the same, while a source is built."""
    try:
        with unreadable(path):
            yield
    except BadRecordError as error:
        if isinstance(error.__cause__, UnreachableError):
            raise error.__cause__ from None
        raise UserError(f"{source}: {path} is cut or no {source} file: {error.reason}") from None
