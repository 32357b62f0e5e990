"""The records of any source as ArrayRecord shards, each a function of the records and of its number: `mmjax data prepare`."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmjax.core.config import CLASS, children, class_name, is_spec, to_json
from mmjax.core.errors import UnreachableError, UserError, within
from mmjax.data.fields import strings_of, with_optional
from mmjax.data.pipeline import Data
from mmjax.data.sources.array_record import write_array_record
from mmjax.data.sources.prepared import ABOUT, Prepared, example_of, unreadable_of
from mmjax.data.sources.subset import image_file
from mmjax.data.types import BadRecordError, Records

SHARDS = 16  # where nobody says how many
AHEAD = 64  # records that are read at once

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is said of a shard beside it, in `NAME.json`.

    Attributes:
      records: how many it has.
      size: bytes of the file.
      sha256: of the file.
      files: images that are held as the files they were.
      png: images that are held as PNG of their pixels.
      unreadable: (number of the record in the source, its file or name, the reason) of those that could not be read.
    """

    records: int
    size: int
    sha256: str
    files: int
    png: int
    unreadable: tuple[tuple[int, str, str], ...]


@dataclasses.dataclass
class _Tally:
    """What is counted while a shard is written.

    Attributes:
      most: unreadable records that a shard may have.
      what: in words, for the complaint about more.
    """

    most: float
    what: str
    images: Counter[str] = dataclasses.field(default_factory=Counter)
    unreadable: list[tuple[int, str, str]] = dataclasses.field(default_factory=list)

    def count(self, image: str, unreadable: tuple[int, str, str] | None) -> None:
        """Raises `UserError` for one unreadable record too many."""
        self.images[image] += 1
        if unreadable is not None:
            self.unreadable.append(unreadable)
            if len(self.unreadable) > self.most:
                raise UserError(f"{self.what}; the last: {unreadable[1]} ({unreadable[2]})")


def prepare(data: Data, name: str, out: str | Path, shards: int = 0, only: int | None = None) -> dict[str, Any]:
    """Write the records of a source as it gives them, before any transform, into a folder that `ArrayRecord(out)` reads.

    Which records are in a shard, and its bytes, depend on the records, on its number and on how many shards there are alone
    (PNG is written by Pillow: images that are not kept as their files have the same pixels everywhere, and the same bytes where
    Pillow is the same). A shard is written beside its place and moved there when it is whole; those that are there are left as
    they are. Unreadable records stay in their places, unreadable.

    Args:
      name: of the data, for complaints.
      shards: how many; 0 for those of a folder that is begun, else `SHARDS`, or as many as there are records where these are
        fewer.
      only: the number of the one shard to write; None for all.

    Returns:
      What was done, JSON-able: `written` and `there` (shards now and before), `missing`, and over all shards that are there
      `records`, `unreadable`, `files`, `png` (images held so) and `bytes`.

    Raises:
      UserError: a folder of other records; a mixture with weights; a value that cannot be held, named by its record; more
        shards than records; more unreadable records than `bad_record_limit` allows; a folder that cannot be written, or a full
        disk.
    """
    with within(f"data.{name}"):
        records = with_optional(data.source, data.optional).build()
        if hasattr(records, "shares") and records.shares():
            kind = type(data.source).__name__
            raise UserError(f"source: {kind} draws some records more often than others: prepare what it draws from, each alone")
        if hasattr(records, "lists"):
            raise UserError("source: Grouped says which records are drawn together: prepare what it groups, and group that")
        about = _about(records, data.source, shards or _shards_in(Path(out)) or min(SHARDS, len(records)))
        if only is not None and not 0 <= only < about.shards:
            raise UserError(f"shard {only} of {about.shards}: they are numbered from 0 to {about.shards - 1}")
        _say_other_texts(records)
        place = _opened(Path(out), about)
        chosen = range(about.shards) if only is None else [only]
        there = {
            number: found
            for number in range(about.shards)
            if (found := _whole(place, about, number, number in chosen)) is not None
        }
        before, limit = len(there), data.bad_record_limit
        written = [number for number in chosen if number not in there]
        for number in written:
            most = limit * about.size - sum(len(one.unreadable) for one in there.values())
            what = f"more than bad_record_limit={limit} of the {about.size} records cannot be read"
            there[number] = _write(place / about.name(number), about.places(number), records, data.threads, _Tally(most, what))
    counted = {field: sum(getattr(one, field) for one in there.values()) for field in ("records", "files", "png")}
    done = {"out": str(out), "data": name, "shards": about.shards, "written": len(written), "there": before}
    return {
        **done,
        "missing": about.shards - len(there),
        **counted,
        "unreadable": sum(len(one.unreadable) for one in there.values()),
        "bytes": sum(one.size for one in there.values()),
    }


def said(done: dict[str, Any]) -> str:
    """One line of what `prepare` has done."""
    held = [f"{done[kind]} images {words}, " for kind, words in (("files", "as their files"), ("png", "as PNG")) if done[kind]]
    whole = f"missing yet: {done['missing']}" if done["missing"] else f"ArrayRecord({done['out']!r}) reads it"
    return (
        f"{done['out']}: {done['written']} of {done['shards']} shards written, {done['there']} were there; {done['records']} "
        f"records, {''.join(held)}{done['unreadable']} unreadable, {done['bytes'] / 1e6:.1f} MB; {whole}"
    )


