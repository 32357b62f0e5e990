"""Transforms that change values of pixels. All take and give uint8, but for `Normalise`, which ends the list.

Of a video [T, H, W, 3] every frame is changed by the same draw; noise alone is drawn for each."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar

import numpy as np
from PIL import ImageFilter

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.images import each, from_pil, pixels, to_pil
from mmjax.data.types import Record, Records

LINE = 2048  # pixels that are normalised at once, about
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PIL converts to grey


@dataclasses.dataclass(frozen=True)
class ColourJitter:
    """Scale brightness, contrast and saturation, in that order, each by a factor drawn evenly from [1 - x, 1 + x].

    A factor blends with black (brightness), with the image's mean grey (contrast), or with its grey version (saturation), as
    PIL's `ImageEnhance` does; of a video the mean is that of all its frames.

    Attributes:
      brightness: x of its factor, from 0 (off) to 1.
      contrast: x of its factor, from 0 (off) to 1.
      saturation: x of its factor, from 0 (off) to 1.
      field: the image it changes.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    field: str = "image"

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"ColourJitter.{name}={getattr(self, name)} is not between 0 and 1")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        x_HW3 = pixels(record, "ColourJitter", self.field).astype(np.float32)
        spread = np.array([self.brightness, self.contrast, self.saturation])
        brightness, contrast, saturation = rng.uniform(1 - spread, 1 + spread).astype(np.float32)
        x_HW3 = np.clip(x_HW3 * brightness, 0, 255)
        x_HW3 = _blend(x_HW3, np.mean(x_HW3 @ LUMA), contrast)
        x_HW3 = _blend(x_HW3, (x_HW3 @ LUMA)[..., None], saturation)
        return {**record, self.field: _to_uint8(x_HW3)}


@dataclasses.dataclass(frozen=True)
class Noise:
    """Add Gaussian noise to every value.

    Attributes:
      sigma: its standard deviation as a share of the full range.
      field: the image it changes.
    """

    sigma: float
    field: str = "image"

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < float("inf"):
            raise UserError(f"Noise.sigma={self.sigma} is not a finite number from 0 up")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        image = pixels(record, "Noise", self.field)
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(255 * self.sigma)
        return {**record, self.field: _to_uint8(image + noise)}


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """Blur with a probability, by a Gaussian whose width is drawn evenly, as DINO and MoCo v2 do with PIL.

    It is PIL's `ImageFilter.GaussianBlur`: three box filters that have the Gaussian's variance, a level or two away from it.

    Attributes:
      probability: how often, from 0 to 1.
      sigma: range of the Gaussian's standard deviation, in pixels.
      field: the image it changes.
    """

    probability: float = setting(least=0, most=1, default=0.5)
    sigma: tuple[float, float] = (0.1, 2.0)
    field: str = "image"

    def __post_init__(self) -> None:
        check_ranges(self, "GaussianBlur.")
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1]:
            raise UserError(f"GaussianBlur.sigma={tuple(self.sigma)}: give (low, high) with 0 <= low <= high")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        image = pixels(record, "GaussianBlur", self.field)
        sigma = rng.uniform(*self.sigma)
        if rng.random() >= self.probability:
            return record
        return {**record, self.field: each(image, lambda one: from_pil(to_pil(one).filter(ImageFilter.GaussianBlur(sigma))))}


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Paint over a random rectangle, with a probability (Zhong et al. 2017, arXiv:1708.04896, algorithm 1).

    Ten draws of an area and of a log-uniform ratio; the first that is smaller than the image is taken, as torchvision does; if
    none is, nothing is painted. It takes uint8, so it stands before `Normalise`, and after what crops, resizes and turns. The
    image alone is changed: what lies over it says what is behind the rectangle.

    Attributes:
      probability: how often, from 0 to 1.
      scale: range of the rectangle's area, as a share of the image's.
      ratio: range of the rectangle's height / width.
      fill: red, green and blue, each 0 to 255; () for values drawn evenly for each pixel, which did best in the paper.
      field: the image it changes.
    """

    probability: float = setting(least=0, most=1, default=0.5)
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: tuple[int, ...] = ()
    field: str = "image"

    def __post_init__(self) -> None:
        check_ranges(self, "RandomErasing.")
        for field, (low, high), most in (("scale", self.scale, 1.0), ("ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= most:
                raise UserError(f"RandomErasing.{field}=({low}, {high}): give (low, high) with 0 < low <= high <= {most}")
        if len(self.fill) not in (0, 3) or not all(0 <= value <= 255 for value in self.fill):
            raise UserError(f"RandomErasing.fill={tuple(self.fill)}: give red green blue from 0 to 255, or () for noise")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        image = pixels(record, "RandomErasing", self.field)
        window = self._window(image.shape[-3], image.shape[-2], rng) if rng.random() < self.probability else None
        if window is None:
            return record
        top, left, height, width = window
        erased = image.copy()
        erased[..., top : top + height, left : left + width, :] = self.fill or rng.integers(
            0, 256, (height, width, 3), np.uint8
        )
        return {**record, self.field: erased}

    def _window(self, rows: int, columns: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) in pixels; None where no draw is smaller than the image."""
        for _ in range(10):
            area = rows * columns * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < rows and width < columns:
                return int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1)), height, width
        return None


@dataclasses.dataclass(frozen=True)
class Normalise:
    """uint8 to float32: divide by 255, subtract `mean`, divide by `std`.

    Attributes:
      mean: of red, green and blue.
      std: of red, green and blue, each above 0.
      field: the image it changes.
    """

    random: ClassVar[bool] = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    field: str = "image"

    def __post_init__(self) -> None:
        if len(self.mean) != 3:
            raise UserError(f"Normalise.mean={tuple(self.mean)}: give three numbers, red green blue")
        if len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f"Normalise.std={tuple(self.std)}: give three positive numbers, red green blue")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        image = pixels(record, "Normalise", self.field)
        found = np.empty(image.shape, np.float32)
        self.into(image, found)
        return {**record, self.field: found}

    def into(self, image_HW3: np.ndarray, out_HW3: np.ndarray) -> None:
        """The same of uint8 pixels, written to where they are to be, float32."""
        height, width = image_HW3.shape[-3:-1]
        line = max(width, math.gcd(height * width, LINE))
        scale, offset = _affine(tuple(self.mean), tuple(self.std), line)
        found = out_HW3.reshape(-1, line * 3)
        found[...] = image_HW3.reshape(-1, line * 3)  # apart from the product: together they are twice as slow
        np.multiply(found, scale, out=found)
        np.subtract(found, offset, out=found)


@functools.lru_cache(maxsize=64)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """[count * 3] float32 each, of many pixels: numpy is ten times slower over a last dim of three numbers."""
    deviation = np.asarray(std, np.float32)
    return np.tile(np.float32(1 / 255) / deviation, count), np.tile(np.asarray(mean, np.float32) / deviation, count)


def _blend(x_HW3: np.ndarray, towards: np.ndarray | np.floating, factor: np.floating) -> np.ndarray:
    return np.clip(towards + factor * (x_HW3 - towards), 0, 255)


def _to_uint8(x_HW3: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(x_HW3, 0, 255)).astype(np.uint8)
