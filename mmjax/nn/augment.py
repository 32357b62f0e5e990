"""Random changes to images, on the device: a step's randomness without a cost on the host.

Each example has its own random key, and each kind of change its own stream of that key: an image comes out the same on any
mesh and at any place in the batch, and turning one change on leaves the draws of the others alone.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.random import fold_name
from mmjax.core.types import Array


@dataclasses.dataclass(frozen=True)
class ImageAugment:
    """Mirror, rotate, zoom, shift; then contrast, brightness, noise. All off by default, and what is off costs nothing.

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
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: give 0 (off) or more; it works both ways by itself")
        if self.flip > 1:
            raise UserError(f"flip={self.flip}: it is a probability, at most 1")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale={self.scale}: give (smallest, largest), both above 0, such as (0.9, 1.1)")

    def __call__(self, image_BHWC: Array, keys_B: Array) -> Array:
        """Augment [B, H, W, C] images, each by its own key of [B]; shape and dtype stay."""
        if self == ImageAugment(fill=self.fill):
            return image_BHWC
        return jax.vmap(self._one)(image_BHWC, keys_B)

    def _one(self, image_HWC: Array, key: Array) -> Array:
        x_HWC = image_HWC.astype(jnp.float32)
        if self.flip:
            # Apart from the resampling: a TPU gathers slowly, and a mirror image needs no gather.
            x_HWC = jnp.where(jax.random.bernoulli(fold_name(key, "flip"), self.flip), x_HWC[:, ::-1], x_HWC)
        if self.rotate or self.shift or self.crop or self.scale != (1.0, 1.0):
            x_HWC = self._move(x_HWC, key)
        if self.contrast:
            mean = x_HWC.mean()
            x_HWC = (x_HWC - mean) * (1.0 + _either_way(key, "contrast", self.contrast)) + mean
        if self.brightness:
            x_HWC = x_HWC + _either_way(key, "brightness", self.brightness)
        if self.noise:
            x_HWC = x_HWC + self.noise * jax.random.normal(fold_name(key, "noise"), x_HWC.shape)
        return x_HWC.astype(image_HWC.dtype)

    def _move(self, image_HWC: Array, key: Array) -> Array:
        height, width, _ = image_HWC.shape
        low, high = self.scale
        y_HW, x_HW = source_positions(
            height,
            width,
            angle=_either_way(key, "rotate", math.radians(self.rotate)),
            zoom=jax.random.uniform(fold_name(key, "scale"), minval=low, maxval=high),
            shift_2=_either_way(key, "shift", self.shift, (2,)) * jnp.array([height, width], jnp.float32)
            + jax.random.randint(fold_name(key, "crop"), (2,), -self.crop, self.crop + 1).astype(jnp.float32),
        )
        return bilinear(image_HWC, y_HW, x_HW, self.fill)


AUGMENTATIONS = {"image": ImageAugment}


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
