"""Pictures as they are given, made pixels."""

from __future__ import annotations

import dataclasses
import io
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mmjax.core.errors import UserError
from mmjax.data.images import decode_image, from_pil, read_image

# Modes of PIL's that no PNG has -> the nearest that one has.
PLAIN = {**dict.fromkeys(("CMYK", "YCbCr", "HSV", "LAB", "RGBX"), "RGB"), **dict.fromkeys(("RGBa", "PA"), "RGBA"), "La": "LA"}


@dataclasses.dataclass(frozen=True)
class Made:
    """An image [H, W, 3] float32 as the run's transforms have made it already."""

    pixels: np.ndarray


def pixels_of(image: Any) -> np.ndarray:
    """uint8 [H, W, 3], what a file of this image would be read as."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode == "RGB":
            return from_pil(image)
        mode = PLAIN.get(image.mode)  # that a file can have
        file = io.BytesIO()
        (image if mode is None else image.convert(mode)).save(file, "tiff" if image.mode in ("F", "I") else "png")
        return decode_image(file.getvalue(), "image")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(f"an image is a path, a PIL image or uint8 [H, W, 3]; found {array.dtype} {array.shape}")
    return array
