"""Videos as `mmjax data inspect` tells and shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.clip import Seen
from mmjax.data.video import Video

SHOWN = 12  # frames of a video on a page, at most
ACROSS = 6  # of them side by side


def videos_in(columns: Mapping[str, Any]) -> dict[str, Video]:
    """The keys that are videos -> their columns."""
    return {key: spec for key, spec in columns.items() if isinstance(spec, Video)}


def told(key: str, seen: Sequence[Seen], spec: Video) -> list[str]:
    """Lines about the videos of one key: how long they are, and how many are too short or cut."""
    seconds = sorted(one.seconds for one in seen)
    of = "" if key == "video" else f" of {key}"
    short, cut = np.mean([(one.frames < spec.frames, one.cut) for one in seen], axis=0)
    return [
        f"seconds      {seconds[0]:.2f} to {seconds[-1]:.2f} a video, half of them {np.median(seconds):.2f} or less{of}",
        f"short        {short:.1%} of the videos, of frames={spec.frames}, and {cut:.1%} are cut",
    ]


def sheet(x_THWC: np.ndarray, mask_T: np.ndarray) -> np.ndarray:
    """[H', W', C]: the frames of a video that are its own side by side, in rows; of many some, evenly spaced."""
    own_THWC = x_THWC[mask_T] if mask_T.any() else x_THWC[:1]
    T, H, W, C = own_THWC.shape
    count = min(T, SHOWN)
    shown = own_THWC[((np.arange(count) + 0.5) * T / count).astype(int)]
    rows, columns = -(-count // ACROSS), min(count, ACROSS)
    filled = np.concatenate([shown, np.zeros((rows * columns - count, H, W, C), shown.dtype)])
    return filled.reshape(rows, columns, H, W, C).transpose(0, 2, 1, 3, 4).reshape(rows * H, columns * W, C)
