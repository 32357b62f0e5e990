"""Annotations of images in JSON: COCO's captions and instances, and conversations as LLaVA has them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.files import remote

HUMAN, MODEL = ("human", "user"), ("gpt", "assistant")
MARK = "<image>"  # where the image stands in a turn
NO_CAPTION = "image(s) without a caption"
STRANGER = "annotation(s) of images that the file does not list"
BARE = "annotation(s) with neither a caption nor a box"
FLAT = "box(es) without an area in their image"
CLIPPED = "box(es) more than a pixel beyond their image, clipped to it"
CROWD = "box(es) of crowds"
NO_IMAGE = "conversation(s) without exactly one image"
NO_PAIR = "conversation(s) without a question and its answer"
NO_MARK = f"conversation(s) that say nowhere where their image stands ({MARK}): it is given as that of the others"


@dataclasses.dataclass
class Annotated:
    """What a file says, an entry a record.

    Attributes:
      files: paths of the images, below their folder.
      names: of the classes, in the order of the ids of the categories.
      captions, boxes, kinds, present: of each record; None where the file has none of them. Boxes are left, top, right, bottom;
        `kinds` are their classes; `present` the classes of all that is in the image, crowds included, rising, each once.
      sizes: (height, width) of each image, -1 where the file does not say.
      turns: (question, answer) of each record; None where there are no conversations.
      entries: the number of the entry in the file that a record is of.
      left_out: what was left out or changed, how often.
      noted: what else is to be said, how often.
    """

    files: list[str]
    names: tuple[str, ...] = ()
    captions: list[list[str]] | None = None
    boxes: list[list[tuple[float, ...]]] | None = None
    kinds: list[list[int]] | None = None
    present: list[list[int]] | None = None
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    turns: list[tuple[str, str]] | None = None
    entries: list[int] = dataclasses.field(default_factory=list)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    noted: Counter[str] = dataclasses.field(default_factory=Counter)


def read(path: str, conversation: str, crowd: bool) -> Annotated:
    """What the file says.

    Args:
      conversation: "first" or "each", the pairs of question and answer that are taken; "history": each, with those before it.
      crowd: whether boxes of crowds are.

    Raises:
      UserError: no file, no JSON, or something in it that is not what it should be, named by its place.
    """
    try:
        with io.BytesIO(remote.content(path)) if remote.is_address(path) else open(path, "rb") as file:
            whole = json.load(file)
    except OSError as error:
        raise UserError(f"Coco.path={path!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"Coco.path={path!r} is cut or no JSON: {' '.join(str(error).split())}") from None
    if isinstance(whole, list):
        return _conversations(path, whole, conversation)
    if not isinstance(whole, dict) or not {"images", "annotations"} <= whole.keys():
        raise UserError(f"{path} has neither 'images' and 'annotations', as COCO has, nor is it a list of conversations")
    return _Instances(path, whole, crowd).annotated()


class _Instances:
    """COCO's form on its way."""

    def __init__(self, path: str, whole: dict[str, Any], crowd: bool) -> None:
        self.path, self.crowd = path, crowd
        self.left_out: Counter[str] = Counter()
        self.images, self.notes = (list(_objects(path, whole, key)) for key in ("images", "annotations"))
        categories = list(_objects(path, whole, "categories")) if "categories" in whole else []
        ids = [_id(f"{path}: categories[{place}].id", one.get("id")) for place, one in enumerate(categories)]
        named = sorted(zip(ids, categories, strict=True), key=lambda pair: (isinstance(pair[0], str), pair[0]))
        self.names = tuple(_text(f"{path}: the category {own}", one.get("name")) for own, one in named)
        self.rank = {own: place for place, (own, _) in enumerate(named)}
        if len(self.rank) < len(ids) or len(set(self.names)) < len(ids):
            raise UserError(f"{path}: two categories have one id or one name")

    def annotated(self) -> Annotated:
        captioned = any("caption" in note for note in self.notes)
        boxed = any("bbox" in note for note in self.notes)
        if not captioned and not boxed:
            raise UserError(f"{self.path}: its {len(self.notes)} annotations have neither 'caption' nor 'bbox'")
        size = len(self.images)
        found = Annotated([], self.names if boxed else ())
        place: dict[int | str, int] = {}
        for number, image in enumerate(self.images):
            where = f"{self.path}: images[{number}]"
            own = _id(f"{where}.id", image.get("id"))
            if own in place:
                raise UserError(f"{where}: a second image has the id {own!r}")
            place[own] = number
            found.files.append(_text(f"{where}.file_name", image.get("file_name")))
            height, width = (_side(image.get(side)) for side in ("height", "width"))
            found.sizes.append((height, width) if min(height, width) > 0 else (-1, -1))
        captions: list[list[str]] = [[] for _ in range(size)]
        boxes: list[list[tuple[float, ...]]] = [[] for _ in range(size)]
        kinds: list[list[int]] = [[] for _ in range(size)]
        present: list[list[int]] = [[] for _ in range(size)]
        for number, note in enumerate(self.notes):
            where = f"{self.path}: annotations[{number}]"
            of = place.get(_id(f"{where}.image_id", note.get("image_id")), -1)
            if of < 0:
                self.left_out[STRANGER] += 1
                continue
            if "caption" in note:
                captions[of].append(_text(f"{where}.caption", note["caption"]))
            self.left_out[BARE] += "caption" not in note and "bbox" not in note
            if "bbox" in note:
                self._box(where, note, found.sizes[of], boxes[of], kinds[of], present[of])
        found.entries = list(range(size))
        found.captions = captions if captioned else None
        if boxed:
            found.boxes, found.kinds, found.present = boxes, kinds, [sorted(set(own)) for own in present]
        found.left_out = +self.left_out
        return _without_captionless(found)

    def _box(
        self,
        where: str,
        note: dict[str, Any],
        size: tuple[int, int],
        boxes: list[tuple[float, ...]],
        kinds: list[int],
        present: list[int],
    ) -> None:
        own = _id(f"{where}.category_id", note.get("category_id"))
        if own not in self.rank:
            raise UserError(f"{where}: category_id={own!r} is none of the {len(self.rank)} categories")
        left, top, width, height = _numbers(f"{where}.bbox", note["bbox"])
        present.append(self.rank[own])
        if note.get("iscrowd") and not self.crowd:
            self.left_out[CROWD] += 1
            return
        limit = [side if side > 0 else math.inf for side in size]
        corners = (max(left, 0.0), max(top, 0.0), min(left + width, limit[1]), min(top + height, limit[0]))
        box = tuple(map(float, np.array(corners, np.float32)))
        if not (box[2] > box[0] and box[3] > box[1] and width > 0 and height > 0):
            self.left_out[FLAT] += 1
            return
        if max(-left, -top, left + width - limit[1], top + height - limit[0]) > 1:
            self.left_out[CLIPPED] += 1
        boxes.append(box)
        kinds.append(self.rank[own])


