"""Augmentation by operations drawn from a list: RandAugment and TrivialAugment, as torchvision has them on PIL images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest
from mmjax.data.images import each, frame, from_pil, pixels, to_pil
from mmjax.data.transforms.sided import PLACED, check_words, says
from mmjax.data.transforms.spatial import Warped, move
from mmjax.data.types import Record, Records

STRENGTHS = 31  # of each operation, from nothing to the most that it does
# Operation -> the most that it does in RandAugment and in TrivialAugment; None where it has one strength. Shears are in pixels
# a pixel, translations in shares of the side and in pixels, angles in degrees, factors away from 1; posterize takes bits away.
MOST: Mapping[str, tuple[float, float] | None] = {
    "identity": None,
    "shear_x": (0.3, 0.99),
    "shear_y": (0.3, 0.99),
    "translate_x": (150 / 331, 32.0),
    "translate_y": (150 / 331, 32.0),
    "rotate": (30.0, 135.0),
    "brightness": (0.9, 0.99),
    "colour": (0.9, 0.99),
    "contrast": (0.9, 0.99),
    "sharpness": (0.9, 0.99),
    "posterize": (4.0, 6.0),
    "solarize": (255.0, 255.0),
    "autocontrast": None,
    "equalize": None,
}
OPERATIONS = tuple(MOST)
ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "colour": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}
RESAMPLE = ("nearest", "bilinear", "bicubic")
UPRIGHT = 45.0  # degrees: what is turned further has another side up


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """So many operations, each drawn evenly from a list, all of one strength (Cubuk et al. 2019, arXiv:1909.13719).

    Those that move the image (shear, translate, rotate) move what lies over it as well; the others change its values alone.
    Operations, strengths and results are those of torchvision's `RandAugment`, the draws are not. It stands before `Normalise`.

    Attributes:
      count: operations one after the other.
      magnitude: their strength, from 0 (nothing) to 30 (the most).
      operations: what is drawn from. Leave `colour`, `solarize` and `posterize` out where texts name colours.
      resample: nearest, bilinear or bicubic, for those that move the image.
      fill: red, green and blue of what comes into view.
      field: the image it changes.
    """

    count: int = setting(least=1, default=2)
    magnitude: int = setting(least=0, most=STRENGTHS - 1, default=9)
    operations: tuple[str, ...] = OPERATIONS
    resample: str = "nearest"
    fill: tuple[int, int, int] = (0, 0, 0)
    field: str = "image"

    def __post_init__(self) -> None:
        check_ranges(self, "RandAugment.")
        _check("RandAugment", self.operations, self.resample, self.fill)

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        for _ in range(self.count):
            operation = self.operations[rng.integers(len(self.operations))]
            size = frame(record, "RandAugment", self.field).shape[:2]
            amount = (-1) ** int(rng.integers(2)) * strength(operation, self.magnitude, False, size)
            record = operate(record, "RandAugment", self.field, operation, amount, self.resample, self.fill)
        return record


@dataclasses.dataclass(frozen=True)
class TrivialAugment:
    """One operation and its strength, both drawn evenly (Müller & Hutter 2021, arXiv:2103.10158), from the wide space.

    As `RandAugment`, with torchvision's `TrivialAugmentWide`. Its turns go up to 135 degrees: one of more than 45 is left out
    where a text of the record says what is on the left, right, top or bottom.

    Attributes:
      operations: what is drawn from. Leave `colour`, `solarize` and `posterize` out where texts name colours.
      resample: nearest, bilinear or bicubic, for those that move the image.
      fill: red, green and blue of what comes into view.
      placed: the words that hold a large turn back, see `sided.says`; () turns whatever a text says.
      field: the image it changes.
    """

    operations: tuple[str, ...] = OPERATIONS
    resample: str = "nearest"
    fill: tuple[int, int, int] = (0, 0, 0)
    placed: tuple[str, ...] = PLACED
    field: str = "image"

    def __post_init__(self) -> None:
        _check("TrivialAugment", self.operations, self.resample, self.fill)
        check_words("TrivialAugment.placed", self.placed)

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        operation = self.operations[rng.integers(len(self.operations))]
        size = frame(record, "TrivialAugment", self.field).shape[:2]
        amount = strength(operation, int(rng.integers(STRENGTHS)), True, size) * (-1) ** int(rng.integers(2))
        if operation == "rotate" and abs(amount) > UPRIGHT and says(record, self.placed):
            amount = 0.0
        return operate(record, "TrivialAugment", self.field, operation, amount, self.resample, self.fill)


def strength(operation: str, step: int, wide: bool, size: tuple[int, int]) -> float:
    """How much an operation does at a step from 0 to 30, as `operate` takes it.

    torchvision counts in float32, so its values are these to a part in 10^7.

    Args:
      wide: as in TrivialAugment.
      size: (height, width) of the image.
    """
    most = (MOST[operation] or (0.0, 0.0))[wide]
    if not wide and operation.startswith("translate"):
        most *= size[operation == "translate_x"]
    found = most * step / (STRENGTHS - 1)
    return float(round(found)) if operation == "posterize" else found


def operate(
    record: Record, transform: str, field: str, operation: str, amount: float, resample: str, fill: tuple[int, int, int]
) -> Record:
    """The record after one operation on its image `field`.

    Args:
      transform: who asks, for the complaint.
      amount: a shear in pixels a pixel, a translation in pixels, of which the fraction is dropped, degrees anticlockwise, or
        what is added to a factor of 1; of either sign. Bits taken away, or how far below 255 solarize begins: the size alone.

    Raises:
      UserError: there is no such image, or it is no longer uint8.
    """
    image = pixels(record, transform, field)
    if operation == "identity":
        return record
    if (matrix := moving(operation, amount, *image.shape[-3:-1])) is not None:
        return move(record, transform, field, Warped(matrix, resample, fill))
    return {**record, field: each(image, lambda one: from_pil(_values(to_pil(one), operation, amount)))}


def moving(operation: str, amount: float, height: int, width: int) -> tuple[float, float, float, float, float, float] | None:
    """The matrix of `Warped` for an operation that moves an image of this size; None for one that does not.

    Shears go by way of an angle in degrees, as torchvision's do: a pixel on the edge between two would else fall differently.
    """
    slope = math.radians(math.degrees(math.atan(amount))) if operation.startswith("shear") else 0.0
    if operation == "shear_x":
        return 1.0, math.tan(slope), 0.0, 0.0, 1.0, 0.0
    if operation == "shear_y":
        return 1.0, 0.0, 0.0, math.sin(slope) / math.cos(slope), 1.0, 0.0
    if operation == "translate_x":
        return 1.0, 0.0, -float(math.trunc(amount)), 0.0, 1.0, 0.0
    if operation == "translate_y":
        return 1.0, 0.0, 0.0, 0.0, 1.0, -float(math.trunc(amount))
    if operation != "rotate":
        return None
    angle, x, y = -math.radians(amount % 360), width / 2, height / 2  # as `Image.rotate` makes it
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y


def _values(image: Image.Image, operation: str, amount: float) -> Image.Image:
    if operation in ENHANCE:
        return ENHANCE[operation](image).enhance(1.0 + amount)
    if operation == "posterize":
        return ImageOps.posterize(image, 8 - int(abs(amount)))
    if operation == "solarize":
        return ImageOps.solarize(image, math.ceil(255 - abs(amount)))
    return ImageOps.autocontrast(image) if operation == "autocontrast" else ImageOps.equalize(image)


def _check(transform: str, operations: tuple[str, ...], resample: str, fill: tuple[int, int, int]) -> None:
    if isinstance(operations, str) or not operations:
        raise UserError(f"{transform}.operations={operations!r}: give a tuple of one or more of {', '.join(OPERATIONS)}")
    for operation in operations:
        if operation not in MOST:
            raise UserError(f"{transform}.operations: {operation!r} is none{nearest(str(operation), OPERATIONS)}")
    if resample not in RESAMPLE:
        raise UserError(f"{transform}.resample={resample!r}: use one of {', '.join(RESAMPLE)}{nearest(resample, RESAMPLE)}")
    whole = isinstance(fill, tuple | list) and all(isinstance(value, int) and 0 <= value <= 255 for value in fill)
    if not whole or len(fill) != 3:
        raise UserError(f"{transform}.fill={fill!r}: give three whole numbers from 0 to 255, red green blue")
