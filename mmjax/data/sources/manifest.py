"""Your own images and captions: a JSONL, CSV or TSV file with one example a line."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.images import MAX_PIXELS, read_image, read_map
from mmjax.data.sources import groups, splits
from mmjax.data.sources.fields import TAKEN
from mmjax.data.sources.rows import Row, read_rows
from mmjax.data.sources.splits import SPLITS
from mmjax.data.spelling import nearest
from mmjax.data.types import Record

NUMBERED = ("image_id", "label", "group")  # by what else the file holds


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Examples listed in a file: image path, caption, class, in any combination that every line shares.

    A line's split is its field `split`; without one it is a hash of the image path (of the text where there are no images, of
    the further `fields` where there is neither), so that all captions of an image stay together. Each class is split by itself
    (lines without one together): by chance where it is large, so that adding a line moves no other, and where it is small (less
    than 200 images with the default fractions) so that it is in every split; see `splits.share_out`. A class with too few lines
    for that is said.

    Labels are all strings or all whole numbers; the label of a class is its place among the sorted classes of the whole file.
    A label that is empty, null or a negative whole number is no class: -1. A text may be a list of captions (JSONL), of which
    the pipeline draws one each time. Without a group field, lines of one image or with a caption in common are one group, and
    lines with a label and no text are grouped by it.

    Attributes:
      path: the file, `.csv`, `.tsv` or `.jsonl`.
      split: "train", "validation", "test" or "all".
      fractions: shares of train, validation and test, for a file without a field `split`.
      image_field: field of the image path.
      text_field: field of the caption.
      label_field: field of the class.
      group_field: field whose equal values make examples each other's positives (whole numbers, or any strings).
      pair_field: field of the second of two texts.
      root: folder that image paths are relative to; default: the folder of the file.
      separator: what parts the fields of a table, one character; "": a tab in `.tsv`, in `.csv` what its header shows.
      fields: record key -> a further field, whose value is passed on as it is: a string, a number or a list. In a table a
        column of nothing but numbers is one of numbers.
      maps: record key -> field of the path of a label map, read as int32 [H, W], see `images.read_map`.
      window: (low, high), the values that become black and white in images of more than 8 bits; None for a scale that the file
        itself gives, see `levels.to_bytes`.
      max_pixels: an image of more pixels counts as unreadable.
    """

    path: str = setting(everyday=True, path=True)
    split: str = "train"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    image_field: str = "image"
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

    def build(self) -> ManifestRecords:
        """Records with the keys that the file has, and `group`.

        Raises:
          UserError: no such file, a malformed line (named by its number), no lines at all or none in the split, a field named
            here that no line has, a key of `fields` or `maps` that a record has already, an unknown split, fractions that do
            not sum to 1, a window that is none.
        """
        self._check()
        rows = self._rows()
        kept = [row for row, split in zip(rows, self._splits(rows), strict=True) if self.split in (split, "all")]
        if not kept:
            raise UserError(f"Manifest.split={self.split!r}: none of the {len(rows)} lines of {self.path} are in it")
        sizes = Counter(row["label"] for row in rows if row.get("label") is not None)
        if "split" not in rows[0]:
            present = (row.get("label") for row in kept)
            splits.warn_of_absent(f"Manifest.path={self.path!r}", self.split, present, dict(sorted(sizes.items())))
        root = Path(self.path).parent if self.root is None else Path(self.root)
        rank = {label: i for i, label in enumerate(sorted(sizes))}
        made = zip(kept, _groups(kept, rank), strict=True)
        ids = image_ids(kept)
        examples = tuple({**_example(row, rank, group), **own} for (row, group), own in zip(made, ids, strict=True))
        names = tuple(str(label) for label in rank)
        return ManifestRecords(str(root), examples, names, tuple(self.maps), self.window, self.max_pixels)

    def _check(self) -> None:
        splits.check_split("Manifest", self.split, (*SPLITS, "all"))
        splits.check_fractions("Manifest", self.fractions)
        splits.check_images("Manifest", self.window, self.max_pixels)
        for option, named in (("fields", self.fields), ("maps", self.maps)):
            for key in named:
                if key in TAKEN or (option == "maps" and key in self.fields):
                    raise UserError(f"Manifest.{option}.{key}: a record has a {key!r} already; give it another name")

    def _rows(self) -> list[Row]:
        fields = {
            "image": self.image_field,
            "text": self.text_field,
            "text_pair": self.pair_field,
            "label": self.label_field,
            "group": self.group_field,
        }
        rows = read_rows(self.path, fields, self.fields, self.maps, self.separator)
        for key, field in fields.items():
            if field != key and key not in rows[0]:
                option = "pair_field" if key == "text_pair" else f"{key}_field"
                found = nearest(field, rows[0]["fields"])
                raise UserError(f"Manifest.{option}={field!r}: no line of {self.path} has it{found}")
        if "group" in rows[0]:  # numbered over the whole file, so that a group has one number in all splits
            for row, number in zip(rows, groups.numbered([row["group"] for row in rows]), strict=True):
                row["group"] = number
        return rows

    def _splits(self, rows: Sequence[Row]) -> list[str]:
        """The split of each line."""
        if "split" in rows[0]:
            return [row["split"] for row in rows]
        keys = [row.get("image") or json.dumps(row.get("text") or row["further"]) for row in rows]
        label: dict[str, Any] = {}  # of an image with several lines, the first one's
        for key, row in zip(keys, rows, strict=True):
            label.setdefault(key, row.get("label"))
        classes: dict[Any, list[str]] = {}
        for key, name in label.items():
            classes.setdefault(name, []).append(key)
        split = splits.share_out(classes, self.fractions)
        return [split[key] for key in keys]