def _without_captionless(found: Annotated) -> Annotated:
    """Where a file has captions, its images without one are left out: a record has no text that is none."""
    if found.captions is None or all(found.captions):
        return found
    kept = [place for place, own in enumerate(found.captions) if own]
    found.left_out[NO_CAPTION] += len(found.captions) - len(kept)
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if isinstance(value, list):
            setattr(found, field.name, [value[place] for place in kept])
    return found


def _conversations(path: str, whole: list[Any], conversation: str) -> Annotated:
    found = Annotated([], turns=[])
    assert found.turns is not None
    for number, entry in enumerate(whole):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
            raise UserError(f"{where} has no list 'conversations'")
        image = entry.get("image")
        image = image[0] if isinstance(image, list) and len(image) == 1 else image
        if image is None or isinstance(image, list):
            found.left_out[NO_IMAGE] += 1
            continue
        pairs = _pairs(where, entry["conversations"])
        if not pairs:
            found.left_out[NO_PAIR] += 1
        elif not any(MARK in turn["value"] for turn in entry["conversations"]):
            found.noted[NO_MARK] += 1
        if conversation == "history":
            said = [turn for pair in pairs for turn in pair]
            pairs = [("\n".join(said[: 2 * place + 1]), answer) for place, (_, answer) in enumerate(pairs)]
        for pair in pairs[:1] if conversation == "first" else pairs:
            found.files.append(_text(f"{where}.image", image))
            found.sizes.append((-1, -1))
            found.turns.append(pair)
            found.entries.append(number)
    return found


def _pairs(where: str, turns: list[Any]) -> list[tuple[str, str]]:
    """Each question with the answer right after it; neither is empty."""
    found, question = [], ""
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str):
            raise UserError(f"{where}: turn {number} does not say whom it is 'from'")
        said = _text(f"{where}: turn {number}.value", turn.get("value"), empty=True)
        if turn["from"] in MODEL and question and said:
            found.append((question, said))
        question = _unmarked(said) if turn["from"] in HUMAN else ""
    return found


def _unmarked(said: str) -> str:
    for mark in (f"{MARK}\n", f"\n{MARK}", MARK):
        said = said.replace(mark, "")
    return said.strip()


def _objects(path: str, whole: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    if not isinstance(whole[key], list):
        raise UserError(f"{path}: {key!r} is a {type(whole[key]).__name__}, and should be a list")
    for place, one in enumerate(whole[key]):
        if not isinstance(one, dict):
            raise UserError(f"{path}: {key}[{place}] is a {type(one).__name__}, and should be an object")
        yield one


def _side(value: Any) -> int:
    return value if type(value) is int and 0 < value < 2**31 else -1


def _id(where: str, value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where} is {str(value)[:60]!r}, and should be a whole number or a string")
    return value


def _text(where: str, value: Any, empty: bool = False) -> str:
    """Without blanks around it; half a character becomes a question mark."""
    if not isinstance(value, str) or not (value.strip() or empty):
        raise UserError(f"{where} is {str(value)[:60]!r}, and should be a text")
    return value.strip().encode("utf-8", "replace").decode()


def _numbers(where: str, value: Any) -> tuple[float, ...]:
    if isinstance(value, list) and len(value) == 4 and all(type(one) in (int, float) and abs(one) < 1e9 for one in value):
        return tuple(map(float, value))
    raise UserError(f"{where} is {str(value)[:60]}, and should be [left, top, width, height] in pixels")
