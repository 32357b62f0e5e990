"""A video that is given, made ready as a run's own are."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.clip import Seen
from mmjax.data.video import Watch
from mmjax.predict.work import Work


@dataclasses.dataclass(frozen=True)
class Watched:
    """A video as the run's column and transforms make it.

    Attributes:
      frames: [T, H, W, 3] float32.
      seen: what of it that is.
    """

    frames: np.ndarray
    seen: Seen

    @property
    def mask(self) -> np.ndarray:
        """[T] bool: the frames that are its own."""
        return np.arange(len(self.frames)) < self.seen.frames


def watched(work: Work, video: Any) -> Watched:
    """A path of a file or of a folder of frames, the bytes of a file, or uint8 [n, H, W, 3]; nothing is drawn. What was watched
    already stays.

    Raises:
      BadRecordError: a file that is no video.
      UserError: something else; a run that says nothing of how videos are made ready.
    """
    if isinstance(video, Watched):
        return video
    if work.watches is None or work.transforms is None:
        raise UserError(f"{work.path}: nothing in it says how a video is made ready (preprocessor_config.json is not there)")
    given = os.fspath(video) if isinstance(video, os.PathLike) else video
    record = Watch("video", work.watches)({"video": given}, None, "a video")
    for transform in work.transforms:
        if getattr(transform, "field", "") == "video":
            record = transform(record, np.random.default_rng(0), ())
    return Watched(record["video"], record["video_seen"])


def batch_of(work: Work, videos: list[Any]) -> dict[str, np.ndarray]:
    """`video` [N, T, H, W, 3] and `video_mask` [N, T]. Raises as `watched`, and `UserError` for videos of several sizes."""
    own = [watched(work, video) for video in videos]
    if len(sizes := {one.frames.shape for one in own}) > 1:
        raise UserError(f"{work.path}: videos of {len(sizes)} sizes after its transforms, which have no Resize: {sizes}")
    return {"video": np.stack([one.frames for one in own]), "video_mask": np.stack([one.mask for one in own])}
