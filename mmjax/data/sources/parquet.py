"""Parquet files, read by random access: of a row its row group is decoded, and kept for a while."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.fields import Fields
from mmjax.data.files import fetched
from mmjax.data.files.recent import Recent
from mmjax.data.files.remote import RemoteFile, is_address
from mmjax.data.tables.blocks import BlockRecords, files_at
from mmjax.data.tables.opening import Opening, check_unchanged, distinct, opening, unreadable
from mmjax.data.tables.schema import Column
from mmjax.data.types import BadRecordError

WALKS = 4  # row groups that are read by pieces, held open at once
FOOTERS = 64_000_000  # bytes of footers that are held
FOOTER = 1 << 16  # bytes that are asked for at once of a footer at an address
BUFFER = 1 << 20  # bytes that are read at once of a column of a group that is read by pieces


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

    def build(self) -> BlockRecords:
        """Records with the keys that the files have.

        Raises:
          UserError: no file, one that is cut or no Parquet, a file with other columns than the first, a field named here that
            is not there or has a type that it cannot have, no rows at all or none in the split, a setting out of range.
        """
        check_ranges(self, "Parquet.")
        self.check_fields()
        return Opened(self, *files_at("Parquet", self.path, ".parquet")).records()


class Opened(Opening):
    """Parquet files on their way to records."""

    version = "parquet-1"
    spec: Parquet

    def schema_of(self, path: str) -> Any:
        with opened(path) as file:
            return file.schema_arrow

    def scan(self, number: int, path: str, strings: Column | None) -> tuple[list[tuple[int, ...]], bytes, set[Any]]:
        """For each row group, or piece of one: file, group, its first row there, its rows, the group's rows and bytes."""
        limit = self.spec.cache_mb * 1_000_000
        blocks: list[tuple[int, ...]] = []
        values: set[Any] = set()
        with opened(path) as file:
            for group in range(file.metadata.num_row_groups):
                rows, size = _size(path, file, group, self.columns, limit)
                step = rows if size <= limit else max(1, int(rows * limit / 4 / size))
                blocks += [(number, group, at, min(step, rows - at), rows, size) for at in range(0, rows, max(step, 1))]
                if strings:
                    table = file.read_row_group(group, columns=[strings.root], use_threads=False)
                    values |= set(distinct(path, table.column(strings.root), strings))
            if sum(block[3] for block in blocks) != file.metadata.num_rows:
                raise UserError(f"Parquet: {path} is cut or no Parquet file: its row groups are not all of its rows")
            return blocks, footer(path), values

    def held(self, layout: np.ndarray) -> Groups:
        return Groups(self.paths, self.below, self.stats, layout, Recent(self.spec.cache_mb * 1_000_000))

    def hindrance(self, layout: np.ndarray) -> str:
        large = layout[layout[:, 3] < layout[:, 4]]
        if not len(large):
            return ""
        count, most = len(np.unique(large[:, :2], axis=0)), int(large[:, 5].max() / 1e6)
        return (
            f"Parquet.path={self.spec.path!r}: {count} row group(s) are larger than cache_mb={self.spec.cache_mb} "
            f"(up to {most} MB) and are read by pieces, which is slow in random order; write the files anew with a smaller "
            "row_group_size, or give a larger cache_mb"
        )


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

    def cells(self, block: int, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        table = self.table(block, columns)
        return {name: table.column(name)[row] for name in columns}

    def table(self, block: int, columns: tuple[str, ...]) -> Any:
        """pyarrow's table of a block."""
        return self.recent.get((block, columns), lambda: self._read(block, columns))

    def _read(self, block: int, columns: tuple[str, ...]) -> tuple[Any, int]:
        file, group, start, rows, whole, _ = map(int, self.layout[block])
        path = self.paths[file]
        with unreadable(path):
            check_unchanged(path, self.stats[file])
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

        def opened_at(path: str) -> Any:
            def read() -> tuple[Any, int]:
                metadata = pq.read_metadata(path)
                return metadata, metadata.serialized_size

            metadata = self._footers.get(file, read)
            return pq.ParquetFile(
                path, metadata=metadata, buffer_size=buffer, pre_buffer=False, page_checksum_verification=True
            )

        return fetched.used(self.paths[file], self.stats[file], opened_at)

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
def opened(path: str) -> Iterator[Any]:
    """A Parquet file, to read what its footer says.

    Raises:
      UserError: it is cut or none; also where reading it in the block fails so.
    """
    import pyarrow.parquet as pq

    with (
        opening("Parquet", path),
        _raw(path) as raw,
        pq.ParquetFile(raw if is_address(path) else path, pre_buffer=False, page_checksum_verification=True) as file,
    ):
        yield file


def footer(path: str) -> bytes:
    """The bytes of the footer: what the file holds, with where and how large each piece is."""
    with _raw(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - 8 - length))
        return file.read(length)


def _raw(path: str) -> Any:
    """A file to read; of one at an address only what is asked for: of a footer, a request or two."""
    return io.BufferedReader(RemoteFile(path), FOOTER) if is_address(path) else open(path, "rb")


def _size(path: str, file: Any, group: int, columns: dict[str, Column], limit: int) -> tuple[int, int]:
    """Rows of a group, and bytes of the columns that are read; of all columns, where even these are not more than the limit.

    pyarrow ends the process when it is asked about a column of a footer that is damaged, which is why few are asked about.
    """
    about = file.metadata.row_group(group)
    rows, size = about.num_rows, about.total_byte_size
    if rows < 0 or size < 0:
        raise UserError(f"Parquet: {path} is cut or no Parquet file: row group {group} has {rows} rows of {size} bytes")
    if size > limit:
        roots = {column.root for column in columns.values()}
        own = (about.column(place) for place in range(about.num_columns))
        size = sum(
            one.total_uncompressed_size
            for one in own
            if one.path_in_schema in roots or one.path_in_schema.split(".")[0] in roots
        )
    return rows, size
