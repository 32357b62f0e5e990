"""The lines of a table as Arrow's columns, mapped into memory or held there: of a line nothing is read but its own batch."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.files.recent import Recent
from mmjax.data.tables.rows import number as number_of

STRING, INT, FLOAT, STRINGS, JSON = "string", "int", "float", "strings", "json"  # how a column is stored
ROWS = 2048  # of a batch, which is checked as a whole when something of it is read first
HELD = 256  # batches that are held
DATA, LAYOUT, ABOUT = "table.arrow", "layout.npy", "about.json"


@dataclasses.dataclass(frozen=True)
class About:
    """What is known of a table.

    Attributes:
      rows: how many lines it has.
      keys: of the columns that each line has: "image", "audio", "video", "text", "text_pair", "label", "group", "split" and,
        with "fields." and "maps." before their names, further ones.
      kinds: key -> how the column is stored.
      numbers: keys of columns whose values are numbers: "int" or, NaN where there is none, "float".
      labels: of the classes, rising, as they are written: strings or whole numbers.
      rank: the label of each label code, the number under which a label stands in the file.
      sizes: how many lines have each label.
      fields: the names in the first line.
    """

    rows: int
    keys: tuple[str, ...]
    kinds: Mapping[str, str]
    numbers: Mapping[str, str]
    labels: tuple[str | int, ...]
    rank: tuple[int, ...]
    sizes: tuple[int, ...]
    fields: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, in label order."""
        return tuple(map(str, self.labels))


class Stored:
    """Columns that processes share. Raises `UserError` where they are cut or damaged, at once or when a line is read."""

    def __init__(self, about: About, layout: np.ndarray, data: bytes | Path) -> None:
        """Open it.

        Args:
          layout: int64 [batches, 4]: where each begins, its bytes, the lines up to its end, a checksum.
          data: the bytes, or the folder whose file they are.
        """
        import pyarrow as pa

        self.about, self.layout, self.data = about, layout, data
        if isinstance(data, Path):
            with open(data / DATA, "rb") as file:
                if os.fstat(file.fileno()).st_size != self._size():
                    raise broken(data)
                self._bytes: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            self._bytes = data
        self._buffer = pa.py_buffer(self._bytes)
        self._schema = pa.ipc.read_schema(self._buffer.slice(0, int(layout[0, 0])))
        self._place = {name: number for number, name in enumerate(self._schema.names)}
        self._held, self._checked = Recent(HELD), bytearray(len(layout))

    @classmethod
    def at(cls, folder: Path) -> Stored:
        """What lies in a folder."""
        try:
            sealed = read_sealed(folder)
            told = sealed["about"].items()
            known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told}
            about = About(**known)
            whole = (folder / LAYOUT).read_bytes()
            if zlib.crc32(whole) != sealed["layout"]:
                raise broken(folder)
            return cls(about, np.load(io.BytesIO(whole)), folder)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise error if isinstance(error, UserError) else broken(folder) from None

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if isinstance(self.data, Path):
            return Stored.at, (self.data,)
        return Stored, (self.about, self.layout, self.data)

    def cells(self, row: int, keys: Sequence[str]) -> list[Any]:
        """The values of one line, as Python's."""
        number = int(np.searchsorted(self.layout[:, 2], row, side="right"))
        start = int(self.layout[number - 1, 2]) if number else 0
        batch = self._held.get(number, lambda: (self._batch(number), 1))
        return [self.value(key, batch.column(self._place[key])[row - start].as_py()) for key in keys]

    def batches(self, places: np.ndarray | None = None) -> Iterator[tuple[int, Any]]:
        """The first line of each batch and the batch itself, a pyarrow RecordBatch; only those of its lines that are in
        `places`, which rises."""
        start = 0
        for number, end in enumerate(self.layout[:, 2].tolist()):
            if places is None:
                yield start, self._batch(number)
            else:
                low, high = np.searchsorted(places, (start, end))
                if high > low:
                    yield start, self._batch(number).take(whole(np.asarray(places[low:high]) - start))
            start = end

    def column(self, batch: Any, key: str) -> Any:
        """pyarrow's array of a key, as it is stored."""
        return batch.column(self._place[key])

    def values(self, batch: Any, key: str) -> list[Any]:
        """The values of a column, as Python's."""
        found = self.column(batch, key).to_pylist()
        if self.about.kinds.get(key) in (STRING, INT, None) and key not in self.about.numbers:
            return found
        return [self.value(key, value) for value in found]

    def value(self, key: str, stored: Any) -> Any:
        """What a line says, of what is stored of it."""
        kind = self.about.kinds.get(key)
        if kind == JSON and stored is not None:
            stored = json.loads(stored)
        numbers = self.about.numbers.get(key)
        if numbers == "float":
            value = number_of(stored) if isinstance(stored, str) else stored
            return float("nan") if value is None else float(value)
        if numbers == "int" and isinstance(stored, str):
            return int(stored)
        return tuple(stored) if key == "text" and isinstance(stored, list) else stored

    def _batch(self, number: int) -> Any:
        import pyarrow as pa

        offset, length, end, checksum = map(int, self.layout[number])
        if isinstance(self.data, Path) and self._bytes.size() != self._size():
            raise broken(self.data)  # to read beyond the end of what is mapped would end the process
        if not self._checked[number]:
            with memoryview(self._bytes)[offset : offset + length] as own:
                if zlib.crc32(own) != checksum:
                    raise broken(self.data)
            self._checked[number] = 1
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(self._buffer.slice(offset, length)), self._schema)
        start = int(self.layout[number - 1, 2]) if number else 0
        if batch.num_rows != end - start:
            raise broken(self.data)
        return batch

    def _size(self) -> int:
        return int(self.layout[-1, 0] + self.layout[-1, 1])


def whole(numbers: np.ndarray) -> Any:
    """pyarrow's array of whole numbers, which lie where they did. (`pa.array` looks for pandas each time.)"""
    import pyarrow as pa

    own = np.ascontiguousarray(numbers)
    return pa.Array.from_buffers(pa.from_numpy_dtype(own.dtype), len(own), [None, pa.py_buffer(own)])


def broken(folder: Any) -> UserError:
    """A complaint about what lies in the cache folder."""
    return UserError(f"{folder}: what was made of a table is cut, damaged or gone; delete that folder, and it is made anew")


def write_sealed(folder: Path, told: Mapping[str, Any]) -> None:
    """Write JSON with a checksum."""
    text = json.dumps(told)
    (folder / ABOUT).write_text(json.dumps({"seal": _seal(text), "told": text}), encoding="utf-8")


def read_sealed(folder: Path) -> dict[str, Any]:
    """Raises `UserError` where something of it has changed, or OSError."""
    try:
        whole = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if whole["seal"] == _seal(whole["told"]):
            return dict(json.loads(whole["told"]))
    except (ValueError, KeyError, TypeError):
        pass
    raise broken(folder)


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
