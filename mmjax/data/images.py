"""Pixels in and out of PIL: whatever a file holds becomes uint8 [H, W, 3], RGB, upright."""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmjax.core.errors import UserError
from mmjax.data.types import BadRecordError, Record


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """uint8 [H, W, 3] from an image file.

    Raises:
      BadRecordError: the file is missing, truncated, or no image.
    """
    return _decode(path, os.fspath(path))


def decode_image(encoded: bytes, name: str) -> np.ndarray:
    """uint8 [H, W, 3] from the bytes of an image file; `name` is for the error.

    Raises:
      BadRecordError: the bytes are truncated, or no image.
    """
    return _decode(io.BytesIO(encoded), name)


def to_pil(image_HW3: np.ndarray) -> Image.Image:
    """A PIL image from uint8 [H, W, 3]; half the time of `Image.fromarray`, which counts for tiny images."""
    height, width, _ = image_HW3.shape
    return Image.frombuffer("RGB", (width, height), np.ascontiguousarray(image_HW3), "raw", "RGB", 0, 1)


def from_pil(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3] from an RGB image."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)


def pixels(record: Record, transform: str, field: str = "image") -> np.ndarray:
    """The record's image of that name, uint8 [H, W, 3].

    Raises:
      UserError: there is none, or it is no longer uint8.
    """
    image = record.get(field)
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        wanted = "an image" if field == "image" else f"an image {field!r}"
        raise UserError(f"transforms: {transform} needs {wanted}, and the source has none")
    if image.dtype != np.uint8:
        raise UserError(f"transforms: {transform} needs a uint8 image, not {image.dtype}: put it before Normalise")
    return image


def _decode(file: str | os.PathLike[str] | io.BytesIO, name: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return from_pil(_to_rgb(ImageOps.exif_transpose(image)))
    except MemoryError:
        raise
    except FileNotFoundError:
        raise BadRecordError(name, "no such file") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else f"{error} ({type(error).__name__})"
        raise BadRecordError(name, reason) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: PIL would clip them to 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:  # over white, as HuggingFace's processors do
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
