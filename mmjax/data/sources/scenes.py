"""Scenes: coloured digits, written by hand, on a small canvas; with a caption, a question and its answer, boxes and a map."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.spatial import NONE
from mmjax.data.sources import language
from mmjax.data.sources.digits import Digits
from mmjax.data.sources.language import ANSWERS, COLOURS, PLACES, Seen
from mmjax.data.spelling import nearest
from mmjax.data.splits import SPLITS, check_split, fingerprint
from mmjax.data.types import Record

RGB = {"red": (230, 50, 40), "green": (50, 200, 70), "blue": (60, 100, 255), "yellow": (240, 220, 50), "white": (240, 240, 240)}
TEXTS = ("caption", "question", "masked", "chinese")
TURN, SIZES = 10.0, (0.75, 1.0)  # degrees either way; a digit's side as a share of its cell's
DARKEST = 60  # the background's channels are below
INK = 0.4  # from here on a pixel is the digit's
SPREAD = 20  # of a colour's channels, either way


@dataclasses.dataclass(frozen=True)
class Scenes:
    """One to four of scikit-learn's digits, each in a quarter of the canvas, turned, scaled, moved and coloured.

    A scene is a pure function of (split, seed, place). It holds digits of the same split of `Digits` alone, so no scene of one
    split shows a written digit that a scene of another shows. A digit (`three`) is in a scene once at most.

    Attributes:
      split: "train", "validation" or "test".
      count: how many scenes.
      seed: of all that is drawn.
      image_size: (height, width) of the canvas in pixels; two cells a side.
      text: which of its texts is a record's `text`, "caption", "question", "masked" or "chinese".
      pictures: False gives the texts of the same scenes alone, which are not drawn.
    """

    split: str = "train"
    count: int = setting(everyday=True, least=1, default=10_000)
    seed: int = setting(least=0, default=0)
    image_size: tuple[int, int] = setting(least=16, default=(32, 32))
    text: str = "caption"
    pictures: bool = True

    def build(self) -> SceneRecords:
        """Records with the keys below; they are drawn when asked for.

        | key         | value                                                                                     |
        |-------------|-------------------------------------------------------------------------------------------|
        | `image`     | uint8 [H, W, 3]                                                                           |
        | `text`      | the one of the four below that `text` names                                               |
        | `caption`   | the digits in the order of reading: "a red three top left and a blue zero bottom right"   |
        | `masked`    | the caption with `[MASK]` for the digits' names: "a red [MASK] top left"                   |
        | `chinese`   | the caption in Chinese: "左上有一个红色的三"                                              |
        | `question`  | one about the scene, of six kinds                                                         |
        | `answer`    | its answer, of `language.ANSWERS`                                                         |
        | `label`     | the answer's place among them                                                             |
        | `kind`      | the question's kind, of `language.KINDS`                                                  |
        | `count`     | how many digits                                                                           |
        | `image_boxes` | float32 [4, 4], a box a cell in the order of reading, see `core.spatial`; -1 where it is empty |
        | `image_map` | int32 [H, W]: 1 + the digit that a pixel is of, 0 for the background                      |

        Raises:
          UserError: an unknown split or text, a number out of range, a canvas with an odd side.
        """
        check_split("Scenes", self.split, SPLITS)
        check_ranges(self, "Scenes.")
        if self.text not in TEXTS:
            raise UserError(f"Scenes.text={self.text!r} is none of what is said of a scene{nearest(self.text, TEXTS)}")
        if any(side % 2 for side in self.image_size):
            raise UserError(f"Scenes.image_size={self.image_size}: two cells a side need even sides")
        digits = Digits(self.split).build()
        by_digit = tuple(np.flatnonzero(digits.labels == digit) for digit in range(len(digits.classes)))
        return SceneRecords(self, digits.images[..., 0], by_digit, digits.fingerprint())


@dataclasses.dataclass(frozen=True, eq=False)
class SceneRecords:
    """The scenes of one split, drawn when asked for.

    Attributes:
      spec: what they are.
      ink: uint8 [N, 8, 8], the digits that they are made of.
      by_digit: for each of the ten, the rows of `ink` that are it.
      digits: the fingerprint of these.
      classes: the answers.
    """

    spec: Scenes
    ink: np.ndarray
    by_digit: tuple[np.ndarray, ...]
    digits: str
    classes: tuple[str, ...] = ANSWERS

    def __len__(self) -> int:
        return self.spec.count

    def __getitem__(self, index: int, /) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        rng = self._draws(index % len(self))
        seen = _seen(rng)
        asked = language.ask(seen, rng)
        record = self._drawn(seen, rng) if self.spec.pictures else {}
        texts = {"caption": language.caption(seen), "masked": language.masked(seen), "chinese": language.chinese(seen)}
        texts["question"] = asked.question
        return {
            "text": texts[self.spec.text],
            **texts,
            "answer": asked.answer,
            "label": ANSWERS.index(asked.answer),
            "kind": asked.kind,
            "count": len(seen),
            **record,
        }

    def texts(self) -> Iterator[str]:
        """Every phrase that its `text` may hold, each once."""
        yield from self.texts_of(self.spec.text)

    def texts_of(self, key: str) -> Iterator[str]:
        """The same of one key."""
        key = self.spec.text if key == "text" else key
        phrases: dict[str, Callable[[], Iterator[str]]] = {
            "caption": language.captions,
            "masked": lambda: language.captions(language.masked),
            "chinese": lambda: language.captions(language.chinese),
            "question": language.questions,
            "answer": lambda: iter(ANSWERS),
        }
        yield from phrases[key]() if key in phrases else ()

    def fingerprint(self) -> str:
        told = {f.name: getattr(self.spec, f.name) for f in dataclasses.fields(self.spec)}
        told = {
            name: value for name, value in told.items() if name != "pictures" or not value
        }  # as before there was that field
        return fingerprint([self.digits, *(f"{name}={value}" for name, value in told.items())])

    def _draws(self, place: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(key=[self.spec.seed, zlib.crc32(self.spec.split.encode())], counter=[0, 0, 0, place])
        )

    def _drawn(self, seen: tuple[Seen, ...], rng: np.random.Generator) -> Record:
        """The image, and what lies over it."""
        height, width = self.spec.image_size
        cell = (height // 2, width // 2)
        canvas_HW3 = np.empty((height, width, 3), np.float32)
        canvas_HW3[:] = rng.uniform(0, DARKEST, 3)
        map_HW = np.zeros((height, width), np.int32)
        boxes_N4 = np.full((len(PLACES), 4), NONE, np.float32)
        for one in seen:
            rows = self.by_digit[one.digit]
            ink_HW = _placed(self.ink[rows[rng.integers(len(rows))]], cell, rng)
            colour_3 = np.clip(np.array(RGB[COLOURS[one.colour]]) + rng.uniform(-SPREAD, SPREAD, 3), 0, 255)
            top, left = cell[0] * (one.place // 2), cell[1] * (one.place % 2)
            inside = (slice(top, top + cell[0]), slice(left, left + cell[1]))
            canvas_HW3[inside] += ink_HW[..., None] * (colour_3.astype(np.float32) - canvas_HW3[inside])
            its_HW = ink_HW >= INK
            map_HW[inside] = np.where(its_HW, one.digit + 1, 0)
            boxes_N4[one.place] = _around(its_HW) + np.array([left, top, left, top], np.float32)
        return {"image": np.rint(canvas_HW3).astype(np.uint8), "image_boxes": boxes_N4, "image_map": map_HW}


def _seen(rng: np.random.Generator) -> tuple[Seen, ...]:
    """What is in a scene, in the order of reading."""
    count = int(rng.integers(1, len(PLACES) + 1))
    places = sorted(rng.permutation(len(PLACES))[:count].tolist())
    digits = rng.permutation(10)[:count].tolist()
    colours = rng.integers(len(COLOURS), size=count).tolist()
    return tuple(Seen(*one) for one in zip(places, digits, colours, strict=True))


def _placed(ink_88: np.ndarray, cell: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """[h, w] float32 from 0 to 1: one digit, turned and scaled, somewhere in its cell. It is whole but for its corners."""
    side = ink_88.shape[0]
    share, angle = rng.uniform(*SIZES), math.radians(rng.uniform(-TURN, TURN))
    long = share * min(cell)
    y, x = (0.5 * edge + rng.uniform(-0.5, 0.5) * (edge - long) for edge in cell)
    cos, sin = math.cos(angle) * side / long, math.sin(angle) * side / long
    # From a pixel of the cell to its place in the digit, as PIL takes it.
    how = (cos, sin, side / 2 - cos * x - sin * y, -sin, cos, side / 2 + sin * x - cos * y)
    framed = Image.fromarray(ink_88)
    placed = framed.transform((cell[1], cell[0]), Image.Transform.AFFINE, how, Image.Resampling.BILINEAR)
    return np.asarray(placed, np.float32) / 255


def _around(its_HW: np.ndarray) -> np.ndarray:
    """[4] float32: the box around the pixels that are True; at least one is."""
    rows, columns = np.flatnonzero(its_HW.any(1)), np.flatnonzero(its_HW.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
