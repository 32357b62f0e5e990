"""The record batches of Arrow's files, mapped into memory: of a row nothing is read but its own bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.files import fetched
from mmjax.data.files.recent import Recent
from mmjax.data.files.remote import is_address
from mmjax.data.tables.opening import check_unchanged, unreadable
from mmjax.data.types import BadRecordError

MAGIC = b"ARROW1"  # a file begins with it, a stream does not
ENDS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")  # of a stream; the second one before Arrow 0.15
OPEN = 256  # files that are open at once
HELD = 256_000_000  # bytes of batches that are held, those that lie in the file included


class Batches:
    """Record batches, see `blocks.Blocks`."""

    def __init__(
        self, paths: tuple[str, ...], below: tuple[str, ...], stats: tuple[tuple[int, ...], ...], layout: np.ndarray
    ) -> None:
        """`layout`: int64 [blocks, 5], of each what `scan` says."""
        self.paths, self.below, self.stats, self.layout = paths, below, stats, layout
        self.rows = np.ascontiguousarray(layout[:, 3])
        self._files, self._held = Recent(OPEN), Recent(HELD)

    def __reduce__(self) -> tuple[type[Batches], tuple[Any, ...]]:
        return Batches, (self.paths, self.below, self.stats, self.layout)

    def place(self, block: int, row: int) -> tuple[str, str, int]:
        file = int(self.layout[block, 0])
        return self.paths[file], self.below[file], int(self.layout[block, 4]) + row

    def cells(self, block: int, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        path = self.paths[int(self.layout[block, 0])]
        with unreadable(path):
            check_unchanged(path, self.stats[int(self.layout[block, 0])])  # a file that is cut while mapped ends the process
            batch = self._held.get(block, lambda: self._read(block))
            one = batch.select(list(columns)).slice(row, 1)
            one.validate(full=True)  # offsets that lead out of the file would be followed
            return {name: one.column(name)[0] for name in columns}

    def _read(self, block: int) -> tuple[Any, int]:
        import pyarrow as pa

        file, offset, length, rows, _ = map(int, self.layout[block])
        opened: Mapped = self._files.get(file, lambda: (self._mapped(file), 1))
        if opened.stream:
            message = pa.ipc.read_message(opened.buffer.slice(offset, length))
            batch = pa.ipc.read_record_batch(message, opened.schema)
        else:
            with opened.lock:
                batch = opened.reader.get_batch(offset)
        if batch.num_rows != rows:
            raise BadRecordError(self.paths[file], f"a batch has {batch.num_rows} rows, and had {rows} when it was opened")
        return batch, batch.get_total_buffer_size()  # `nbytes` follows offsets, which are not looked at yet

    def _mapped(self, file: int) -> Mapped:
        found = fetched.used(self.paths[file], self.stats[file], Mapped)
        if is_address(self.paths[file]):  # what is mapped of a file that has gone from the cache folder still takes its disk
            gone = {n for n in range(len(self.paths)) if n != file and not fetched.is_kept(self.paths[n], self.stats[n])}
            self._files.forget(gone.__contains__)
            self._held.forget(lambda block: int(self.layout[block, 0]) in gone)
        return found


class Mapped:
    """One file in memory. Raises what pyarrow raises."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self.lock = threading.Lock()
        with pa.memory_map(path) as mapped:
            self.buffer = mapped.read_buffer()
        self.stream = self.buffer.slice(0, len(MAGIC)).to_pybytes() != MAGIC
        self.reader: Any = None
        if not self.stream:
            self.reader = pa.ipc.open_file(self.buffer)
        self.schema = pa.ipc.read_schema(self.buffer) if self.stream else self.reader.schema

    def scan(self, path: str, number: int) -> Iterator[tuple[tuple[int, ...], bytes, Any]]:
        """For each batch: (file, its offset in bytes or its number, its length in bytes, rows, rows before it), bytes that
        change with the sizes of what it holds, and itself.

        Raises:
          UserError: a stream without an end, which was cut, or with dictionaries.
        """
        rows = 0
        for offset, length, batch, told in self._of_stream(path) if self.stream else self._of_file():
            yield (number, offset, length, batch.num_rows, rows), told, batch
            rows += batch.num_rows

    def _of_file(self) -> Iterator[tuple[int, int, Any, bytes]]:
        for place in range(self.reader.num_record_batches):
            batch = self.reader.get_batch(place)
            yield place, 0, batch, f"{batch.num_rows} {batch.get_total_buffer_size()}\n".encode()

    def _of_stream(self, path: str) -> Iterator[tuple[int, int, Any, bytes]]:
        import pyarrow as pa

        source = pa.BufferReader(self.buffer)
        messages = pa.ipc.MessageReader.open_stream(source)
        at = 0
        while True:
            try:
                message = messages.read_next_message()
            except StopIteration:
                break
            if message.type == "dictionary":
                raise UserError(f"Arrow: {path} is a stream with dictionaries; write it with pyarrow.ipc.new_file")
            if message.type == "record batch":
                batch = pa.ipc.read_record_batch(message, self.schema)
                yield at, source.tell() - at, batch, message.metadata.to_pybytes()
            at = source.tell()
        end = self.buffer.slice(max(0, self.buffer.size - 8)).to_pybytes()
        if not any(end.endswith(one) for one in ENDS) or at > self.buffer.size:
            raise UserError(f"Arrow: {path} is cut or no Arrow file: a stream without an end")
