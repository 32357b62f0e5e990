"""Tar files as the webdataset library writes them, read in any order: https://github.com/webdataset/webdataset."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.fields import Fields, Reading, load_places
from mmjax.data.files.open_files import OpenFiles
from mmjax.data.files.shard_names import shard_names
from mmjax.data.files.shards import Shards, opened
from mmjax.data.images import printable
from mmjax.data.sources.there import is_read
from mmjax.data.sources.told import ToldRecords
from mmjax.data.splits import fingerprint
from mmjax.data.types import BadRecordError, Record

IMAGES = "jpg;jpeg;png;webp;bmp;ppm;pgm;pbm;tif;tiff;gif"
AUDIO = "wav;flac;ogg;oga;opus;mp3;aif;aiff"
VIDEO = "mp4;m4v;mov;mkv;webm;avi;mpg;mpeg;ogv"
KEY = "__key__"
TRIED = 64  # examples that are asked for what their JSON has

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WebDataset(Fields):
    """Tar files whose members `a/12.jpg`, `a/12.txt`, `a/12.json` are one example, with the fields "jpg", "txt" and "json".

    A field is an extension in lower case, of which several may be named: "jpg;png" is the first of them that an example has.
    "json/caption" reaches into a JSON object, a member "npy" (also "x.npy") is an array, and "__key__" the example's name. A
    field with its default name is read where half of the examples or more have it; an example that lacks it is unreadable.

    Where the examples lie is found once, by reading the headers of all files, and kept in a cache folder: `MMJAX_CACHE`, else
    `~/.cache/mmjax`. Files are plain tar, not compressed, on a disk or at an address (`gs://`, `s3://`), see `fetched`.

    Attributes:
      path: the files: "shards/*.tar", "shards/{000..099}.tar" or one of them.
    """

    path: str = setting(everyday=True, path=True)
    _: dataclasses.KW_ONLY
    image_field: str = IMAGES
    audio_field: str = AUDIO
    video_field: str = VIDEO
    text_field: str = "txt"
    label_field: str = "cls"

    def build(self) -> WebDatasetRecords:
        """The examples of the split in the order of the files, sorted by name, and of the members in them.

        Raises:
          UserError: no such file, one that is no tar, is compressed or cut or holds anything but files and folders; a field
            named here that nothing has; an empty split; settings that are none.
        """
        check_ranges(self, "WebDataset.")
        self.check_fields()
        shards = opened(OpenFiles(shard_names("WebDataset", self.path)))
        there = _There(shards, self)
        found = {kind: there.narrowed(field) for kind, field in self.found(there).items()}
        part = "all" if self.split == "all" else f"{self.split} of {self.fractions}"
        split = self.split_file([shards.folder.name], lambda: shards.keys)
        records = _records(shards, split, part, self.reading(found))
        if not len(records):
            raise UserError(f"WebDataset.split={self.split!r}: none of the {len(shards)} examples of {self.path} are in it")
        return records


class _There(Collection[str]):
    """The fields that examples have. It also knows fields of several extensions, and those within JSON objects."""

    def __init__(self, shards: Shards, spec: WebDataset) -> None:
        self._shards, self._spec = shards, spec

    def narrowed(self, field: str) -> str:
        """The alternatives of a field that something has."""
        return ";".join(one for one in field.split(";") if self._has(one))

    def __contains__(self, field: object) -> bool:
        assert isinstance(field, str)
        counts, size, here = self._shards.fields, len(self._shards), self.narrowed(field)
        extensions = {one.partition("/")[0] for one in here.split(";")}
        count = min(size, sum(counts.get(extension, size) for extension in extensions)) if here else 0
        return is_read(log, self._spec, field, count, size, shown=here)

    def __iter__(self) -> Iterator[str]:
        for extension in self._shards.fields:
            yield extension
            if extension.split(".")[-1] == "json":
                for example in itertools.islice(self._examples(extension), 1):
                    yield from (f"{extension}/{key}" for key in example.keys_of(extension))

    def __len__(self) -> int:
        return len(self._shards.fields)

    def _has(self, field: str) -> bool:
        extension, inside, _ = field.partition("/")
        if field == KEY or not inside:
            return field == KEY or extension in self._shards.fields
        if extension not in self._shards.fields:
            return False
        with contextlib.suppress(BadRecordError):
            return any(field in example for example in self._examples(extension))
        return True  # which of them is no JSON is said when it is read

    def _examples(self, extension: str) -> Iterator[Example]:
        """Those of the first ones that have it."""
        for index in range(min(TRIED, len(self._shards))):
            with contextlib.suppress(BadRecordError):
                key, parts = self._shards.example(index, extension.__eq__, whole=False)
                if parts:
                    yield Example(key, parts, key)


class Example(Mapping[str, Any]):
    """The fields of an example, as `WebDataset` names them."""

    def __init__(self, key: str, parts: Mapping[str, bytes], where: str) -> None:
        """`parts`: extension -> content. `where` is for complaints."""
        self._key, self._parts, self._where = key, parts, where
        self._objects: dict[str, Any] = {}

    def __getitem__(self, field: str) -> Any:
        """Raises KeyError, or `BadRecordError` for JSON or an array that is none."""
        for one in field.split(";"):
            with contextlib.suppress(KeyError):
                return self._one(one)
        raise KeyError(field)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def keys_of(self, extension: str) -> tuple[str, ...]:
        """The keys of a JSON object, () for what is none."""
        found = None
        with contextlib.suppress(BadRecordError):
            found = self._object(extension)
        return tuple(found) if isinstance(found, dict) else ()

    def _one(self, field: str) -> Any:
        if field == KEY:
            return self._key
        extension, inside, path = field.partition("/")
        content = self._parts[extension]
        if inside:
            return _reach(self._object(extension), path.split("/"))
        return self._array(content, extension) if extension.split(".")[-1] == "npy" else content

    def _object(self, extension: str) -> Any:
        if extension not in self._objects:
            try:
                self._objects[extension] = json.loads(self._parts[extension])
            except (ValueError, RecursionError) as error:
                raise BadRecordError(f"{self._where} {extension}", f"not JSON ({error})") from None
        return self._objects[extension]

    def _array(self, content: bytes, extension: str) -> np.ndarray:
        try:
            return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, OSError, MemoryError, SyntaxError) as error:
            raise BadRecordError(f"{self._where} {extension}", f"not an array of numpy ({error})") from None


def _reach(value: Any, path: Sequence[str]) -> Any:
    """What stands at a path: into objects, and through the elements of a list. Raises KeyError."""
    for depth, key in enumerate(path):
        if isinstance(value, list):
            return [_reach(one, path[depth:]) for one in value]
        if not isinstance(value, dict):
            raise KeyError(key)
        value = value[key]
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class WebDatasetRecords(ToldRecords):
    """The examples of one split, read when asked for.

    Attributes:
      shards: all examples.
      split: the file that holds `places`.
      part: what the split is, for the fingerprint.
      reading: what makes records of them.
      places: int64, the examples of the split, in order; None for all.
    """

    shards: Shards
    split: Path | None
    part: str
    reading: Reading
    places: np.ndarray | None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _records, (self.shards, self.split, self.part, self.reading)

    def __len__(self) -> int:
        return len(self.shards if self.places is None else self.places)

    def __getitem__(self, index: int, /) -> Record:
        return self._record(index, self.reading, whole=True)

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        place, wanted = self._place(index), {one.partition("/")[0] for one in self.reading.found.get("image", "").split(";")}
        key, parts = self.shards.example(place, wanted.__contains__, whole=False)
        return self.reading.encoded(Example(key, parts, key))

    def blocks(self) -> np.ndarray:
        """How many examples of the split each file holds, int64 [S]; those of a file are next to each other."""
        if self.places is None:
            return np.array(self.shards.counts)
        return np.diff(np.searchsorted(self.places, self.shards.bounds))

    def some(self, index: int, keys: set[str]) -> Record:
        """Without reading the members of other keys."""
        return self._record(index, self.reading.only(keys), whole=False)

    def identity(self, index: int, readable: bool) -> str:
        place = self._place(index)
        key = self.shards.example(place, lambda _: False, whole=False)[0] if readable else place
        return f"{self.shards.files.name(self.shards.shard(place))} {key}"

    def fingerprint(self) -> str:
        return fingerprint([self.shards.digest, self.part])

    def _place(self, index: int) -> int:
        index = range(len(self))[index]
        return index if self.places is None else int(self.places[index])

    def _record(self, index: int, reading: Reading, whole: bool) -> Record:
        place = self._place(index)
        named = (*reading.found.values(), *reading.fields.values())
        wanted = {one.partition("/")[0] for field in named for one in field.split(";")}
        key, parts = self.shards.example(place, wanted.__contains__, whole)
        where = f"{self.shards.files.paths[self.shards.shard(place)]} {key}"
        return reading(Example(key, parts, printable(where)), printable(where))


def _records(shards: Shards, split: Path | None, part: str, reading: Reading) -> WebDatasetRecords:
    return WebDatasetRecords(shards, split, part, reading, load_places(split))
