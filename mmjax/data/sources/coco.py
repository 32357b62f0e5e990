"""Images with COCO's annotations (captions, boxes, classes), or with conversations as LLaVA has them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data import splits
from mmjax.data.files import kept
from mmjax.data.files.mapped_texts import Packed, pack
from mmjax.data.files.remote import file_bytes, joined
from mmjax.data.images import MAX_PIXELS, printable, read_image
from mmjax.data.once import warn_once
from mmjax.data.sources import annotated
from mmjax.data.spelling import nearest
from mmjax.data.splits import SPLITS
from mmjax.data.types import BadRecordError, Record

VERSION = "coco-1"
TEXTS = ("question", "answer")
PAIRS = ("first", "each", "history")
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Coco:
    """An annotation file in JSON and a folder of images: COCO's captions and instances, or a list of LLaVA's conversations.

    With captions `text` is all captions of an image. With boxes a record has `image_boxes` (those that reach beyond the image
    are clipped to it), `image_classes` and `labels`; the names are those of the categories in the order of their ids. An image
    that nothing is annotated in has no boxes and no labels, which is true of it: it is kept. One without a caption, in a file
    of captions, is left out. With conversations a record has `question` and `answer`, and `text` is one of the two. What is
    left out or clipped is counted and said. Masks and keypoints are not read.

    Attributes:
      path: the file.
      images: folder of the images; default: that of the file.
      split: "all", or "train", "validation" or "test" by a hash of the image's path: adding images moves no other.
      fractions: shares of train, validation and test.
      conversation: "first" for the first question of each conversation, "each" for all, a record each and alone, "history" for
        all with the questions and answers before them in front, a line each.
      text: which of `question` and `answer` is the record's text.
      crowd: take boxes around crowds too (`iscrowd`); their classes are among `labels` in any case.
      window: (low, high), the values that become black and white in images of more than 8 bits; None for a scale that the file
        itself gives, see `levels.to_bytes`.
      max_pixels: an image of more pixels counts as unreadable.
    """

    path: str = setting(everyday=True, path=True)
    images: str | None = setting(everyday=True, path=True, default=None)
    split: str = "all"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    conversation: str = "first"
    text: str = "question"
    crowd: bool = False
    window: tuple[float, float] | None = None
    max_pixels: int = setting(least=1, default=MAX_PIXELS)

    def build(self) -> CocoRecords:
        """Records with those of these keys that the file has.

        | key             | value                                                                                |
        |-----------------|--------------------------------------------------------------------------------------|
        | `image`         | uint8 [H, W, 3]                                                                      |
        | `text`          | all captions, a tuple of str; or the question or the answer, as `text` says          |
        | `image_boxes`   | float32 [N, 4]: left, top, right, bottom in pixels, see `core.spatial`               |
        | `image_classes` | int32 [N], the class of each box: its place among the names                          |
        | `labels`        | tuple of str, the names of what is in the image, each once, in the order of the names |
        | `question`, `answer` | str, of conversations, without the mark of the image                            |
        | `image_id`      | int, the number of the conversation, where there is a record for each question        |

        Raises:
          UserError: no file, a malformed one (the place in it is named), an unknown category, nothing in the split, an unknown
            setting.
        """
        check_ranges(self, "Coco.")
        splits.check_split("Coco", self.split, (*SPLITS, "all"))
        splits.check_fractions("Coco", self.fractions)
        splits.check_images("Coco", self.window, self.max_pixels)
        for field, options in (("conversation", PAIRS), ("text", TEXTS)):
            if getattr(self, field) not in options:
                raise UserError(f"Coco.{field}={getattr(self, field)!r} is unknown{nearest(getattr(self, field), options)}")
        of = (VERSION, self.split, self.fractions, self.conversation, self.crowd)
        folder = kept.made_once(VERSION, [repr(of), *kept.identities([self.path])], self._index)
        records = CocoRecords(self, str(folder))
        for what, count in {**records.about["left_out"], **records.about.get("noted", {})}.items():
            warn_once(log, "Coco.path=%r: %d %s", self.path, count, what)
        if not len(records):
            raise UserError(f"Coco.split={self.split!r}: none of the {records.about['size']} records of {self.path} are in it")
        return records

    def _index(self, folder: Path) -> None:
        """Write all that the file says but its images as arrays."""
        found = annotated.read(self.path, self.conversation, self.crowd)
        chosen = list(range(len(found.files)))
        if self.split != "all":
            chosen = [i for i in chosen if splits.hash_split(found.files[i], self.fractions) == self.split]

        def of(values: Sequence[Any]) -> list[Any]:
            return [values[place] for place in chosen]

        pack(folder, "files", of(found.files))
        np.save(folder / "sizes.npy", np.array(of(found.sizes), np.int32).reshape(-1, 2))
        np.save(folder / "entries.npy", np.array(of(found.entries), np.int64))
        keys = []
        if found.captions is not None:
            keys.append("captions")
            captions = of(found.captions)
            pack(folder, "captions", [text for own in captions for text in own])
            _ends(folder, "captions_of", captions)
        if found.boxes is not None and found.kinds is not None and found.present is not None:
            keys.append("boxes")
            boxes, kinds, present = of(found.boxes), of(found.kinds), of(found.present)
            np.save(folder / "boxes.npy", np.array([box for own in boxes for box in own], np.float32).reshape(-1, 4))
            np.save(folder / "kinds.npy", np.array([kind for own in kinds for kind in own], np.int32))
            np.save(folder / "present.npy", np.array([kind for own in present for kind in own], np.int32))
            _ends(folder, "boxes_of", boxes)
            _ends(folder, "present_of", present)
        if found.turns is not None:
            keys.append("turns")
            for place, name in enumerate(TEXTS):
                pack(folder, name, [turn[place] for turn in of(found.turns)])
        about = {"names": found.names, "keys": keys, "size": len(found.files), "left_out": dict(found.left_out)}
        about |= {"noted": dict(found.noted)} if found.noted else {}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


class CocoRecords:
    """The images of one split; what is said of them lies in arrays that processes share."""

    def __init__(self, spec: Coco, folder: str) -> None:
        """`folder`: where `Coco` has written the arrays. Raises `UserError` where they are gone."""
        self.spec, self.folder = spec, folder
        self.root = os.path.dirname(spec.path) if spec.images is None else spec.images
        place = Path(folder)
        try:
            self.about: dict[str, Any] = json.loads((place / "about.json").read_text(encoding="utf-8"))
            self._texts = {path.name[: -len(".ends.npy")]: Packed(place, path.name[:-9]) for path in place.glob("*.ends.npy")}
            named = [path.stem for path in place.glob("*.npy") if path.stem.removesuffix(".ends") not in self._texts]
            self._arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in named}
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: what was made of {spec.path} is gone or broken ({error}); delete that folder") from None

    def __reduce__(self) -> tuple[type[CocoRecords], tuple[Coco, str]]:
        return CocoRecords, (self.spec, self.folder)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.about["names"])

    def __len__(self) -> int:
        return len(self._texts["files"])

    def __getitem__(self, index: int, /) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        path = joined(self.root, self._texts["files"][index])
        record: Record = {"image": read_image(path, self.spec.window, self.spec.max_pixels)}
        if "captions" in self.about["keys"]:
            record["text"] = self._captions(index)
        if "boxes" in self.about["keys"]:
            record |= self._boxes(index, record["image"].shape[:2], printable(path))
        if "turns" in self.about["keys"]:
            question, answer = (self._texts[name][index] for name in TEXTS)
            record |= {"text": answer if self.spec.text == "answer" else question, "question": question, "answer": answer}
            if self.spec.conversation != "first":
                record["image_id"] = int(self._arrays["entries"][index])
        return record

    def encoded(self, index: int) -> bytes:
        """See `types.Records`."""
        return file_bytes(self.root, self._texts["files"][index])

    def texts(self) -> Iterator[str]:
        for index in range(len(self)):
            yield from self._text(index)

    def texts_of(self, key: str) -> Iterator[str]:
        """The texts of one key."""
        if key == "text":
            yield from self.texts()
        elif key in self._texts and key in TEXTS:
            yield from self._texts[key]

    def fingerprint(self) -> str:
        """Of all that was read of the file, and of how images are."""
        told = {key: value for key, value in self.about.items() if key != "noted"}  # which says nothing of the records
        parts: list[str | bytes] = [json.dumps(told), self.spec.text, str(self.spec.window)]
        for name in sorted(path.name for path in Path(self.folder).glob("*.npy")):
            parts += [name, np.load(Path(self.folder) / name, mmap_mode="r").tobytes()]
        return splits.fingerprint(parts)

    def _text(self, index: int) -> tuple[str, ...]:
        if "captions" in self.about["keys"]:
            return self._captions(index)
        return (self._texts[self.spec.text][index],) if "turns" in self.about["keys"] else ()

    def _captions(self, index: int) -> tuple[str, ...]:
        start, end = map(int, self._arrays["captions_of"][index : index + 2])
        return tuple(self._texts["captions"][place] for place in range(start, end))

    def _boxes(self, index: int, size: tuple[int, int], where: str) -> Record:
        said = tuple(map(int, self._arrays["sizes"][index]))
        if said != (-1, -1) and said != size:
            sides = [f"{height} x {width}" for height, width in (size, said)]
            raise BadRecordError(where, f"the image is {sides[0]} pixels, and its annotations are of one of {sides[1]}")
        start, end = map(int, self._arrays["boxes_of"][index : index + 2])
        boxes_N4 = np.minimum(self._arrays["boxes"][start:end], np.array([size[1], size[0]] * 2, np.float32))
        inside_N = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(axis=1)  # of a file that does not say how large its images are
        start_of, end_of = map(int, self._arrays["present_of"][index : index + 2])
        names = self.about["names"]
        return {
            "image_boxes": np.ascontiguousarray(boxes_N4[inside_N]),
            "image_classes": np.array(self._arrays["kinds"][start:end][inside_N], np.int32),
            "labels": tuple(names[kind] for kind in self._arrays["present"][start_of:end_of]),
        }


def _ends(folder: Path, name: str, lists: Sequence[Sequence[Any]]) -> None:
    np.save(folder / f"{name}.npy", np.cumsum([0, *map(len, lists)], dtype=np.int64))
