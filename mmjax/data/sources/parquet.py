"""Parquet files, read by random access: of a row its row group is decoded, and kept for a while."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.sources import kept, schema
from mmjax.data.sources.blocks import BlockRecords, files_at, keys_of
from mmjax.data.sources.fields import KINDS, Fields
from mmjax.data.sources.recent import Recent
from mmjax.data.sources.schema import Column
from mmjax.data.sources.splits import fingerprint
from mmjax.data.types import BadRecordError

WALKS = 4  # row groups that are read by pieces, held open at once
FOOTERS = 64_000_000  # bytes of footers that are held
BUFFER = 1 << 20  # bytes that are read at once of a column of a group that is read by pieces
VERSION = "parquet-1"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Parquet(Fields):
    """Rows of Parquet files, as HuggingFace's hub and most others hold data; only the columns that are asked for are read.

    An image is a struct of `bytes` and `path`, the bytes of a file, or a path below `root`; a list of strings in the text field
    is several captions; a list of numbers in `fields` is an array. "objects.bbox" reaches into a struct. Names of classes are
    those of HuggingFace's metadata or, of a column of strings, its sorted values in all files. A null is no class, NaN among
    numbers and None in other `fields`; as image, text or group it makes a record unreadable. With a split, rows of one image
    path stay together; other rows are told apart by their file and place.

    A row is found by decoding its row group. A group that is larger than `cache_mb` is decoded by pieces from its start, which
    is slow in random order and said once; write such files anew with `row_group_size`.

    Attributes:
      path: a file, a folder (all `.parquet` at any depth) or a pattern: "data/train-*.parquet".
      cache_mb: megabytes of decoded row groups to keep, in each process that reads.
    """

    path: str = setting(everyday=True, path=True)
    cache_mb: int = setting(least=1, default=512)

    def build(self) -> ParquetRecords:
        """Records with the keys that the files have.

        Raises:
          UserError: no file, one that is cut or no Parquet, a file with other columns than the first, a field named here that
            is not there or has a type that it cannot have, no rows at all or none in the split, a setting out of range.
        """
        check_ranges(self, "Parquet.")
        self.check_fields()
        root, paths = files_at("Parquet", self.path, ".parquet")
        identities = kept.identities(paths)
        opened = _Opened(self, root, paths, identities)
        folder = kept.made_once(VERSION, [repr(self), *identities], opened.index)
        records = opened.records(folder)
        if not len(records):
            raise UserError(f"Parquet.split={self.split!r}: none of the {int(records.ends[-1])} rows of {self.path} are in it")
        return records


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetRecords(BlockRecords):
    """Rows of one split."""

    def blocks(self) -> np.ndarray:
        """int64: how many records in a row come from one block, the row group or piece of one that is decoded at once."""
        if self.places is None:
            return self.held.rows
        counts = np.bincount(np.searchsorted(self.ends, self.places, side="right"), minlength=len(self.ends))
        return counts[counts > 0].astype(np.int64)


class _Opened:
    """Files on their way to records."""

    def __init__(self, spec: Parquet, root: str, paths: Sequence[str], identities: Sequence[str]) -> None:
        self.spec, self.root, self.paths = spec, root, tuple(paths)
        self.stats = tuple(tuple(map(int, one.split("\n")[-2:])) for one in identities)
        with opened(paths[0]) as file:
            own = file.schema_arrow
            self.there = schema.fields_of(paths[0], own)
            self.features = schema.features_of(paths[0], own.metadata)
        self.found = spec.found(self.there)
        wanted = {**self.found, **spec.fields}
        self.columns = schema.wanted("Parquet", paths[0], self.there, wanted)
        self.label = self.columns.get(self.found.get("label", ""))

    def index(self, folder: Path) -> None:
        """Read what all footers say; names of classes and the split as well."""
        limit = self.spec.cache_mb * 1_000_000
        blocks, digests, values = [], [], set()
        said = schema.class_names(self.features, self.label.field) if self.label else ()
        strings = self.label if self.label and self.label.said == schema.STRING and not self.spec.names else None
        for number, path in enumerate(self.paths):
            with opened(path) as file:
                self._check(path, file, said)
                digests.append(footer(path))
                for group in range(file.metadata.num_row_groups):
                    rows, size = _size(path, file, group, self.columns)
                    step = rows if size <= limit else max(1, int(rows * limit / 4 / size))
                    blocks += [(number, group, at, min(step, rows - at), rows, size) for at in range(0, rows, max(step, 1))]
                    if strings:
                        values |= _distinct(path, file, group, strings)
        if not blocks:
            raise UserError(f"Parquet.path={self.spec.path!r}: the {len(self.paths)} file(s) have no rows")
        table = np.array(blocks, np.int64)
        np.save(folder / "blocks.npy", table)
        names = said or schema.names_among(values)
        about = {"names": names, "digest": fingerprint(digests)}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
        places = self.spec.kept(keys_of(self._records(table, names, None, "")))
        if places is not None:
            np.save(folder / "places.npy", places)

    def records(self, folder: Path) -> ParquetRecords:
        """What the index says."""
        table = np.load(folder / "blocks.npy")
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        large = table[table[:, 3] < table[:, 4]]
        if len(large):
            log.warning(
                "Parquet.path=%r: %d row group(s) are larger than cache_mb=%d (up to %d MB) and are read by pieces, which is "
                "slow in random order; write the files anew with a smaller row_group_size, or give a larger cache_mb",
                *(self.spec.path, len(np.unique(large[:, :2], axis=0)), self.spec.cache_mb, int(large[:, 5].max() / 1e6)),
            )
        places = None if self.spec.split == "all" else np.load(folder / "places.npy")
        return self._records(table, tuple(about["names"]), places, about["digest"])

    def _records(self, table: np.ndarray, names: tuple[str, ...], places: np.ndarray | None, digest: str) -> ParquetRecords:
        below = tuple(Path(os.path.relpath(path, self.root or ".")).as_posix() for path in self.paths)
        groups = Groups(self.paths, below, self.stats, table, Recent(self.spec.cache_mb * 1_000_000))
        return ParquetRecords(groups, self.columns, self.spec.reading(self.found, names, self.root), places, digest)

    def _check(self, path: str, file: Any, said: tuple[str, ...]) -> None:
        there = schema.fields_of(path, file.schema_arrow)
        schema.check_same("Parquet", self.paths[0], self.columns, path, there)
        for kind in KINDS:
            field = getattr(self.spec, "pair_field" if kind == "text_pair" else f"{kind}_field")
            if field in there and field not in self.there:
                raise UserError(f"Parquet: {self.paths[0]} has no column {field!r}, which {path} has")
        if self.label:
            own = schema.class_names(schema.features_of(path, file.schema_arrow.metadata), self.label.field)
            if own != said:
                raise UserError(f"Parquet: the classes of {self.label.field!r} in {path} are not those in {self.paths[0]}")


class Groups:
    """The row groups of files, those that are too large in pieces; see `blocks.Blocks`."""

    def __init__(
        self,
        paths: tuple[str, ...],
        below: tuple[str, ...],
        stats: tuple[tuple[int, ...], ...],
        table: np.ndarray,
        recent: Recent,
    ) -> None:
        """`table`: int64 [blocks, 6], for each the file, the group, its first row there, rows, the group's rows and bytes."""
        self.paths, self.below, self.stats, self.layout, self.recent = paths, below, stats, table, recent
        self.rows = np.ascontiguousarray(table[:, 3])
        ends = np.cumsum(self.rows)
        first = np.searchsorted(table[:, 0], table[:, 0])  # of the same file: blocks lie in the order of files
        self._before = ends - self.rows - (ends - self.rows)[first]
        self._footers = Recent(FOOTERS)
        self._walks: dict[Any, tuple[Any, Iterator[Any], int]] = {}
        self._walking = threading.Lock()

    def __reduce__(self) -> tuple[type[Groups], tuple[Any, ...]]:
        return Groups, (self.paths, self.below, self.stats, self.layout, self.recent)

    def place(self, block: int, row: int) -> tuple[str, str, int]:
        file = int(self.layout[block, 0])
        return self.paths[file], self.below[file], int(self._before[block]) + row

    def table(self, block: int, columns: tuple[str, ...]) -> Any:
        return self.recent.get((block, columns), lambda: self._read(block, columns))

    def _read(self, block: int, columns: tuple[str, ...]) -> tuple[Any, int]:
        file, group, start, rows, whole, _ = map(int, self.layout[block])
        path = self.paths[file]
        with unreadable(path):
            stat = os.stat(path)
            if (stat.st_size, stat.st_mtime_ns) != self.stats[file]:
                raise BadRecordError(path, "the file was changed after it was opened")
            if rows == whole:
                with self._open(file) as parquet:
                    table = parquet.read_row_group(group, columns=list(columns), use_threads=False)
            else:
                table = self._piece(file, group, start, rows, columns)
            if table.num_rows != rows:
                raise BadRecordError(path, f"row group {group} has {table.num_rows} rows, and its footer says {rows}")
            return table, table.nbytes

    def _open(self, file: int, buffer: int = 0) -> Any:
        import pyarrow.parquet as pq

        path = self.paths[file]

        def read() -> tuple[Any, int]:
            metadata = pq.read_metadata(path)
            return metadata, metadata.serialized_size

        metadata = self._footers.get(file, read)
        return pq.ParquetFile(path, metadata=metadata, buffer_size=buffer, pre_buffer=False, page_checksum_verification=True)

    def _piece(self, file: int, group: int, start: int, rows: int, columns: tuple[str, ...]) -> Any:
        """Rows of a group, without decoding all of it at once: on from where the last piece ended, else from its start."""
        key = (file, group, columns)
        with self._walking:
            parquet, walk, at = self._walks.pop(key, (None, iter(()), start + 1))
            if at > start:
                _close(parquet)
                parquet = self._open(file, BUFFER)
                walk, at = _slices(parquet.iter_batches(rows, [group], list(columns), use_threads=False), rows), 0
            try:
                table = next(walk)
                while at < start:
                    at, table = at + table.num_rows, next(walk)
            except BaseException as error:
                _close(parquet)
                if isinstance(error, StopIteration):
                    raise BadRecordError(self.paths[file], f"row group {group} ends before row {start}") from None
                raise
            self._walks[key] = parquet, walk, at + table.num_rows
            while len(self._walks) > WALKS:
                _close(self._walks.pop(next(iter(self._walks)))[0])
        return table


