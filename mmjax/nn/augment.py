"""Random changes to images and videos, on the device: a step's randomness without a cost on the host.

Each example has its own random key, and each kind of change its own stream of that key: an image comes out the same on any
mesh and at any place in the batch, and turning one change on leaves the draws of the others alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.random import fold_name
from mmjax.core.spatial import NONE
from mmjax.core.types import Array
from mmjax.nn.spec_augment import SpecAugment


@dataclasses.dataclass(frozen=True)
class ImageAugment:
    """Mirror, rotate, zoom, shift; then contrast, brightness, noise. All off by default, and what is off costs nothing.

    What lies over the image (masks, maps, boxes, points: see `core.spatial`) moves with it. All frames of a video [B, T, H, W,
    C] are changed by one draw, and its mask, which is of frames, stays; noise is drawn for each pixel.

    Draws are uniform over the ranges below. Rotation, zoom, shift and crop together are one bilinear resampling about the
    image's centre, in pixels, so an image that is not square is not stretched.

    Attributes:
      rotate: largest angle, in degrees, either way.
      shift: largest shift along each side, as a fraction of that side, either way.
      scale: smallest and largest zoom; 2.0 shows everything twice as large.
      crop: largest shift in whole pixels, either way: what padding by `crop` and cropping back does.
      flip: probability of a mirror image, left and right exchanged.
      brightness: largest amount added to all pixels of an image, in units of the normalised pixels, either way.
      contrast: largest relative change of the distance from the image's mean, either way.
      noise: standard deviation of independent Gaussian noise, in units of the normalised pixels.
      fill: value of what comes into view from outside; None repeats the nearest edge pixel.

    Raises:
      UserError: a value outside its range.
    """

    rotate: float = 0.0
    shift: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    crop: int = 0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    fill: float | None = None

    def __post_init__(self) -> None:
        for name in ("rotate", "shift", "crop", "flip", "brightness", "contrast", "noise"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}={getattr(self, name)}: give 0 (off) or more; it works both ways by itself")
        if self.flip > 1:
            raise UserError(f"flip={self.flip}: it is a probability, at most 1")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale={self.scale}: give (smallest, largest), both above 0, such as (0.9, 1.1)")

    def __call__(self, image_BHWC: Array, keys_B: Array) -> Array:
        """Augment [B, H, W, C] images, each by its own key of [B]; shape and dtype stay."""
        return self.together(image_BHWC, keys_B, {})[0]

    def together(
        self, image_BHWC: Array, keys_B: Array, over: Mapping[str, tuple[str, Array]]
    ) -> tuple[Array, dict[str, Array]]:
        """The same, with what lies over the images: key -> (kind, array [B, ...]), given back as key -> array."""
        if self == ImageAugment(fill=self.fill):
            return image_BHWC, {name: x for name, (_, x) in over.items()}
        if image_BHWC.ndim == 5:
            if strange := [name for name, (kind, x) in over.items() if kind != "mask" or x.ndim != 2]:
                raise UserError(f"model.augment: {strange[0]} lies over a video, and only an image's moves with it")
            own = {name: x for name, (_, x) in over.items()}
            return jax.vmap(lambda video, key: self._one(video, key, {}, {})[0])(image_BHWC, keys_B), own
        kinds = {name: kind for name, (kind, _) in over.items()}
        arrays = {name: x for name, (_, x) in over.items()}
        moved: tuple[Array, dict[str, Array]] = jax.vmap(lambda image, key, rest: self._one(image, key, kinds, rest))(
            image_BHWC, keys_B, arrays
        )
        return moved

    def _one(
        self, image_HWC: Array, key: Array, kinds: Mapping[str, str], over: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        x_HWC = image_HWC.astype(jnp.float32)  # or a video, [T, H, W, C]
        size = (image_HWC.shape[-3], image_HWC.shape[-2])
        if self.flip:
            # Apart from the resampling: a TPU gathers slowly, and a mirror image needs no gather.
            mirror = jax.random.bernoulli(fold_name(key, "flip"), self.flip)
            x_HWC = jnp.where(mirror, x_HWC[..., ::-1, :], x_HWC)
            over = {name: jnp.where(mirror, mirrored(kinds[name], x, size[1]), x) for name, x in over.items()}
        if self.rotate or self.shift or self.crop or self.scale != (1.0, 1.0):
            placement = self._placement(size, key)
            y_HW, x_HW = source_positions(*size, *placement)
            resampled = functools.partial(bilinear, y_HW=y_HW, x_HW=x_HW, fill=self.fill)
            x_HWC = resampled(x_HWC) if x_HWC.ndim == 3 else jax.vmap(resampled)(x_HWC)
            over = {name: moved(kinds[name], x, size, placement) for name, x in over.items()}
        if self.contrast:
            mean = x_HWC.mean()
            x_HWC = (x_HWC - mean) * (1.0 + _either_way(key, "contrast", self.contrast)) + mean
        if self.brightness:
            x_HWC = x_HWC + _either_way(key, "brightness", self.brightness)
        if self.noise:
            x_HWC = x_HWC + self.noise * jax.random.normal(fold_name(key, "noise"), x_HWC.shape)
        return x_HWC.astype(image_HWC.dtype), over

    def _placement(self, size: tuple[int, int], key: Array) -> tuple[Array, Array, Array]:
        """Angle ([] radians), zoom ([]) and shift ([2] pixels), as `source_positions` takes them."""
        low, high = self.scale
        angle = _either_way(key, "rotate", math.radians(self.rotate))
        zoom = jax.random.uniform(fold_name(key, "scale"), minval=low, maxval=high)
        shift_2 = _either_way(key, "shift", self.shift, (2,)) * jnp.array(size, jnp.float32) + jax.random.randint(
            fold_name(key, "crop"), (2,), -self.crop, self.crop + 1
        ).astype(jnp.float32)
        return angle, zoom, shift_2


AUGMENTATIONS = {"image": ImageAugment, "spectrogram": SpecAugment}


def source_positions(height: int, width: int, angle: Array, zoom: Array, shift_2: Array) -> tuple[Array, Array]:
    """Where each pixel of the new image comes from: y [H, W] and x [H, W] in pixels of the old one, float32.

    The old image is turned by `angle` ([] radians, anticlockwise as seen on a screen) and enlarged by `zoom` ([]) about its
    centre, then moved by `shift_2` ([2] pixels, down and right).
    """
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y_H1 = jnp.arange(height, dtype=jnp.float32)[:, None] - centre_y - shift_2[0]
    x_1W = jnp.arange(width, dtype=jnp.float32)[None, :] - centre_x - shift_2[1]
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    return y_H1 * cos + x_1W * sin + centre_y, x_1W * cos - y_H1 * sin + centre_x


def mirrored(kind: str, x: Array, width: int) -> Array:
    """What lies over an image of this width, left and right exchanged."""
    if kind in ("mask", "map"):
        return x[:, ::-1]
    if kind == "points":
        there = x.at[:, 0].set(width - x[:, 0])
    else:
        there = x.at[:, 0].set(width - x[:, 2]).at[:, 2].set(width - x[:, 0])
    return jnp.where((x == NONE).all(axis=1, keepdims=True), x, there)


def moved(kind: str, x: Array, size: tuple[int, int], placement: tuple[Array, Array, Array]) -> Array:
    """What lies over an image of `size` (height, width), turned, zoomed and shifted as `source_positions` says."""
    if kind in ("mask", "map"):
        y_HW, x_HW = source_positions(*size, *placement)
        if kind == "map" and x.dtype.kind in "ub":
            x = x.astype(jnp.int32)  # which holds a -1
        outside = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else NONE
        return nearest(x, y_HW, x_HW, False if kind == "mask" else outside)
    if kind == "points":
        return in_view_points(_forward(x, size, placement), (x == NONE).all(axis=-1), size)
    left, top, right, bottom = (x[:, i] for i in range(4))
    corners_N42 = jnp.stack([jnp.stack([a, b], axis=-1) for a in (left, right) for b in (top, bottom)], axis=1)
    there_N42 = _forward(corners_N42, size, placement)
    around_N4 = jnp.concatenate([there_N42.min(axis=1), there_N42.max(axis=1)], axis=-1)
    return in_view_boxes(around_N4, (x == NONE).all(axis=-1), size)


def _forward(xy: Array, size: tuple[int, int], placement: tuple[Array, Array, Array]) -> Array:
    """Where places [..., 2] (x, y) of the old image lie in the new one: the reverse of `source_positions`.

    Pixel centres are at whole numbers there and at halves here, so both centres are half the size.
    """
    angle, zoom, shift_2 = placement
    centre_2 = jnp.array([size[1] / 2, size[0] / 2], jnp.float32)
    x, y = xy[..., 0] - centre_2[0], xy[..., 1] - centre_2[1]
    cos, sin = jnp.cos(angle) * zoom, jnp.sin(angle) * zoom
    there_2 = centre_2 + shift_2[::-1]
    return jnp.stack([x * cos + y * sin + there_2[0], y * cos - x * sin + there_2[1]], axis=-1)


def in_view_points(xy_N2: Array, none_N: Array, size: tuple[int, int]) -> Array:
    """[N, 2]: points outside an image of `size`, and those that were none, are -1."""
    inside_N = (xy_N2 >= 0).all(axis=1) & (xy_N2[:, 0] <= size[1]) & (xy_N2[:, 1] <= size[0])
    return jnp.where((inside_N & ~none_N)[:, None], xy_N2, NONE)


def in_view_boxes(box_N4: Array, none_N: Array, size: tuple[int, int]) -> Array:
    """[N, 4]: boxes clipped to an image of `size`; those that are then empty, or were none, are -1."""
    limit_14 = jnp.array([[size[1], size[0], size[1], size[0]]], jnp.float32)
    clipped_N4 = jnp.clip(box_N4, 0.0, limit_14)
    there_N = (clipped_N4[:, 2] > clipped_N4[:, 0]) & (clipped_N4[:, 3] > clipped_N4[:, 1])
    return jnp.where((there_N & ~none_N)[:, None], clipped_N4, NONE)


def nearest(image_HW: Array, y_HW: Array, x_HW: Array, fill: float) -> Array:
    """[H, W], in its own dtype: the pixel nearest to each fractional position, `fill` outside the image."""
    height, width = image_HW.shape
    row_HW, column_HW = jnp.floor(y_HW + 0.5).astype(jnp.int32), jnp.floor(x_HW + 0.5).astype(jnp.int32)
    inside_HW = (row_HW >= 0) & (row_HW < height) & (column_HW >= 0) & (column_HW < width)
    pixel_HW = image_HW[jnp.clip(row_HW, 0, height - 1), jnp.clip(column_HW, 0, width - 1)]
    return jnp.where(inside_HW, pixel_HW, jnp.asarray(fill, image_HW.dtype))


def bilinear(image_HWC: Array, y_HW: Array, x_HW: Array, fill: float | None = None) -> Array:
    """[H, W, C] float32: the image at fractional positions, from the four pixels around each.

    Outside the image lies `fill`, or the nearest edge pixel when that is None.
    """
    height, width, _ = image_HWC.shape
    if fill is None:
        y_HW, x_HW = jnp.clip(y_HW, 0, height - 1), jnp.clip(x_HW, 0, width - 1)
    top_HW, left_HW = jnp.floor(y_HW), jnp.floor(x_HW)
    result_HWC = jnp.zeros((*y_HW.shape, image_HWC.shape[-1]), jnp.float32)
    for row_HW in (top_HW, top_HW + 1):
        for column_HW in (left_HW, left_HW + 1):
            weight_HW = (1 - jnp.abs(y_HW - row_HW)) * (1 - jnp.abs(x_HW - column_HW))
            inside_HW = (row_HW >= 0) & (row_HW < height) & (column_HW >= 0) & (column_HW < width)
            row = jnp.clip(row_HW, 0, height - 1).astype(jnp.int32)
            column = jnp.clip(column_HW, 0, width - 1).astype(jnp.int32)
            pixel_HWC = image_HWC.at[row, column].get(mode="promise_in_bounds")
            if fill is not None:
                pixel_HWC = jnp.where(inside_HW[..., None], pixel_HWC, fill)
            result_HWC = result_HWC + weight_HW[..., None] * pixel_HWC
    return result_HWC


def _either_way(key: Array, name: str, largest: float, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(fold_name(key, name), shape, minval=-largest, maxval=largest)
