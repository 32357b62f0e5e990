"""Your own images and captions: a JSONL, CSV or TSV file with one example a line."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data import splits
from mmjax.data.clip import clip
from mmjax.data.fields import TAKEN
from mmjax.data.files.kept import identities, made_once
from mmjax.data.files.remote import file_bytes, is_address, joined, parent, stamps
from mmjax.data.images import MAX_PIXELS, read_image, read_map
from mmjax.data.sound import recording
from mmjax.data.spelling import nearest
from mmjax.data.splits import SPLITS
from mmjax.data.tables.chosen import Chosen, choose
from mmjax.data.tables.stored import DATA, LAYOUT, About, Stored, write_sealed
from mmjax.data.tables.storing import Asked, store
from mmjax.data.tables.table import check_path
from mmjax.data.types import Record

TABLE, CHOSEN = "manifest-1", "manifest-split-1"  # in the cache folder
SMALL = 4 << 20  # bytes of a file whose lines are held in memory
NUMBERED = ("image_id", "label", "group")  # by what else the file holds


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Examples listed in a file: path of an image, sound or video, caption, class, in any combination that every line shares.

    A line's split is its field `split`; without one it is a hash of the image path (of that of the sound or video where there
    are no images, of the text where there are no files, of the further `fields` where there is none of these), so that all
    captions of an image stay together. Each class is split by itself
    (lines without one together): by chance where it is large, so that adding a line moves no other, and where it is small (less
    than 200 images with the default fractions) so that it is in every split; see `splits.share_out`. A class with too few lines
    for that is said.

    Labels are all strings or all whole numbers; the label of a class is its place among the sorted classes of the whole file.
    A label that is empty, null or a negative whole number is no class: -1. A text may be a list of captions (JSONL), of which
    the pipeline draws one each time. Without a group field, lines of one image or with a caption in common are one group, and
    lines with a label and no text are grouped by it.

    Attributes:
      path: the file, `.csv`, `.tsv` or `.jsonl`; like `root` and the paths in it on a disk or at an address (`gs://`, `s3://`).
      split: "train", "validation", "test" or "all".
      fractions: shares of train, validation and test, for a file without a field `split`.
      image_field: field of the image path; "", here and in the next six: none is read, whatever the file has.
      audio_field: field of the path of a sound, which the column `Audio` reads.
      video_field: field of the path of a video, which the column `Video` reads.
      text_field: field of the caption.
      label_field: field of the class.
      group_field: field whose equal values make examples each other's positives (whole numbers, or any strings).
      pair_field: field of the second of two texts.
      root: folder that paths of images, sounds and videos are relative to; default: the folder of the file.
      separator: what parts the fields of a table, one character; "": a tab in `.tsv`, in `.csv` what its header shows.
      fields: record key -> a further field, whose value is passed on as it is: a string, a number or a list. In a table a
        column of nothing but numbers is one of numbers.
      maps: record key -> field of the path of a label map, read as int32 [H, W], see `images.read_map`.
      window: (low, high), the values that become black and white in images of more than 8 bits; None for a scale that the file
        itself gives, see `levels.to_bytes`.
      max_pixels: an image of more pixels counts as unreadable.
      optional: which of `image`, `audio` and `text` a line may lack (no field, null, empty); `Data.optional` comes to them.
    """

    path: str = setting(everyday=True, path=True)
    split: str = "train"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    image_field: str = "image"
    audio_field: str = "audio"
    video_field: str = "video"
    text_field: str = "text"
    label_field: str = "label"
    group_field: str = "group"
    pair_field: str = "text_pair"
    root: str | None = setting(path=True, default=None)
    separator: str = ""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    maps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    window: tuple[float, float] | None = None
    max_pixels: int = setting(least=1, default=MAX_PIXELS)
    optional: tuple[str, ...] = ()

    def build(self) -> ManifestRecords:
        """Records with the keys that the file has, and `group`.

        Raises:
          UserError: no such file, a malformed line (named by its number), no lines at all or none in the split, a field named
            here that no line has, a key of `fields` or `maps` that a record has already, an unknown split, fractions that do
            not sum to 1, a window that is none.
        """
        self._check()
        asked = self._asked()
        check_path(self.path, self.separator)
        small = (stamps([self.path])[0][0] if is_address(self.path) else os.path.getsize(self.path)) <= SMALL
        table = _in_memory(asked) if small else _in_cache(asked)
        about = table.about
        self._check_named(asked, about)
        chosen = self._in_split(table, not small)
        if chosen is None:
            raise UserError(f"Manifest.split={self.split!r}: none of the {about.rows} lines of {self.path} are in it")
        if "split" not in about.keys and self.split != "all":
            present = [about.labels[label] for label in chosen.present]
            sizes = dict(zip(about.labels, about.sizes, strict=True))
            splits.warn_of_absent(f"Manifest.path={self.path!r}", self.split, present, sizes)
        default = parent(self.path) if is_address(self.path) else str(Path(self.path).parent)
        root = default if self.root is None else self.root if is_address(self.root) else str(Path(self.root))
        return ManifestRecords(root, table, chosen, about.names, tuple(self.maps), self.window, self.max_pixels)

    def _check(self) -> None:
        splits.check_split("Manifest", self.split, (*SPLITS, "all"))
        splits.check_fractions("Manifest", self.fractions)
        splits.check_images("Manifest", self.window, self.max_pixels)
        for option, named in (("fields", self.fields), ("maps", self.maps)):
            for key in named:
                if key in TAKEN or (option == "maps" and key in self.fields):
                    raise UserError(f"Manifest.{option}.{key}: a record has a {key!r} already; give it another name")

        if not (self.image_field or self.audio_field or self.video_field or self.text_field or self.fields):
            raise UserError(
                "Manifest.text_field='' and image_field='' and audio_field='' and video_field='': nothing is left to read; "
                "name one of them, or fields"
            )
        if not self.text_field and self.pair_field not in ("", "text_pair"):
            raise UserError(f"Manifest.pair_field={self.pair_field!r} needs a text before it, and text_field='' reads none")

    def _asked(self) -> Asked:
        fields = {
            "image": self.image_field,
            "audio": self.audio_field,
            "video": self.video_field,
            "text": self.text_field,
            "text_pair": self.pair_field if self.text_field else "",
            "label": self.label_field,
            "group": self.group_field,
        }
        fields = {key: field for key, field in fields.items() if field}
        optional = tuple(key for key in ("image", "audio", "video", "text") if key in self.optional)
        return Asked(self.path, fields, dict(self.fields), dict(self.maps), self.separator, optional)

    def _check_named(self, asked: Asked, about: About) -> None:
        for key, field in asked.fields.items():
            if field != key and key not in about.keys:
                option = "pair_field" if key == "text_pair" else f"{key}_field"
                found = nearest(field, about.fields)
                raise UserError(f"Manifest.{option}={field!r}: no line of {self.path} has it{found}")

    def _in_split(self, table: Stored, cached: bool) -> Chosen | None:
        """The lines of the split; None where there is none."""
        if not cached:
            return choose(table, self.split, self.fractions, tuple(self.maps))

        def make(folder: Path) -> None:
            found = choose(table, self.split, self.fractions, tuple(self.maps), folder)
            if found is None:
                raise _NothingError
            found.save(folder)

        try:
            of = [str(table.data), self.split, repr(tuple(map(float, self.fractions))), *self.maps]
            return Chosen.at(made_once(CHOSEN, of, make), check=True)
        except _NothingError:
            return None


