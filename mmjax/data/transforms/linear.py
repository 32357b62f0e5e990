"""Bilinear resizing that does not average, by OpenCV where that is installed: a third of what PIL's filter takes."""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np

from mmjax.core.errors import UserError


@functools.cache
def _library() -> ModuleType | None:
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def check_linear(field: str) -> None:
    """Raises UserError where the library is not installed; pixels must not depend on what else is."""
    if _library() is None:
        raise UserError(f"{field}='linear' is OpenCV's: pip install 'mmjax[resize]', or take 'bilinear', which PIL has")


def linear(image_HW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3]: each new pixel lies between four old ones, whatever the scale, as in
    `tf.image.resize` without antialiasing; within 1.1 of the formula, in whole numbers, so the same on every processor.
    """
    library = _library()
    assert library is not None, "check_linear comes first"
    found: np.ndarray = library.resize(
        np.ascontiguousarray(image_HW3), (size[1], size[0]), interpolation=library.INTER_LINEAR_EXACT
    )
    return found
