"""ArrayRecord files, https://github.com/google/array_record: records in any order, each an example of TensorFlow's or JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, default, setting, spec_fields
from mmjax.core.errors import UserError
from mmjax.core.flags import written
from mmjax.data.fields import Fields, Reading, load_places
from mmjax.data.files import fetched
from mmjax.data.files.kept import made_once
from mmjax.data.files.open_files import OpenFiles
from mmjax.data.files.remote import is_address
from mmjax.data.files.shard_names import shard_names
from mmjax.data.files.tf_example import example_bytes, parse_example
from mmjax.data.images import printable
from mmjax.data.sources.prepared import Kept, Prepared
from mmjax.data.sources.told import ToldRecords
from mmjax.data.spelling import nearest
from mmjax.data.splits import fingerprint
from mmjax.data.types import BadRecordError, Record

TRIED = 64  # records that are asked for what fields they have
OPTIONS = "readahead_buffer_size:0"  # records are read one by one, by any thread
BUFFER = 1 << 15  # bytes
CHOSEN = ("path", "fractions", "max_pixels", "optional")  # what can be said of records that were written whole


def _parse_json(data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


FORMATS: dict[str, Callable[[bytes], dict[str, Any]]] = {"example": parse_example, "json": _parse_json}


@dataclasses.dataclass(frozen=True)
class ArrayRecord(Fields):
    """ArrayRecord files whose records are `tf.train.Example` or JSON objects. A TFDS dataset is read by `TFDS`, which knows it.

    A folder that `mmjax data prepare` has written gives the records that it was made of, all of them and whole: nothing can be
    said of their fields and splits.

    Fields are the features of an example ("image/encoded") or the keys of a JSON object. A list of one is that one; of several
    numbers it is an array. A split is by a hash of each record's content, for which all of them are read once. What is found
    once is kept in a cache folder: `MMJAX_CACHE`, else `~/.cache/mmjax`.

    Attributes:
      path: the files: "data/*.array_record", "data/{000..099}.array_record" or one of them; or a prepared folder.
      format: what a record is, "example" or "json".
    """

    path: str = setting(everyday=True, path=True)
    format: str = "example"

    def build(self) -> ArrayRecordRecords:
        """The records of the split in the order of the files, sorted by name.

        Raises:
          UserError: no such file, one that is none or is cut; records of another format; a field named here that they do not
            have; an empty split; settings that are none; a prepared folder of which a file is missing.
        """
        check_ranges(self, "ArrayRecord.")
        self.check_fields()
        if self.format not in FORMATS:
            raise UserError(f"ArrayRecord.format={self.format!r} is no format{nearest(self.format, FORMATS)}")
        about = self._prepared()
        files = OpenRecords(about.files(self.path) if about else shard_names("ArrayRecord", self.path))
        if about and is_address(self.path):  # it says itself what no shard need be fetched for
            counts = np.array([len(about.places(shard)) for shard in range(about.shards)], np.int64)
        else:
            counts = np.load(made_once("array-record-1", files.said(), lambda folder: _count(files, folder)) / "counts.npy")
        if not counts.sum():
            raise UserError(f"ArrayRecord.path={self.path!r}: no record in {len(counts)} file(s)")
        if about:
            about.check(counts)
        own = Kept(about.classes, self.max_pixels) if about else None
        everything = _records(files, counts, self.format, None, "all", own or self.reading({}))
        reading = own or self.reading(self.found(self._first(everything)))
        part = "all" if self.split == "all" else f"{self.split} of {self.fractions}"
        split = self.split_file(files.said(), everything.keys)
        records = _records(files, counts, self.format, split, part, reading)
        if not len(records):
            raise UserError(f"ArrayRecord.split={self.split!r}: none of the {len(everything)} records of {self.path} are in it")
        return records

    def _prepared(self) -> Prepared | None:
        """What a folder of whole records holds; None for other files.

        Raises:
          UserError: fields are named, which such records have by themselves; or its files are, and not the folder, so that
            nobody would see that one is missing.
        """
        about = Prepared.at(os.path.expanduser(self.path))
        if about is None:
            folder = os.path.dirname(self.path)
            if "{" not in folder and Prepared.at(os.path.expanduser(folder)) is not None:
                raise UserError(f"ArrayRecord.path={self.path!r}: mmjax data prepare wrote {folder}: give path={folder!r}")
            return None
        for name, field in spec_fields(ArrayRecord).items():
            if name not in CHOSEN and getattr(self, name) != default(field):
                said = f"ArrayRecord.{name}={getattr(self, name)!r}: the prepared folder {self.path}"
                flag = f"--data.NAME.source.{name} {written(default(field))}"
                raise UserError(f"{said} holds whole records of one split; leave it at {default(field)!r} ({flag})")
        return about

    def _first(self, records: ArrayRecordRecords) -> Mapping[str, Any]:
        """The first record that can be read."""
        errors = []
        for index in range(min(TRIED, len(records))):
            try:
                return records.example(index)
            except BadRecordError as error:
                errors.append(error)
        data = None
        with contextlib.suppress(BadRecordError):
            data = records.data(0)
        tip = ""
        for other, parse in FORMATS.items():
            with contextlib.suppress(ValueError):
                tip = f"; give format={other!r}" if data is not None and parse(data) else tip
        raise UserError(
            f"ArrayRecord.format={self.format!r}: the first {len(errors)} record(s) cannot be read, {errors[0]}{tip}"
        )


class OpenRecords(OpenFiles):
    """ArrayRecord files of which some are open."""

    def count(self, number: int) -> int:
        """How many records a file has. Raises `UserError` for one that is none, or is cut."""
        path = printable(self.paths[number])
        try:
            reader = fetched.used(self.paths[number], self.stamps[number], self._opened)
            count = int(reader.num_records())
        except (RuntimeError, BadRecordError) as error:
            raise UserError(str(error) if isinstance(error, BadRecordError) else f"{path}: {error}") from None
        if not reader.ok():
            raise UserError(
                f"{path} is no ArrayRecord file, or it is cut: {self.stamps[number][0]} bytes without its last block"
            )
        return count

    def record(self, number: int, place: int, where: str) -> bytes:
        """A record by its number in the file. Raises as `read` does."""
        with self._named(number, where):
            if not is_address(self.paths[number]):
                self._check(number, os.stat(self.paths[number]))
            try:
                return self._open(number).read([place])[0]
            except (RuntimeError, IndexError) as error:
                raise BadRecordError(where, " ".join(str(error).split())) from None

    def _opened(self, path: str) -> Any:
        from array_record.python import array_record_module  # a library of machine code, which other sources need not load

        return array_record_module.ArrayRecordReader(path, options=OPTIONS, file_reader_buffer_size=BUFFER)


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecordRecords(ToldRecords):
    """The records of one split, read when asked for.

    Attributes:
      files: the files.
      counts: int64 [S], how many records each has.
      format: one of `FORMATS`.
      split: the file that holds `places`.
      part: what the split is, for the fingerprint.
      reading: what makes records of examples.
      places: int64, the records of the split, in order; None for all.
      bounds: int64 [S + 1], the first record of each file, and how many there are.
    """

    files: OpenRecords
    counts: np.ndarray
    format: str
    split: Path | None
    part: str
    reading: Reading | Kept
    places: np.ndarray | None
    bounds: np.ndarray

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _records, (self.files, self.counts, self.format, self.split, self.part, self.reading)

    def __len__(self) -> int:
        return int(self.bounds[-1]) if self.places is None else len(self.places)

    def __getitem__(self, index: int, /) -> Record:
        return self.reading(self.example(index), self._where(index)[2])

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        return self.reading.encoded(self.example(index))

    def blocks(self) -> np.ndarray:
        """How many records of the split each file holds, int64 [S]; those of a file are next to each other."""
        return np.array(self.counts) if self.places is None else np.diff(np.searchsorted(self.places, self.bounds))

    def data(self, index: int) -> bytes:
        """The bytes of a record. Raises `BadRecordError` or `UserError` as `OpenFiles.read` does."""
        return self.files.record(*self._where(index))

    def keys(self) -> np.ndarray:
        """What `splits.place_of` gives of a key, here of each record's content, uint64 [N]: reads all of them."""
        places = (int.from_bytes(hashlib.sha256(self._content(index)).digest()[:8], "big") for index in range(len(self)))
        return np.fromiter(places, np.uint64, len(self))

    def _content(self, index: int) -> bytes:
        """The bytes of a record; of one that cannot be read, which no batch will hold, none."""
        try:
            return self.data(index)
        except BadRecordError:
            return b""

    def example(self, index: int) -> Example:
        """The fields of a record."""
        where = self._where(index)[2]
        try:
            return Example(FORMATS[self.format](self.data(index)))
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise BadRecordError(where, f"no {self.format} ({error})") from None

    def some(self, index: int, keys: set[str]) -> Record:
        return self.reading.only(keys)(self.example(index), self._where(index)[2])

    def identity(self, index: int, readable: bool) -> str:
        shard, place, _ = self._where(index)
        return f"{self.files.name(shard)} {place}"

    def fingerprint(self) -> str:
        """Of the names, sizes and counts of the files, and of the first record: they are not all read for it."""
        parts: list[str | bytes] = [self.part]
        for shard, (size, _) in enumerate(self.files.stamps):
            parts += [self.files.name(shard), f"{size} {self.counts[shard]}"]
        return fingerprint([*parts, self._content(0)])

    def _where(self, index: int) -> tuple[int, int, str]:
        """The file of a record, its number there, and its name."""
        index = range(len(self))[index]
        place = index if self.places is None else int(self.places[index])
        shard = int(np.searchsorted(self.bounds, place, "right")) - 1
        within = place - int(self.bounds[shard])
        return shard, within, f"{printable(self.files.paths[shard])}[{within}]"