@dataclasses.dataclass(frozen=True)
class ManifestRecords:
    """The lines of one split; images and label maps are read when asked for.

    Attributes:
      root: the folder that paths are relative to.
      examples: records whose image and label maps are still paths.
      classes: names in label order, () where nothing is labelled.
      maps: keys of the label maps.
      window, max_pixels: as the source has them.
    """

    root: str
    examples: Sequence[Record]
    classes: tuple[str, ...]
    maps: tuple[str, ...] = ()
    window: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def labels(self) -> tuple[int, ...]:
        """One an example, -1 for no class; () where nothing is labelled."""
        return tuple(example["label"] for example in self.examples) if "label" in self.examples[0] else ()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> Record:
        record = dict(self.examples[index])
        if "image" in record:
            record["image"] = read_image(os.path.join(self.root, record["image"]), self.window, self.max_pixels)
        for key in self.maps:
            if record[key] is None:  # nothing of this image is labelled
                image = record.get("image")
                if image is None:
                    raise UserError(f"Manifest.maps.{key}: a line without a map needs an image, whose size an empty one has")
                record[key] = np.full(image.shape[:2], -1, np.int32)
                continue
            record[key] = read_map(os.path.join(self.root, record[key]), self.max_pixels)
        return record

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        path = self.examples[index].get("image")
        return None if path is None else Path(self.root, path).read_bytes()

    def described(self, index: int) -> tuple[str, int, tuple[str, ...]]:
        example = self.examples[index]
        text, pair = example.get("text", ()), example.get("text_pair")
        texts = ((text,) if isinstance(text, str) else tuple(text)) + (() if pair is None else (pair,))
        told = {key: value for key, value in example.items() if key not in NUMBERED}
        return json.dumps(told, sort_keys=True), example.get("label", -1), texts

    def texts(self) -> Iterator[str]:
        for example in self.examples:
            text = example.get("text", ())
            yield from (text,) if isinstance(text, str) else text
            if "text_pair" in example:
                yield example["text_pair"]

    def texts_of(self, key: str) -> Iterator[str]:
        """The texts of one of the `fields`."""
        for example in self.examples:
            text = example.get(key) or ()
            yield from (str(one) for one in text) if isinstance(text, list | tuple) else (str(text),)

    def values_of(self, key: str) -> list[Any]:
        """See `types.Records`. Raises `UserError` for a key that no record has."""
        if key not in self.examples[0]:
            raise UserError(f"{key!r} is in no record{nearest(key, self.examples[0])}")
        return [example[key] for example in self.examples]

    def fingerprint(self) -> str:
        return splits.fingerprint([*self.maps, *(json.dumps(example, sort_keys=True) for example in self.examples)])


def image_ids(rows: Sequence[Row]) -> list[dict[str, int]]:
    """`image_id` for each line, equal for equal images; nothing where each line has an image of its own, or none."""
    paths = [row.get("image") for row in rows]
    rank = {path: number for number, path in enumerate(dict.fromkeys(paths))}
    if len(rank) == len(rows) or None in rank:
        return [{}] * len(rows)
    return [{"image_id": rank[path]} for path in paths]


def _groups(rows: Sequence[Row], rank: Mapping[Any, int]) -> list[int]:
    """The group of each line of a split: as written, else by the label where there is no text, else by image and text."""
    if "group" in rows[0]:
        return [row["group"] for row in rows]
    if "label" in rows[0] and "text" not in rows[0]:  # what has no class is a group of its own
        return [rank.get(row["label"], len(rank) + number) for number, row in enumerate(rows)]
    return groups.by_relation(rows)


def _example(row: Row, rank: Mapping[Any, int], group: int) -> Record:
    example: Record = {key: row[key] for key in ("image", "text", "text_pair") if key in row}
    if "label" in row:
        example["label"] = rank.get(row["label"], -1)
        if row["label"] is not None:
            example["name"] = str(row["label"])
    return {**example, "group": group, **row["further"], **row["maps"]}
