"""Records of tables that lie in blocks: the row groups of Parquet files, the record batches of Arrow's."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data import splits
from mmjax.data.fields import Reading
from mmjax.data.files import remote
from mmjax.data.images import printable
from mmjax.data.tables.schema import Column
from mmjax.data.types import BadRecordError, Record


class Blocks(Protocol):
    """Rows of files, block by block; shared between threads, and pickled without what it holds."""

    @property
    def rows(self) -> np.ndarray:
        """int64 [blocks]: how many rows each has."""
        ...

    def cells(self, block: int, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        """pyarrow's scalars of some columns in one row. Raises `BadRecordError` where they cannot be read."""
        ...

    def place(self, block: int, row: int) -> tuple[str, str, int]:
        """The path of the row's file, the path below the folder of the data, and the number of the row in the file."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class BlockRecords:
    """Some rows of blocks.

    Attributes:
      held: where they are read.
      columns: field -> column.
      reading: what makes a record of a row.
      places: int64 [N], the number of each record's row over all blocks; None for all rows in their order.
      digest: a hash of what the files hold.
      repeated: whether a row may stand in `places` more than once.
    """

    held: Blocks
    columns: Mapping[str, Column]
    reading: Reading
    places: np.ndarray | None
    digest: str
    repeated: bool = False
    ends: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.cumsum(self.held.rows, dtype=np.int64))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.reading.names

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.places is None else len(self.places)

    def __getitem__(self, index: int, /) -> Record:
        example, where = self._example(index, self.columns)
        return self.reading(example, where)

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        return self.reading.encoded(self._example(index, self._of("image"))[0])

    def blocks(self) -> np.ndarray:
        """int64: how many records in a row come from one block, which is read at once.

        Raises:
          UserError: an indices mapping has put the rows in another order than that of their blocks.
        """
        if self.places is None:
            return self.held.rows
        if np.any(np.diff(self.places) <= 0):
            raise UserError("order='blocks': an indices mapping has shuffled the rows over their blocks; use records")
        counts = np.bincount(np.searchsorted(self.ends, self.places, side="right"), minlength=len(self.ends))
        return counts[counts > 0].astype(np.int64)

    def described(self, index: int) -> tuple[str, int, tuple[str, ...]]:
        block, row = self._find(index)
        path, below, number = self.held.place(block, row)
        identity = f"{below}:{number}" + (f"#{index}" if self.repeated else "")
        try:
            label, texts = self.reading.told(self._example(index, self._of("label", "text", "text_pair"))[0], path)
        except BadRecordError:
            return identity, -1, ()
        return identity, label, texts

    def texts(self) -> Iterator[str]:
        """Row by row; what cannot be read is passed over."""
        for example in self._examples(self._of("text", "text_pair")):
            yield from self.reading.texts(example)

    def texts_of(self, key: str) -> Iterator[str]:
        """The texts of one key."""
        if key == "text":
            yield from self.texts()
            return
        columns = self._of(key)
        for example in self._examples(columns):
            for value in example.values():
                for one in value if isinstance(value, list) else (value,):
                    if isinstance(one, str | bytes):
                        yield one if isinstance(one, str) else one.decode("utf-8", "replace")

    def fingerprint(self) -> str:
        reading = self.reading
        told = [*map(str, reading.found.items()), *map(str, reading.fields.items()), *reading.names]
        places = b"all" if self.places is None else np.ascontiguousarray(self.places).tobytes()
        return splits.fingerprint([self.digest, *told, str(reading.window), places])

    def _of(self, *keys: str) -> dict[str, Column]:
        whole = {**self.reading.found, **self.reading.fields}
        return {whole[key]: self.columns[whole[key]] for key in keys if key in whole}

    def _find(self, index: int) -> tuple[int, int]:
        """The block and the row in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        place = index % len(self) if self.places is None else int(self.places[index])
        block = int(np.searchsorted(self.ends, place, side="right"))
        return block, place - int(self.ends[block] - self.held.rows[block])

    def _example(self, index: int, columns: Mapping[str, Column]) -> tuple[dict[str, Any], str]:
        block, row = self._find(index)
        path, _, number = self.held.place(block, row)
        where = f"{printable(path)} row {number}"
        if not columns:
            return {}, where
        roots = tuple(dict.fromkeys(column.root for column in columns.values()))
        try:
            cells = self.held.cells(block, row, roots)
        except BadRecordError as error:  # of a whole block: each of its rows is counted by its own name
            raise BadRecordError(where, error.reason) from error.__cause__
        return {field: column.value(cells[column.root], where) for field, column in columns.items()}, where

    def _examples(self, columns: Mapping[str, Column]) -> Iterator[dict[str, Any]]:
        for index in range(len(self) if columns else 0):
            try:
                yield self._example(index, columns)[0]
            except BadRecordError:
                continue


def keys_of(records: BlockRecords) -> Iterator[str]:
    """A text for each row by which it gets its split: the path of its image, sound or video, where that is what the table has,
    so that all captions of an image stay together; else its file and its place there.

    Raises:
      UserError: a path that cannot be read.
    """
    found = records.reading.found
    column = records.columns.get(found.get("image", found.get("audio", found.get("video", ""))))
    for index in range(len(records)):
        if column is not None and column.said == "string":
            try:
                path = records._example(index, {column.field: column})[0][column.field]
            except BadRecordError as error:
                raise UserError(str(error)) from None
            if path:
                yield path
                continue
        _, below, number = records.held.place(*records._find(index))
        yield f"{below}:{number}"


def files_at(source: str, path: str, suffix: str) -> tuple[str, list[str]]:
    """The folder of the data, and the files there in the order of their paths.

    Args:
      path: a file, a folder whose files with the suffix are meant, at any depth (hidden ones and those that begin with "_" are
        passed over), or a pattern with `*`, `?`, `[...]` or `**`.

    Raises:
      UserError: there are none.
    """
    if remote.is_address(path):
        return _files_at_address(source, path, suffix)
    if os.path.isfile(path):
        return os.path.dirname(path), [path]
    if os.path.isdir(path):
        root, pattern = path, os.path.join(glob.escape(path), "**", f"*{suffix}")
    else:
        fixed = Path(path)
        while glob.has_magic(str(fixed)) and fixed != fixed.parent:
            fixed = fixed.parent
        root, pattern = str(fixed) if glob.has_magic(path) else os.path.dirname(path), path
    found = sorted(one for one in glob.glob(pattern, recursive=True) if os.path.isfile(one))
    return root, _shown(source, path, suffix, root, found)


def _files_at_address(source: str, path: str, suffix: str) -> tuple[str, list[str]]:
    path = path.rstrip("/")
    if remote.has_pattern(path):
        root = path
        while remote.has_pattern(root):
            root = remote.parent(root)
        return root, _shown(source, path, suffix, root, remote.matching(path))
    if path.endswith(suffix):  # a folder may be called so, but a file is far likelier, and on the web nothing can be listed
        return remote.parent(path), [path]
    return path, _shown(source, path, suffix, path, remote.below(path, suffix))


def _shown(source: str, path: str, suffix: str, root: str, found: list[str]) -> list[str]:
    """Those that are not hidden. Raises `UserError` where there are none."""
    found = [one for one in found if not any(part[0] in "._" for part in Path(os.path.relpath(one, root or ".")).parts)]
    if not found:
        raise UserError(
            f"{source}.path={path!r}: no file; give a {suffix} file, a folder of them, or a pattern such as *{suffix}"
        )
    return found
