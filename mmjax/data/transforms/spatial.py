"""Moves: what a geometric transform does to an image, done to all that lies over it as well (see `core.spatial`)."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import numpy as np
from PIL import Image

from mmjax.core.errors import UserError
from mmjax.core.spatial import NONE, over
from mmjax.data.images import Opened, each, from_pil, pixels, to_pil
from mmjax.data.transforms.linear import linear
from mmjax.data.types import Record

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
LINEAR = "linear"  # of `Resized` alone, see `transforms.linear`


class Move(Protocol):
    """One way to move an image and what lies over it."""

    def pixels(self, image_HW3: np.ndarray) -> np.ndarray:
        """The image, uint8 [H, W, 3], moved."""
        ...

    def plane(self, plane_HW: np.ndarray, outside: float) -> np.ndarray:
        """A mask or a map, moved: never a mixture of its values, and `outside` where there was nothing."""
        ...

    def places(self, xy_N2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Where places of an image of `size` (height, width) then lie."""
        ...


def move(record: Record, transform: str, field: str, how: Move) -> Record:
    """The record with its image `field` moved, and all that lies over it; of a video every frame alike.

    Args:
      transform: who asks, for the complaint.

    Raises:
      UserError: there is no such image, it is no longer uint8, or what lies over it has another size or shape; something lies
        over a video.
    """
    image = pixels(record, transform, field)
    there = each(image, how.pixels)
    found: Record = {field: there}
    lying = over(field, record)
    if lying and image.ndim == 4:
        raise UserError(f"{next(iter(lying))}: {transform} moves no masks, maps, boxes or points with the video {field!r}")
    for key, kind in lying.items():
        value = np.asarray(record[key])
        if kind in ("mask", "map"):
            if value.shape[:2] != image.shape[:2]:
                sizes = [f"{shape[0]} x {shape[1]}" for shape in (value.shape, image.shape)]
                raise UserError(f"{key}: it is {sizes[0]} and the {field} it lies over {sizes[1]} pixels")
            found[key] = how.plane(value, _outside(kind, value))
        else:
            found[key] = _moved_places(key, kind, value, how, image.shape[:2], there.shape[:2])
    return {**record, **found}


def _outside(kind: str, plane: np.ndarray) -> float:
    if kind == "mask":
        return False
    return math.nan if np.issubdtype(plane.dtype, np.floating) else NONE