class _NothingError(Exception):
    """A split has no line."""


def _in_memory(asked: Asked) -> Stored:
    sink = io.BytesIO()
    return Stored(*_stored(asked, sink), sink.getvalue())


def _in_cache(asked: Asked) -> Stored:
    def make(folder: Path) -> None:
        with open(folder / DATA, "w+b") as sink:
            about, layout = _stored(asked, sink)
        np.save(folder / LAYOUT, layout)
        write_sealed(folder, {"about": dataclasses.asdict(about), "layout": zlib.crc32((folder / LAYOUT).read_bytes())})

    return Stored.at(made_once(TABLE, [repr(asked), *identities([asked.path])], make))


def _stored(asked: Asked, sink: BinaryIO) -> tuple[About, np.ndarray]:
    before = identities([asked.path])
    found = store(asked, sink)
    if identities([asked.path]) != before:
        raise UserError(f"Manifest.path={asked.path!r}: the file was changed while it was read; start again")
    return found


@dataclasses.dataclass(frozen=True)
class ManifestRecords:
    """The lines of one split; images, sounds, videos and label maps are read when asked for.

    Attributes:
      root: the folder that paths are relative to.
      table: the lines of the whole file.
      chosen: which of them are in the split.
      classes: names in label order, () where nothing is labelled.
      maps: keys of the label maps.
      window, max_pixels: as the source has them.
    """

    root: str
    table: Stored
    chosen: Chosen
    classes: tuple[str, ...]
    maps: tuple[str, ...] = ()
    window: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def labels(self) -> tuple[int, ...]:
        """One an example, -1 for no class; () where nothing is labelled."""
        return tuple(self._column("label")) if "label" in self.table.about.keys else ()

    @property
    def examples(self) -> Examples:
        """Records whose image and label maps are still paths."""
        return Examples(self)

    def example(self, index: int) -> Record:
        """A record whose image and label maps are still paths."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        chosen, about = self.chosen, self.table.about
        keys = [key for key in about.keys if key not in ("group", "split")]
        line = index if chosen.places is None else int(chosen.places[index])
        found: Record = {}
        further: Record = {}
        for key, value in zip(keys, self.table.cells(line, keys), strict=True):
            room, _, name = key.partition(".")
            if name:
                further[name] = value
            elif key == "label":
                found["label"] = about.rank[value] if value >= 0 else -1
                if value >= 0:
                    found["name"] = self.classes[found["label"]]
            elif value is not None:
                found[room] = value
        found |= {"group": int(chosen.groups[index]), **further}
        return found if chosen.image_ids is None else {**found, "image_id": int(chosen.image_ids[index])}

    def __len__(self) -> int:
        return self.chosen.size

    def __getitem__(self, index: int, /) -> Record:
        record = self.example(index)
        if "image" in record:
            record["image"] = read_image(joined(self.root, record["image"]), self.window, self.max_pixels)
        if "audio" in record:
            record["audio"] = recording(record["audio"], "", self.root)
        if "video" in record:
            record["video"] = clip(record["video"], "", self.root)
        for key in self.maps:
            if record[key] is None:  # nothing of this image is labelled
                image = record.get("image")
                if image is None:
                    raise UserError(f"Manifest.maps.{key}: a line without a map needs an image, whose size an empty one has")
                record[key] = np.full(image.shape[:2], -1, np.int32)
                continue
            record[key] = read_map(joined(self.root, record[key]), self.max_pixels)
        return record

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        path = self.examples[index].get("image")
        return None if path is None else file_bytes(self.root, path)

    def described(self, index: int) -> tuple[str, int, tuple[str, ...]]:
        example = self.example(index)
        text, pair = example.get("text", ()), example.get("text_pair")
        texts = ((text,) if isinstance(text, str) else tuple(text)) + (() if pair is None else (pair,))
        told = {key: value for key, value in example.items() if key not in NUMBERED}
        return json.dumps(told, sort_keys=True), example.get("label", -1), texts

    def texts(self) -> Iterator[str]:
        keys = [key for key in ("text", "text_pair") if key in self.table.about.keys]
        for _, batch in self.table.batches(self.chosen.places):
            columns = [self.table.values(batch, key) for key in keys]
            for values in zip(*columns, strict=True):
                for value in values:
                    yield from (value,) if isinstance(value, str) else value or ()

    def texts_of(self, key: str) -> Iterator[str]:
        """The texts of one of the `fields`."""
        room = next((own for own in (key, f"fields.{key}", f"maps.{key}") if own in self.table.about.keys), None)
        if key in NUMBERED or key == "name":
            values: Iterable[Any] = (example.get(key) for example in self.examples)
        else:
            values = () if room is None else self._column(room)
        for value in values:
            text = value or ()
            yield from (str(one) for one in text) if isinstance(text, list | tuple) else (str(text),)

    def values_of(self, key: str) -> list[Any]:
        """See `types.Records`. Raises `UserError` for a key that no record has."""
        if key not in self.examples[0]:
            raise UserError(f"{key!r} is in no record{nearest(key, self.examples[0])}")
        return [example.get(key) for example in self.examples]

    def fingerprint(self) -> str:
        return self.chosen.digest

    def _column(self, key: str) -> Iterator[Any]:
        for _, batch in self.table.batches(self.chosen.places):
            values = self.table.values(batch, key)
            yield from values if key != "label" else (self.table.about.rank[value] if value >= 0 else -1 for value in values)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(Sequence[Record]):
    """The lines of one split as records, made when asked for."""

    records: ManifestRecords

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any, /) -> Any:
        if isinstance(index, slice):
            return [self.records.example(place) for place in range(*index.indices(len(self)))]
        return self.records.example(index)
