"""Compressed files of examples, which can only be read from their beginning on: JSON lines, and tar files of webdataset."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.fields import Fields, Reading
from mmjax.data.files.open_files import OpenFiles
from mmjax.data.files.remote import parent
from mmjax.data.files.shard_names import shard_names
from mmjax.data.files.shards import parted
from mmjax.data.files.tar import TarError, members
from mmjax.data.files.unpacked import SUFFIXES, onward, unpacked
from mmjax.data.images import printable
from mmjax.data.onward import OnwardRecords
from mmjax.data.sources.there import is_read
from mmjax.data.sources.web_dataset import IMAGES, Example
from mmjax.data.splits import fingerprint, hash_split, place_of
from mmjax.data.types import BadRecordError, Record

TRIED = 64  # examples that are asked for what fields they have
LINES = (".jsonl", ".ndjson", ".json")
TARS = (".tar", ".tgz", ".tbz2", ".txz")
SAME = {"image": IMAGES, "text": "txt", "label": "cls"}  # default fields, and what they are called in tar files
ENDLESS = 2**62

log = logging.getLogger(__name__)
Held = tuple[str, str, Any]  # what names it, its key, what it holds: a line, or the members of a tar


@dataclasses.dataclass(frozen=True)
class Streamed(Fields):
    """`.jsonl` and `.tar` files, compressed with gzip, bzip2, xz or zstd or not at all, read from the first to the last.

    For data that cannot be read in any order: where it can, `WebDataset` (tar) and `Manifest` (JSON lines) shuffle all of it,
    start anywhere at once, and let each process read its own share. Here every process reads all files and makes its own rows
    of them, so that batches are those of any number of processes; examples are shuffled within `shuffle_window` of them; a run
    that goes on starts at a position that is saved with it; and there are no mixtures, classes in balance or worker processes.
    `mmjax data prepare` makes ArrayRecord files of it, once.

    Fields are the keys of a JSON object; in tar files extensions, as `WebDataset` has them, which also go by "image", "text"
    and "label". A field with its default name is read where half of the first 64 examples or more have it. A split is by a hash
    of each line, in tar files of each example's key.

    Attributes:
      path: the files: "crawl/*.jsonl.zst", "shards/{000..099}.tar.gz" or one of them, on a disk or at an address.
      records: examples that an evaluation reads and that the steps of an epoch are counted by; those of the split, at most.
      shuffle_window: examples in memory, among which the order is shuffled.
    """

    path: str = setting(everyday=True, path=True)
    records: int = setting(everyday=True, least=1)
    _: dataclasses.KW_ONLY
    shuffle_window: int = setting(least=1, default=1000)

    def build(self) -> StreamedRecords:
        """The examples of the split in the order of the files, sorted by name.

        Raises:
          UserError: no such file, one of another kind, a field named here that none of the first examples has, an empty split;
            settings that are none. Later, from a batch: a file that is damaged, cut or changed.
        """
        check_ranges(self, "Streamed.")
        self.check_fields()
        paths = shard_names("Streamed", self.path)
        kinds = {_kind(path) for path in paths}
        if len(kinds) > 1 or None in kinds:
            odd = next((path for path in paths if _kind(path) is None), paths[-1])
            raise UserError(f"Streamed.path={self.path!r}: all files are .jsonl or all are .tar (.jsonl.gz ...); {odd} is not")
        files, tar = OpenFiles(paths), kinds == {"tar"}
        root = "" if tar else parent(paths[0])
        everything = StreamedRecords(self, files, tar, self.reading({}, root=root))
        looked = [found for held in everything.first(TRIED) if (found := everything.example(held)) is not None]
        if not looked:
            raise UserError(f"Streamed.split={self.split!r}: there is no example in {self.path}{everything.reason()}")
        reading = self.reading(self.found(_There(looked, self)), root=root)
        return StreamedRecords(self, files, tar, reading, fingerprint(repr(held[1:]) for held in everything.first(TRIED)))


class StreamedRecords(OnwardRecords):
    """See `Streamed`."""

    def __init__(self, spec: Streamed, files: OpenFiles, tar: bool, reading: Reading, begins: str = "") -> None:
        """`begins`: a hash of the first examples."""
        super().__init__(spec.records, spec.shuffle_window)
        self._spec, self._files, self._tar, self._reading = spec, files, tar, reading
        self._begins = begins
        named = (*reading.found.values(), *reading.fields.values())
        wanted = {SAME.get(field, field) for field in named}
        self._wanted = {one.partition("/")[0] for field in wanted for one in field.split(";")}

    @property
    def classes(self) -> tuple[str, ...]:
        return self._reading.names

    def read(self, position: Any) -> Iterator[tuple[Held, Any]]:
        """A position is the number of a file, and how many of its examples were read."""
        first, passed = position or (0, 0)
        for number in range(first, len(self._files.paths)):
            with unpacked(self._files, number) as stream:
                found = self._members(stream, number) if self._tar else self._lines(stream, number)
                for count, held in enumerate(found, 1):
                    own = self._spec.split == "all" or hash_split(held[1], self._spec.fractions) == self._spec.split
                    if own and (number > first or count > passed):
                        yield held, [number, count]

    def record(self, example: Any) -> Record:
        where = example[0]
        return self._reading(self._parsed(example), where)

    def texts(self) -> Iterator[str]:
        for held in self.first(len(self)):
            with contextlib.suppress(BadRecordError):
                yield from self._reading.texts(self._parsed(held))

    def texts_of(self, key: str) -> Iterator[str]:
        """The texts of one key; those that cannot be read are passed over."""
        field = self._reading.fields.get(key) or self._reading.found.get(key)
        only = dataclasses.replace(self._reading, found={"text": field or ""})
        for held in self.first(len(self)) if field else ():
            with contextlib.suppress(BadRecordError):
                yield from only.texts(self._parsed(held))

    def fingerprint(self) -> str:
        spec, files = self._spec, self._files
        there = (f"{files.name(number)} {size}" for number, (size, _) in enumerate(files.stamps))
        return fingerprint([*there, self._begins, f"{spec.split} of {spec.fractions}", f"{len(self)} in {self.windows.window}"])

    def reason(self) -> str:
        """Why the first of its examples cannot be read, after a bracket; "" where there is none at all."""
        for held in self.first(1):
            try:
                self._parsed(held)
            except BadRecordError as error:
                return f" that can be read ({error})"
        return ""

    def example(self, held: Held) -> Mapping[str, Any] | None:
        """The fields of an example; None for one that cannot be read."""
        try:
            return self._parsed(held)
        except BadRecordError:
            return None

    def _parsed(self, held: Held) -> Mapping[str, Any]:
        where, key, content = held
        if isinstance(content, BadRecordError):
            raise content
        if self._tar:
            return _Member(key, content, where)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise BadRecordError(where, f"not JSON ({error})") from None
        if not isinstance(found, dict):
            raise BadRecordError(where, "no JSON object")
        return found

    def _lines(self, stream: Any, number: int) -> Iterator[Held]:
        path = printable(self._files.paths[number])
        for count, line in enumerate(stream, 1):
            if line.strip():
                yield f"{path} line {count}", line.decode("utf-8", "surrogateescape"), line

    def _members(self, stream: Any, number: int) -> Iterator[Held]:
        """Members next to each other whose names differ in their extensions are one example."""
        path, read = printable(self._files.paths[number]), onward(stream)

        def wanted() -> Iterator[tuple[str, str, bytes]]:
            for member in members(read, 0, ENDLESS):
                if (named := parted(member.name)) is not None:
                    take = not self._wanted or named[1] in self._wanted
                    yield (
                        *named,
                        read(member.data, member.size) if take else b"",
                    )  # where it is cut the next header is not there

        met: set[int] = set()
        try:
            for key, group in itertools.groupby(wanted(), lambda found: found[0]):
                found, where = list(group), f"{path} {printable(key)}"
                parts = {extension: content for _, extension, content in found}
                wrong = "it has an extension more than once" if len(parts) < len(found) else ""
                wrong = (
                    "its key stands in more than one place: sort the members by their names" if place_of(key) in met else wrong
                )
                met.add(place_of(key))
                yield where, key, BadRecordError(where, wrong) if wrong else parts
        except TarError as error:
            raise UserError(f"{path}: {error}") from None


class _Member(Example):
    """An example of a tar file, whose usual fields also go by the names that they have elsewhere."""

    def __getitem__(self, field: str) -> Any:
        with contextlib.suppress(KeyError):
            return super().__getitem__(field)
        return super().__getitem__(SAME[field])


class _There(Collection[str]):
    """The fields that examples have, by the first ones of them."""

    def __init__(self, looked: Sequence[Mapping[str, Any]], spec: Streamed) -> None:
        self._looked, self._spec = looked, spec

    def __contains__(self, field: object) -> bool:
        assert isinstance(field, str)
        count, size = sum(self._has(one, field) for one in self._looked), len(self._looked)
        return is_read(log, self._spec, field, count, size, of="the first ")

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for one in self._looked for key in one))

    def __len__(self) -> int:
        return len(list(iter(self)))

    @staticmethod
    def _has(example: Mapping[str, Any], field: Any) -> bool:
        with contextlib.suppress(BadRecordError):
            return field in example
        return True  # what is wrong with it is said when it is read


def _kind(path: str) -> str | None:
    name = path.lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return "lines" if name.endswith(LINES) else "tar" if name.endswith(TARS) else None