def _moved_places(key: str, kind: str, value: np.ndarray, how: Move, size: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Points [N, 2] or boxes [N, 4], float32."""
    wanted = 2 if kind == "points" else 4
    if value.ndim != 2 or value.shape[1] != wanted:
        raise UserError(f"{key}: {kind} are [N, {wanted}], found an array of shape {value.shape}")
    none_N = (value == NONE).all(axis=1)
    limit_2 = np.array([new[1], new[0]], np.float32)
    if kind == "points":
        xy_N2 = how.places(value.astype(np.float32), size)
        inside_N = ((xy_N2 >= 0) & (xy_N2 <= limit_2)).all(axis=1)
        return np.where((inside_N & ~none_N)[:, None], xy_N2, NONE).astype(np.float32)
    corners = [how.places(value[:, [x, y]].astype(np.float32), size) for x in (0, 2) for y in (1, 3)]
    low_N2 = np.clip(np.min(corners, axis=0), 0, limit_2)
    high_N2 = np.clip(np.max(corners, axis=0), 0, limit_2)
    there_N = (high_N2 > low_N2).all(axis=1) & ~none_N
    return np.where(there_N[:, None], np.concatenate([low_N2, high_N2], axis=1), NONE).astype(np.float32)


def _holding(plane_HW: np.ndarray, outside: float) -> np.ndarray:
    """The plane in a dtype that holds `outside` as well: -1 is nothing that an unsigned number or a bool could be."""
    return plane_HW.astype(np.int32) if plane_HW.dtype.kind in "ub" and outside < 0 else plane_HW


def _nearest(old: int, new: int) -> np.ndarray:
    """[new]: the pixel that PIL's own nearest takes for each; where two are equally near, its rounding decides."""
    row = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return np.asarray(row.resize((new, 1), Image.Resampling.NEAREST))[0]


@dataclasses.dataclass(frozen=True)
class Resized:
    """Stretched to (height, width)."""

    size: tuple[int, int]
    resample: str = "bicubic"

    def pixels(self, image_HW3: np.ndarray) -> np.ndarray:
        if image_HW3.shape[:2] == tuple(self.size):
            return np.asarray(image_HW3)
        if self.resample == LINEAR:
            return linear(np.asarray(image_HW3), self.size)
        return from_pil(to_pil(image_HW3).resize((self.size[1], self.size[0]), RESAMPLE[self.resample]))

    def plane(self, plane_HW: np.ndarray, outside: float) -> np.ndarray:
        rows, columns = (_nearest(old, new) for new, old in zip(self.size, plane_HW.shape[:2], strict=True))
        return plane_HW[rows[:, None], columns[None, :]]

    def places(self, xy_N2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return xy_N2 * np.array([self.size[1] / size[1], self.size[0] / size[0]], np.float32)


@dataclasses.dataclass(frozen=True)
class Cropped:
    """A window, all inside the image."""

    top: int
    left: int
    height: int
    width: int

    def pixels(self, image_HW3: np.ndarray) -> np.ndarray:
        if isinstance(image_HW3, Opened):
            box = (self.left, self.top, self.left + self.width, self.top + self.height)
            return Opened(image_HW3.image.crop(box))  # type: ignore[return-value]  # goes on to `Resized`
        return image_HW3[self.top : self.top + self.height, self.left : self.left + self.width]

    def plane(self, plane_HW: np.ndarray, outside: float) -> np.ndarray:
        return self.pixels(plane_HW)

    def places(self, xy_N2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return xy_N2 - np.array([self.left, self.top], np.float32)


@dataclasses.dataclass(frozen=True)
class Padded:
    """With so many rows and columns of one colour around it: (before, after)."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    fill: tuple[int, int, int] = (0, 0, 0)

    def pixels(self, image_HW3: np.ndarray) -> np.ndarray:
        height, width = image_HW3.shape[0] + sum(self.rows), image_HW3.shape[1] + sum(self.columns)
        padded = np.full((height, width, 3), self.fill, np.uint8)
        padded[self._inside(image_HW3)] = image_HW3
        return padded

    def plane(self, plane_HW: np.ndarray, outside: float) -> np.ndarray:
        return np.pad(_holding(plane_HW, outside), (self.rows, self.columns), constant_values=outside)

    def places(self, xy_N2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return xy_N2 + np.array([self.columns[0], self.rows[0]], np.float32)

    def _inside(self, image: np.ndarray) -> tuple[slice, slice]:
        top, left = self.rows[0], self.columns[0]
        return slice(top, top + image.shape[0]), slice(left, left + image.shape[1])


@dataclasses.dataclass(frozen=True)
class Mirrored:
    """Left and right exchanged."""

    def pixels(self, image_HW3: np.ndarray) -> np.ndarray:
        mirrored_HW3 = np.empty_like(image_HW3, order="C")
        for channel in range(3):  # four times sooner than to copy a mirrored view, which later steps would each do
            mirrored_HW3[..., channel] = image_HW3[:, ::-1, channel]
        return mirrored_HW3

    def plane(self, plane_HW: np.ndarray, outside: float) -> np.ndarray:
        return plane_HW[:, ::-1]

    def places(self, xy_N2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.stack([size[1] - xy_N2[:, 0], xy_N2[:, 1]], axis=1)


@dataclasses.dataclass(frozen=True)
class Turned:
    """Turned about the centre by degrees, anticlockwise as seen; the size stays."""

    degrees: float
    fill: int = 0

    def pixels(self, image_HW3: np.ndarray) -> np.ndarray:
        turned = to_pil(image_HW3).rotate(self.degrees, Image.Resampling.BILINEAR, fillcolor=(self.fill,) * 3)
        return from_pil(turned)

    def plane(self, plane_HW: np.ndarray, outside: float) -> np.ndarray:
        plane_HW = _holding(plane_HW, outside)
        height, width = plane_HW.shape[:2]
        y_H1, x_1W = np.arange(height)[:, None] + 0.5 - height / 2, np.arange(width)[None, :] + 0.5 - width / 2
        cos, sin = self._cos_sin()
        column_HW = np.floor(cos * x_1W - sin * y_H1 + width / 2).astype(np.int64)
        row_HW = np.floor(sin * x_1W + cos * y_H1 + height / 2).astype(np.int64)
        inside_HW = (row_HW >= 0) & (row_HW < height) & (column_HW >= 0) & (column_HW < width)
        found = plane_HW[np.clip(row_HW, 0, height - 1), np.clip(column_HW, 0, width - 1)]
        return np.where(inside_HW, found, np.asarray(outside, plane_HW.dtype))

    def places(self, xy_N2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        centre_2 = np.array([size[1] / 2, size[0] / 2], np.float32)
        x_N, y_N = (xy_N2 - centre_2).T
        cos, sin = self._cos_sin()
        return (np.stack([cos * x_N + sin * y_N, cos * y_N - sin * x_N], axis=1) + centre_2).astype(np.float32)

    def _cos_sin(self) -> tuple[float, float]:
        return math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))


@dataclasses.dataclass(frozen=True)
class Warped:
    """Taken from elsewhere: the new pixel at (x, y) is the old one at (ax + by + c, dx + ey + f); the size stays.

    Attributes:
      matrix: (a, b, c, d, e, f), in pixels, 0 the left or upper edge, as PIL's `Image.transform` takes it.
      resample: "nearest", "bilinear" or "bicubic".
      fill: red, green and blue of what comes into view.
    """

    matrix: tuple[float, float, float, float, float, float]
    resample: str = "nearest"
    fill: tuple[int, int, int] = (0, 0, 0)

    def pixels(self, image_HW3: np.ndarray) -> np.ndarray:
        image, how = to_pil(image_HW3), RESAMPLE[self.resample]
        return from_pil(image.transform(image.size, Image.Transform.AFFINE, self.matrix, how, fillcolor=tuple(self.fill)))

    def plane(self, plane_HW: np.ndarray, outside: float) -> np.ndarray:
        plane_HW = _holding(plane_HW, outside)
        # PIL itself says which pixel it takes, in the fixed point that it counts in.
        numbers = Image.fromarray(np.arange(plane_HW.size, dtype=np.int32).reshape(plane_HW.shape))
        taken = numbers.transform(numbers.size, Image.Transform.AFFINE, self.matrix, Image.Resampling.NEAREST, fillcolor=-1)
        taken_HW = np.asarray(taken)
        found = plane_HW.reshape(-1)[np.maximum(taken_HW, 0)]
        return np.where(taken_HW >= 0, found, np.asarray(outside, plane_HW.dtype))

    def places(self, xy_N2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        a, b, c, d, e, f = self.matrix
        x_N, y_N = xy_N2.astype(np.float64).T - [[c], [f]]
        there = np.stack([e * x_N - b * y_N, a * y_N - d * x_N], axis=1) / (a * e - b * d)
        return there.astype(np.float32)