class Example(Mapping[str, Any]):
    """The fields of a record, by their names or by a path into a JSON object: "about/label"."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, field: str) -> Any:
        value: Any = self._values
        for key in (field,) if field in value else field.split("/"):
            if not isinstance(value, dict):
                raise KeyError(field)
            value = value[key]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def write_array_record(path: str | os.PathLike[str], examples: Iterable[Mapping[str, Any]]) -> int:
    """Write examples, name -> value as `tf_example.example_bytes` takes them, as records that can be read one by one.

    The same examples give the same bytes. The file is written beside its place and moved there when it is whole and on the
    disk; of two processes that write it at once, the last one's stays.

    Returns:
      How many they are.

    Raises:
      UserError: a value that cannot be written, named by its example; or the file cannot be.
    """
    from array_record.python import array_record_module

    place, count = Path(path), 0
    beside = place.with_name(f".{place.name}-{uuid.uuid4().hex}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        writer = array_record_module.ArrayRecordWriter(str(beside), "group_size:1")
        for example in examples:
            try:
                writer.write(example_bytes(example))
            except ValueError as error:
                raise UserError(f"{place}: example {count}: {error}") from None
            count += 1
        writer.close()  # which is where a full disk shows
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.rename(place)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{place}: {' '.join(str(error).split())}") from None
    finally:
        beside.unlink(missing_ok=True)
    return count


def _count(files: OpenRecords, folder: Path) -> None:
    np.save(folder / "counts.npy", np.array([files.count(number) for number in range(len(files.paths))], np.int64))


def _records(
    files: OpenRecords, counts: np.ndarray, form: str, split: Path | None, part: str, reading: Reading | Kept
) -> ArrayRecordRecords:
    bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return ArrayRecordRecords(files, counts, form, split, part, reading, load_places(split), bounds)