def _about(records: Records, source: Any, shards: int) -> Prepared:
    size = len(records)
    if not size:
        raise UserError(f"source: {source!r} has no records")
    if not 1 <= shards <= size:
        raise UserError(f"shards={shards}: give a number from 1 to {size}, which is how many records there are")
    spec = json.dumps(_without_paths(source), sort_keys=True)
    return Prepared(records.fingerprint(), spec, size, shards, tuple(records.classes))


def _shards_in(out: Path) -> int:
    """How many shards a folder that is begun is to have; 0 for no such folder."""
    found = Prepared.at(out)
    return 0 if found is None else found.shards


def _without_paths(spec: Any) -> Any:
    """The JSON of a spec but for its paths: they may be others on another machine, and the records the same."""
    if isinstance(spec, Mapping):
        return {str(name): _without_paths(one) for name, one in spec.items()}
    if not is_spec(spec):
        return to_json(spec)
    marked = {field.name for field in dataclasses.fields(spec) if field.metadata.get("path")}
    own = {name: _without_paths(value) for name, value in children(spec).items() if name not in marked}
    return {CLASS: class_name(type(spec)), **own}


def _say_other_texts(records: Records) -> None:
    """Say where a tokenizer trained on the source would be another: its texts are not those of its records."""
    try:
        first = records[0]
    except BadRecordError:
        return
    own = (*strings_of(first.get("text")), *strings_of(first.get("text_pair")))
    if tuple(itertools.islice(records.texts(), len(own))) != own:
        log.warning(
            "the source says texts for a tokenizer that are not those of its records: one that is trained on the prepared "
            "folder numbers its tokens otherwise; give a tokenizer of a folder (Pretrained)"
        )


def _opened(out: Path, about: Prepared) -> Path:
    """The folder, which says what it holds."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder")
    try:
        found = Prepared.at(out)
        if found is not None and found != about:
            differing = [
                field.name for field in dataclasses.fields(found) if getattr(found, field.name) != getattr(about, field.name)
            ]
            sides = [f"{name}: {getattr(found, name)!r:.60} there, {getattr(about, name)!r:.60} here" for name in differing[:1]]
            raise UserError(f"{out} holds other records ({sides[0]}); give another folder")
        out.mkdir(parents=True, exist_ok=True)
        if found is None:
            _put(out / ABOUT, about.json())
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}") from None
    return out


def _put(file: Path, text: str) -> None:
    """Write a file whole or not at all; several processes may write the same at once."""
    beside = file.with_name(f".{file.name}-{uuid.uuid4().hex}.part")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)


def _whole(place: Path, about: Prepared, number: int, read: bool) -> Shard | None:
    """What is said of a shard that is there and is whole; None where it has to be written.

    `read`: also hold its bytes against their hash; those of others' shards are theirs to read.
    """
    file = place / about.name(number)
    try:
        found = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        shard = Shard(**{**found, "unreadable": tuple((int(at), path, why) for at, path, why in found["unreadable"])})
        there = file.stat().st_size
        if read and there == shard.size and _digest(file) != shard.sha256:
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return shard if there == shard.size and shard.records == len(about.places(number)) else None


def _write(file: Path, places: range, records: Records, threads: int, tally: _Tally) -> Shard:
    """Write a shard, and what is said of it."""
    count = write_array_record(file, _examples(records, places, threads, tally))
    try:
        digest = _digest(file)
        size = file.stat().st_size
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    shard = Shard(count, size, digest, tally.images["file"], tally.images["png"], tuple(tally.unreadable))
    _put(file.with_suffix(".json"), json.dumps(dataclasses.asdict(shard)) + "\n")
    return shard


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _examples(records: Records, places: range, threads: int, tally: _Tally) -> Iterator[dict[str, Any]]:
    """The records of a shard as values to write, in their order."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(places), AHEAD):
            for values, image, unreadable in pool.map(lambda index: _example(records, index), places[start : start + AHEAD]):
                tally.count(image, unreadable)
                yield values


def _example(records: Records, index: int) -> tuple[dict[str, Any], str, tuple[int, str, str] | None]:
    """The values to write of a record, how its image is held, and what is to be said of one that cannot be read."""
    try:
        record = records[index]
    except BadRecordError as error:
        if isinstance(
            error.__cause__, UnreachableError
        ):  # it may be good, and what is written here says for ever that it is not
            raise error.__cause__ from None
        label, texts = records.described(index)[1:] if hasattr(records, "described") else (-1, ())
        return unreadable_of(error, label, texts), "", (index, error.path, error.reason)
    try:
        return *example_of(record, image_file(records, index)), None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"record {index}: {error}") from None
    except OSError as error:  # read a moment ago, and gone now
        raise UserError(f"record {index}: {error.filename}: {error.strerror}") from None
