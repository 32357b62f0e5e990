"""HuggingFace's `datasets`, as `save_to_disk` writes them, and other Arrow files: mapped into memory, by random access."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.fields import Fields
from mmjax.data.files import fetched, remote
from mmjax.data.files.remote import is_address
from mmjax.data.tables.batches import Batches, Mapped
from mmjax.data.tables.blocks import BlockRecords, files_at
from mmjax.data.tables.opening import Opening, distinct, opening
from mmjax.data.tables.schema import Column


@dataclasses.dataclass(frozen=True)
class Arrow(Fields):
    """Rows of a folder that `datasets.Dataset.save_to_disk` has written, of one of a `DatasetDict`, or of `.arrow` files.

    Fields are as in `Parquet`. Classes have the names that the feature ClassLabel says, else the sorted values of a column of
    strings. Where a folder has indices (of `select` or `shuffle`, as earlier versions of `datasets` saved them) the rows are
    those, in their order. The files must not change while they are read: that is looked for at each record.

    Attributes:
      path: the folder; or an `.arrow` file, stream or file format, a folder of them or a pattern.
      split: of a `DatasetDict` the name of one of its own splits; else as for every source.
    """

    path: str = setting(everyday=True, path=True)

    def build(self) -> BlockRecords:
        """Records with the keys that the data has.

        Raises:
          UserError: no file, one that is cut or no Arrow file, a file with other columns than the first, a field named here
            that is not there or has a type that it cannot have, an unknown split, no rows at all or none in the split.
        """
        check_ranges(self, "Arrow.")
        own = _splits(self.path)
        self.check_fields(own)
        spec = dataclasses.replace(self, split="all") if own else self
        folder = os.path.join(self.path, self.split) if own else self.path
        state = _read(os.path.join(folder, "state.json"))
        if own and state is None:
            raise UserError(f"Arrow.path={self.path!r}: its split {self.split!r} has no state.json")
        if state is None:
            return Opened(spec, *files_at("Arrow", folder, ".arrow")).records()
        paths = _files(folder, state, "_data_files")
        if not paths:
            raise UserError(f"Arrow.path={folder!r}: the data set has no files, and so no rows")
        about = _read(os.path.join(folder, "dataset_info.json")) or {}
        features = about.get("features")
        mapping = _indices(_files(folder, state, "_indices_data_files"))
        return Opened(spec, folder, paths, features if isinstance(features, dict) else None, mapping).records()


class Opened(Opening):
    """Arrow files on their way to records."""

    version = "arrow-1"

    def schema_of(self, path: str) -> Any:
        with opening("Arrow", path):
            return self._mapped(path).schema

    def scan(self, number: int, path: str, strings: Column | None) -> tuple[list[tuple[int, ...]], bytes, set[Any]]:
        blocks, told = [], [str(self.stats[number][0]).encode()]
        values: set[Any] = set()
        with opening("Arrow", path):
            for block, own, batch in self._mapped(path).scan(path, number):
                blocks.append(block)
                told.append(own)
                if strings:
                    column = batch.column(strings.root)
                    column.validate(full=True)
                    values |= set(distinct(path, column, strings))
        return [block for block in blocks if block[3]], b"".join(told), values

    def held(self, layout: np.ndarray) -> Batches:
        return Batches(self.paths, self.below, self.stats, layout)

    def _mapped(self, path: str) -> Mapped:
        return fetched.used(path, self.stats[self.paths.index(path)], Mapped)


def _splits(path: str) -> tuple[str, ...]:
    """Those of a `DatasetDict`; () for another folder."""
    found = _read(os.path.join(path, "dataset_dict.json"))
    if found is None:
        return ()
    names = found.get("splits")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{os.path.join(path, 'dataset_dict.json')}: 'splits' is {names!r}, and should be a list of names")
    return tuple(names)


def _read(path: str) -> dict[str, Any] | None:
    """What a JSON file holds; None where there is none. Raises `UserError` where it is no object."""
    try:
        found = json.loads(remote.content(path) if is_address(path) else Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a {type(found).__name__}, and should be an object")
    return found


def _files(folder: str, state: dict[str, Any], key: str) -> list[str]:
    entries = state.get(key) or []
    entries = entries if isinstance(entries, list) else [entries]
    named = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(name, str) for name in named):
        raise UserError(f"{os.path.join(folder, 'state.json')}: {key!r} is no list of file names")
    if any("skip" in entry or "take" in entry for entry in entries):
        raise UserError(f"{os.path.join(folder, 'state.json')}: only parts of its files are meant; save the data set anew")
    return [os.path.join(folder, str(name)) for name in named]


def _indices(paths: Sequence[str]) -> np.ndarray | None:
    """int64: the rows that are meant; None for all."""
    found = []
    for path, stamp in zip(paths, remote.stamps(paths) if any(map(is_address, paths)) else [(0, 0)] * len(paths), strict=True):
        with opening("Arrow", path):
            for _, _, batch in fetched.used(path, stamp, Mapped).scan(path, 0):
                column = batch.column("indices")
                column.validate(full=True)
                found.append(column.to_numpy(zero_copy_only=False))
    if not found:
        return None
    indices = np.concatenate(found)
    if indices.dtype.kind not in "iu":
        raise UserError(f"Arrow: the indices of {', '.join(paths)} are {indices.dtype}, and should be whole numbers")
    return indices.astype(np.int64)
