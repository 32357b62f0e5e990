"""Moving digits: short videos of digits, written by hand, that cross a dark canvas; which way they go no single frame tells."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.sources.digits import Digits
from mmjax.data.splits import SPLITS, check_split, fingerprint
from mmjax.data.types import Record

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
COUNTS = ("one", "two", "three")
SPEEDS = (1.0, 2.0)  # pixels a frame
SHADES = (120, 255)  # of a digit, where its ink is full
DARKEST = 60  # the background is below
TRIES = 1000  # draws of places that do not touch


@dataclasses.dataclass(frozen=True)
class Moving:
    """One to three of scikit-learn's digits that go the same way at the same speed, and come in again where they went out.

    A video is a pure function of (split, seed, place). It holds digits of the same split of `Digits` alone, so no video of one
    split shows a written digit that a video of another shows. The digits do not touch.

    Attributes:
      split: "train", "validation" or "test".
      count: how many videos.
      seed: of all that is drawn.
      frames: of a video.
      image_size: (height, width) of the canvas in pixels.
      side: of a digit, in pixels.
    """

    split: str = "train"
    count: int = setting(everyday=True, least=1, default=10_000)
    seed: int = setting(least=0, default=0)
    frames: int = setting(least=2, default=8)
    image_size: tuple[int, int] = setting(least=16, default=(32, 32))
    side: int = setting(least=4, default=10)

    def build(self) -> MovingRecords:
        """Records with the keys below; they are drawn when asked for.

        | key         | value                                                             |
        |-------------|-------------------------------------------------------------------|
        | `video`     | uint8 [frames, H, W, 3]                                           |
        | `direction` | one of `DIRECTIONS`                                               |
        | `count`     | one of `COUNTS`                                                   |
        | `text`      | what is seen: "three digits move up left"                         |

        Raises:
          UserError: an unknown split, a number out of range, digits of which three have no room.
        """
        check_split("Moving", self.split, SPLITS)
        check_ranges(self, "Moving.")
        room = (self.image_size[0] // self.side) * (self.image_size[1] // self.side)
        if room < 2 * len(COUNTS):
            largest = min(self.image_size) // 3
            raise UserError(
                f"Moving.side={self.side}: three such digits have no room on {self.image_size}; use {largest} or less, "
                "or a larger image_size"
            )
        digits = Digits(self.split).build()
        return MovingRecords(self, digits.images[..., 0], digits.fingerprint())


@dataclasses.dataclass(frozen=True, eq=False)
class MovingRecords:
    """The videos of one split, drawn when asked for.

    Attributes:
      spec: what they are.
      ink: uint8 [N, 8, 8], the digits that they are made of.
      digits: the fingerprint of these.
    """

    spec: Moving
    ink: np.ndarray
    digits: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.spec.count

    def __getitem__(self, index: int, /) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        spec = self.spec
        key = [spec.seed, zlib.crc32(spec.split.encode())]
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index % len(self)]))
        way, many = int(rng.integers(len(DIRECTIONS))), int(rng.integers(len(COUNTS)))
        return {
            "video": self._drawn(way, many + 1, rng),
            "direction": DIRECTIONS[way],
            "count": COUNTS[many],
            "text": _said(way, many),
        }

    def texts(self) -> Iterator[str]:
        """Every text that a record may have, each once."""
        yield from (_said(way, many) for way in range(len(DIRECTIONS)) for many in range(len(COUNTS)))

    def fingerprint(self) -> str:
        told = {f.name: getattr(self.spec, f.name) for f in dataclasses.fields(self.spec)}
        return fingerprint([self.digits, *(f"{name}={value}" for name, value in told.items())])

    def _drawn(self, way: int, many: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        spec, (height, width) = self.spec, self.spec.image_size
        canvas_HW = np.zeros((height, width), np.float32)
        for top, left in _apart(many, spec.side, spec.image_size, rng):
            ink = Image.fromarray(self.ink[rng.integers(len(self.ink))]).resize(
                (spec.side, spec.side), Image.Resampling.BILINEAR
            )
            rows, columns = (top + np.arange(spec.side)) % height, (left + np.arange(spec.side)) % width
            canvas_HW[np.ix_(rows, columns)] = np.asarray(ink, np.float32) / 255 * rng.uniform(*SHADES)
        ground, speed, angle = rng.uniform(0, DARKEST), rng.uniform(*SPEEDS), way * math.pi / 4
        # By the larger of both steps, so that all directions are as fast.
        steps_T = np.arange(spec.frames) * speed / max(abs(math.cos(angle)), abs(math.sin(angle)))
        down_T, right_T = (np.rint(steps_T * part).astype(int) for part in (math.sin(angle), math.cos(angle)))
        frames = [np.roll(canvas_HW, shift, axis=(0, 1)) for shift in zip(down_T, right_T, strict=True)]
        grey_THW = np.rint(np.maximum(np.stack(frames), ground)).astype(np.uint8)
        return np.repeat(grey_THW[..., None], 3, axis=-1)


def _said(way: int, many: int) -> str:
    return f"{COUNTS[many]} digit{'s move' if many else ' moves'} {DIRECTIONS[way]}"


def _apart(many: int, side: int, size: tuple[int, int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """(top, left) of squares that do not touch, on a canvas whose edges meet."""
    found: list[tuple[int, int]] = []
    for _ in range(TRIES):
        if len(found) == many:
            break
        place = (int(rng.integers(size[0])), int(rng.integers(size[1])))
        apart = (max(_around(a, b, n) for a, b, n in zip(place, other, size, strict=True)) for other in found)
        if all(distance >= side for distance in apart):
            found.append(place)
        elif rng.random() < 0.05:  # two may leave no room for a third
            found = found[:-1]
    assert len(found) == many, f"{many} digits of {side} pixels on {size}"
    return found


def _around(a: int, b: int, length: int) -> int:
    """How far apart two places are on a line whose ends meet."""
    return min((a - b) % length, (b - a) % length)
