"""Grey levels of images with more than 8 bits a sample: to bytes by a window, or by a scale that the file itself gives."""

from __future__ import annotations

import numpy as np

from mmjax.data.types import BadRecordError

Window = tuple[float, float]
BAND = 1 << 20  # samples that are worked on at once: a whole image as float64 would be eight times its size


def to_bytes(values: np.ndarray, window: Window | None, name: str) -> np.ndarray:
    """uint8 of the same shape from whole numbers or floats; `name` is for the error.

    With a window (low, high): low becomes 0, high 255, what lies beyond is clipped and NaN is 0. Without one the scale depends
    on the file alone, so that nothing is black or saturated as a whole:

    - whole numbers from 0 up: by the fewest bits of 8, 10, 12, ... that hold the largest (values up to 255 stay as they are,
      a scan of 12 bits in 16 is divided by 4095 / 255);
    - floats in [0, 1]: times 255;
    - anything else: the lowest, or 0 if that is less, becomes 0, and the highest 255.

    Raises:
      BadRecordError: no window, and values that are infinite or no numbers.
    """
    low, high = _extent(values, name) if window is None else window
    scale = 255 / (high - low) if high > low else 0.0
    out = np.empty(values.shape, np.uint8)
    rows = max(1, BAND // max(1, values[0].size))
    for top in range(0, len(values), rows):
        band = (values[top : top + rows].astype(np.float64) - low) * scale
        out[top : top + rows] = np.rint(np.nan_to_num(band, nan=0.0, posinf=255, neginf=0).clip(0, 255))
    return out


def _extent(values: np.ndarray, name: str) -> Window:
    low, high = values.min(), values.max()  # NaN where there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadRecordError(name, "it has values that are infinite or no numbers; give the source a window=(low, high)")
    low, high = min(0, low.item()), high.item()
    if low == 0 and isinstance(high, int):
        bits = max(8, high.bit_length())
        return 0, (1 << bits + bits % 2) - 1
    return (0, 1) if low == 0 and high <= 1 else (low, high)