def _close(parquet: Any) -> None:
    if parquet is not None:
        parquet.close(force=True)


def _slices(batches: Iterator[Any], rows: int) -> Iterator[Any]:
    """Tables of so many rows each, the last one what is left."""
    import pyarrow as pa

    waiting: list[Any] = []
    for batch in batches:
        waiting.append(batch)
        while sum(one.num_rows for one in waiting) >= rows:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, rows)
            waiting = table.slice(rows).to_batches()
    if waiting and any(one.num_rows for one in waiting):
        yield pa.Table.from_batches(waiting)


@contextlib.contextmanager
def unreadable(path: str) -> Iterator[None]:
    """Make a `BadRecordError` of what pyarrow and the system say of a file."""
    import pyarrow as pa

    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise BadRecordError(path, "no such file") from None
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        raise BadRecordError(path, f"{' '.join(str(error).split())} ({type(error).__name__})") from None


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """A Parquet file, to read what its footer says.

    Raises:
      UserError: it is cut or none; also where reading it in the block fails so.
    """
    import pyarrow.parquet as pq

    try:
        with unreadable(path), pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            yield file
    except UserError:
        raise
    except BadRecordError as error:
        raise UserError(f"Parquet: {path} is cut or no Parquet file: {error.reason}") from None


def footer(path: str) -> bytes:
    """The bytes of the footer: what the file holds, with where and how large each piece is."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - 8 - length))
        return file.read(length)


def _size(path: str, file: Any, group: int, columns: dict[str, Column]) -> tuple[int, int]:
    """Rows of a group, and bytes of the columns that are read."""
    about = file.metadata.row_group(group)
    roots = {column.root for column in columns.values()}
    own = [about.column(place) for place in range(about.num_columns)]
    own = [one for one in own if one.path_in_schema in roots or one.path_in_schema.split(".")[0] in roots]
    rows, size = about.num_rows, sum(one.total_uncompressed_size for one in own)
    if rows < 0 or size < 0 or any(one.num_values < rows for one in own):
        raise UserError(f"Parquet: {path} is cut or no Parquet file: row group {group} has {rows} rows of {size} bytes")
    return rows, size


def _distinct(path: str, file: Any, group: int, column: Column) -> set[Any]:
    import pyarrow.compute as pc

    table = file.read_row_group(group, columns=[column.root], use_threads=False)
    if column.parts:
        return {column.value(cell, path) for cell in table.column(column.root)}
    found = pc.unique(table.column(column.root))
    return set(found.to_pylist())
