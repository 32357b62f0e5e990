"""Your own images and captions: a JSONL or CSV file with one example a line."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.images import read_image
from mmjax.data.sources.rows import Row, read_rows
from mmjax.data.sources.splits import SPLITS, check_fractions, check_split, fingerprint, hash_split
from mmjax.data.spelling import nearest
from mmjax.data.types import Record


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Examples listed in a file: image path, caption, class, in any combination that every line shares.

    A line's split is its field `split`; without one it is a hash of the image path (of the text where there are no images), so
    that adding a line moves no other and all captions of an image stay together. Labels are all strings or all whole numbers;
    the label of a class is its place among the sorted classes of the whole file. A text may be a list of captions (JSONL), of
    which the pipeline draws one each time. Examples with a label and no text are grouped by label.

    Attributes:
      path: the file, `.csv` or `.jsonl`.
      split: "train", "validation", "test" or "all".
      fractions: shares of train, validation and test, for a file without a field `split`.
      image_field: field of the image path.
      text_field: field of the caption.
      label_field: field of the class.
      group_field: field whose equal values make examples each other's positives (a whole number, or any string).
      pair_field: field of the second of two texts.
      root: folder that image paths are relative to; default: the folder of the file.
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

    def build(self) -> ManifestRecords:
        """Records with the keys that the file has.

        Raises:
          UserError: no such file, a malformed line (named by its number), no lines at all or none in the split, a field named
            here that no line has, an unknown split, or fractions that do not sum to 1.
        """
        check_split("Manifest", self.split, (*SPLITS, "all"))
        check_fractions("Manifest", self.fractions)
        fields = {
            "image": self.image_field,
            "text": self.text_field,
            "text_pair": self.pair_field,
            "label": self.label_field,
            "group": self.group_field,
        }
        rows = read_rows(self.path, fields)
        for key, field in fields.items():
            if field != key and key not in rows[0]:
                option = "pair_field" if key == "text_pair" else f"{key}_field"
                found = nearest(field, rows[0]["fields"])
                raise UserError(f"Manifest.{option}={field!r}: no line of {self.path} has it{found}")
        kept = [row for row in rows if self.split in (self._split_of(row), "all")]
        if not kept:
            raise UserError(f"Manifest.split={self.split!r}: none of the {len(rows)} lines of {self.path} are in it")
        ordered = sorted({row["label"] for row in rows}) if "label" in rows[0] else []
        root = Path(self.path).parent if self.root is None else Path(self.root)
        rank = {label: i for i, label in enumerate(ordered)}
        examples = tuple(_example(row, rank) for row in kept)
        return ManifestRecords(str(root), examples, tuple(str(label) for label in ordered))

    def _split_of(self, row: Row) -> str:
        return row.get("split") or hash_split(row.get("image") or json.dumps(row["text"]), self.fractions)


@dataclasses.dataclass(frozen=True)
class ManifestRecords:
    """The lines of one split; images are read when asked for.

    Attributes:
      root: the folder that image paths are relative to.
      examples: records whose image is still a path.
      classes: names in label order, () where nothing is labelled.
    """

    root: str
    examples: Sequence[Record]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> Record:
        record = dict(self.examples[index])
        if "image" in record:
            record["image"] = read_image(os.path.join(self.root, record["image"]))
        return record

    def texts(self) -> Iterator[str]:
        for example in self.examples:
            text = example.get("text", ())
            yield from (text,) if isinstance(text, str) else text
            if "text_pair" in example:
                yield example["text_pair"]

    def fingerprint(self) -> str:
        return fingerprint(json.dumps(example, sort_keys=True) for example in self.examples)


def _example(row: Row, rank: dict[Any, int]) -> Record:
    example: Record = {key: row[key] for key in ("image", "text", "text_pair") if key in row}
    if "label" in row:
        example |= {"label": rank[row["label"]], "name": str(row["label"])}
    if "group" in row:
        example["group"] = _group(row["group"])
    elif "label" in row and "text" not in row:
        example["group"] = example["label"]
    return example


def _group(value: int | str) -> int:
    """A whole number that fits int32 as it is, anything else by a stable hash."""
    if isinstance(value, int) and 0 <= value < 2**31:
        return value
    return zlib.crc32(str(value).encode()) & 0x7FFFFFFF
