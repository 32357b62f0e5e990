"""Transforms that move pixels, and all that lies over them. Sizes are (height, width) in pixels; images are uint8 [H, W, 3],
before and after. Each moves the image that its `field` names, with its masks, maps, boxes and points (see `core.spatial`); of a
video [T, H, W, 3] every frame alike, by one draw."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.images import frame
from mmjax.data.spelling import nearest
from mmjax.data.transforms.linear import check_linear
from mmjax.data.transforms.sided import SIDED, check_words, says
from mmjax.data.transforms.spatial import LINEAR, RESAMPLE, Cropped, Mirrored, Padded, Resized, Turned, move
from mmjax.data.types import Record, Records


@dataclasses.dataclass(frozen=True)
class Resize:
    """Stretch the whole image to one size; the sides' ratio is not kept.

    Attributes:
      size: (height, width).
      resample: a name from `RESAMPLE`, PIL's filters; all but "nearest" average when they shrink. Or "linear", that of OpenCV,
        which does not (TensorFlow's own): a third of the time, and rough where an image is much larger than `size`.
      field: the image it moves.
    """

    random: ClassVar[bool] = False
    size: tuple[int, int]
    resample: str = "bicubic"
    field: str = "image"

    def __post_init__(self) -> None:
        _check_size("Resize", self.size)
        _check_resample("Resize", self.resample)

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        return move(record, "Resize", self.field, Resized(self.size, self.resample))


@dataclasses.dataclass(frozen=True)
class ResizeShortest:
    """Scale the image so that its shorter side has a length; the longer one follows, rounded down.

    Attributes:
      shortest: pixels of the shorter side.
      resample: one of PIL's filters, or "linear" of OpenCV: see `Resize`.
      field: the image it moves.
    """

    random: ClassVar[bool] = False
    shortest: int
    resample: str = "bicubic"
    field: str = "image"

    def __post_init__(self) -> None:
        _check_positive("ResizeShortest", shortest=self.shortest)
        _check_resample("ResizeShortest", self.resample)

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        image = frame(record, "ResizeShortest", self.field)
        short, long = sorted(image.shape[:2])
        size = _oriented(image, self.shortest, int(self.shortest * long / short))
        return move(record, "ResizeShortest", self.field, Resized(size, self.resample))


@dataclasses.dataclass(frozen=True)
class ResizeWithin:
    """Scale the image so that its shorter side has a length, or its longer one its limit where that is less; then stretch it a
    little, for whole patches (ViLT, Kim et al. 2021, arXiv:2102.03334, section 4.2).

    Attributes:
      shortest: pixels of the shorter side.
      longest: pixels that the longer side has at most.
      divisor: both sides become a multiple of it, rounded down but never to 0.
      resample: one of PIL's filters, or "linear" of OpenCV: see `Resize`.
      field: the image it moves.
    """

    random: ClassVar[bool] = False
    shortest: int
    longest: int
    divisor: int = 1
    resample: str = "bicubic"
    field: str = "image"

    def __post_init__(self) -> None:
        _check_positive("ResizeWithin", shortest=self.shortest, longest=self.longest, divisor=self.divisor)
        _check_resample("ResizeWithin", self.resample)

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        image = frame(record, "ResizeWithin", self.field)
        short, long = sorted(image.shape[:2])
        scaled = (float(self.shortest), self.shortest / short * long)
        fit = min(1.0, self.longest / scaled[1])
        sides = (max(1, int(fit * side + 0.5) // self.divisor) * self.divisor for side in scaled)
        return move(record, "ResizeWithin", self.field, Resized(_oriented(image, *sides), self.resample))


@dataclasses.dataclass(frozen=True)
class PadSquare:
    """Make the image square: bars of one colour on both sides of the shorter side; an odd pixel goes below, or to the right.

    Attributes:
      fill: red, green and blue, each 0 to 255.
      field: the image it moves.
    """

    random: ClassVar[bool] = False
    fill: tuple[int, int, int] = (0, 0, 0)
    field: str = "image"

    def __post_init__(self) -> None:
        if len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
            raise UserError(f"PadSquare.fill={tuple(self.fill)}: give three whole numbers from 0 to 255, red green blue")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        rows, columns = frame(record, "PadSquare", self.field).shape[:2]
        side = max(rows, columns)
        around = [((side - length) // 2, (side - length + 1) // 2) for length in (rows, columns)]
        return move(record, "PadSquare", self.field, Padded(around[0], around[1], self.fill))


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """Cut the middle out.

    Attributes:
      size: (height, width).
      pad: what becomes of an image smaller than `size`: True puts black around it, an odd row or column above or to the left;
        False takes it for the user's mistake (put `Resize` first).
      field: the image it moves.
    """

    random: ClassVar[bool] = False
    size: tuple[int, int]
    pad: bool = False
    field: str = "image"

    def __post_init__(self) -> None:
        _check_size("CenterCrop", self.size)

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        image = frame(record, "CenterCrop", self.field)
        (height, width), (rows, columns) = self.size, image.shape[:2]
        if rows < height or columns < width:
            if not self.pad:
                raise UserError(
                    f"CenterCrop.size={height}x{width} is larger than an image of {rows}x{columns}: put Resize before it"
                )
            record = move(record, "CenterCrop", self.field, Padded(_around(height - rows), _around(width - columns)))
            rows, columns = record[self.field].shape[-3:-1]
        window = Cropped((rows - height) // 2, (columns - width) // 2, height, width)
        return move(record, "CenterCrop", self.field, window)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cut out a random part and resize it (the crop of Inception, Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Ten draws of an area and of a log-uniform ratio; the first that fits is taken, else the largest centred crop within `ratio`.

    Attributes:
      size: (height, width) of the result.
      scale: range of the crop's area, as a share of the image's.
      ratio: range of the crop's width / height.
      resample: one of PIL's filters, or "linear" of OpenCV: see `Resize`.
      field: the image it moves.
    """

    opened: ClassVar[bool] = True
    size: tuple[int, int]
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resample: str = "bicubic"
    field: str = "image"

    def __post_init__(self) -> None:
        _check_size("RandomCrop", self.size)
        _check_resample("RandomCrop", self.resample)
        for field, (low, high), most in (("scale", self.scale, 1.0), ("ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= most:
                raise UserError(f"RandomCrop.{field}=({low}, {high}): give (low, high) with 0 < low <= high <= {most}")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        image = frame(record, "RandomCrop", self.field)
        window = Cropped(*self._window(image.shape[0], image.shape[1], rng))
        part = move(record, "RandomCrop", self.field, window)
        return move(part, "RandomCrop", self.field, Resized(self.size, self.resample))

    def _window(self, rows: int, columns: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels."""
        for _ in range(10):
            area = rows * columns * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= rows and 0 < width <= columns:
                return int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1)), height, width
        width = min(columns, max(1, round(rows * self.ratio[1])))
        height = min(rows, max(1, round(columns / self.ratio[0])))
        return (rows - height) // 2, (columns - width) // 2, height, width


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirror left and right, with a probability; not where a text of the record says left or right, which it would make false.

    The texts are those that the record has by then, the name of its class among them: what writes another (`Caption`) stands
    before it. A number whose class only a column names is no text. What is held back draws as it would otherwise.

    Attributes:
      probability: how often, from 0 to 1.
      field: the image it moves.
      sided: the words that hold it back, see `sided.says`; () mirrors whatever a text says.
    """

    probability: float = 0.5
    field: str = "image"
    sided: tuple[str, ...] = SIDED

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"Flip.probability={self.probability} is not between 0 and 1")
        check_words("Flip.sided", self.sided)

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        frame(record, "Flip", self.field)
        if rng.random() >= self.probability or says(record, self.sided):
            return record
        return move(record, "Flip", self.field, Mirrored())


@dataclasses.dataclass(frozen=True)
class Rotate:
    """Turn about the centre by an angle drawn evenly from [-degrees, degrees], bilinear, size kept.

    Attributes:
      degrees: the largest angle.
      fill: value of the corners that come into view, 0 to 255.
      field: the image it moves.
    """

    degrees: float
    fill: int = 0
    field: str = "image"

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise UserError(f"Rotate.degrees={self.degrees} is not between 0 and 180")
        if not 0 <= self.fill <= 255:
            raise UserError(f"Rotate.fill={self.fill} is not between 0 and 255")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        return move(record, "Rotate", self.field, Turned(rng.uniform(-self.degrees, self.degrees), self.fill))


def _oriented(image_HW3: np.ndarray, short: int, long: int) -> tuple[int, int]:
    """(height, width) of two sides, the way the image lies."""
    height, width, _ = image_HW3.shape
    return (short, long) if height <= width else (long, short)


def _around(missing: int) -> tuple[int, int]:
    """How many pixels to add before and after."""
    missing = max(missing, 0)
    return missing - missing // 2, missing // 2


def _check_positive(transform: str, **fields: int) -> None:
    for field, value in fields.items():
        if value < 1:
            raise UserError(f"{transform}.{field}={value}: give a whole number from 1 up")


def _check_size(transform: str, size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"{transform}.size={tuple(size)}: give (height, width), both positive")


def _check_resample(transform: str, resample: str) -> None:
    if resample == LINEAR:
        check_linear(f"{transform}.resample")
    elif resample not in RESAMPLE:
        raise UserError(f"{transform}.resample={resample!r} is not a filter{nearest(resample, (*RESAMPLE, LINEAR))}")
