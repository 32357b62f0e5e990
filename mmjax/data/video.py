"""The column of videos: frames, and which of them are real."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError, nearest
from mmjax.data.clip import Clip, Seen, clip, watch
from mmjax.data.kinds import About, Arrays, Lost
from mmjax.data.types import Record

SAMPLES = ("uniform", "parts", "random", "first", "middle")


@dataclasses.dataclass(frozen=True)
class Video:
    """A video: `KEY` [B, T, H, W, 3] float32, and `KEY_mask` [B, T] bool, True where a frame is its own.

    T is `frames`. Of a video that has fewer frames, or ends before, the last is repeated, which is counted. Of a file only what
    is needed is decoded. It is read before the transforms, which get uint8 [T, H, W, 3] under KEY: those with
    `field="video"` draw once and treat all frames alike; `Normalise(field="video")` ends them.

    A record holds a path of a file or of a folder of images, the bytes of a file, HuggingFace's `{"bytes", "path"}`, or uint8
    [n, H, W, 3].

    Attributes:
      frames: T.
      sample: which. `uniform`: the middle of each of T equal parts of the whole video. `parts`: one anywhere in each part,
        anew each time while training (Wang 2016, TSN), and the middle otherwise. With `every`: `random`, a part that begins
        anywhere, anew each time while training, and in the middle otherwise; `first`, from its start; `middle`.
      every: seconds from one frame to the next; 0 with `uniform` and `parts`.
    """

    frames: int = setting(everyday=True, least=1, default=16)
    sample: str = "uniform"
    every: float = setting(least=0, default=0.0)

    @property
    def random(self) -> bool:
        """Whether it draws while training."""
        return self.sample in ("parts", "random")

    def check(self) -> None:
        """Raises `UserError` for a number out of range, an unknown `sample`, or an `every` that does not go with it."""
        check_ranges(self)
        if self.sample not in SAMPLES:
            raise UserError(f"sample={self.sample!r}: use one of {', '.join(SAMPLES)}{nearest(self.sample, SAMPLES)}")
        spread = self.sample in ("uniform", "parts")
        if spread and self.every:
            raise UserError(
                f"every={self.every:g}: sample={self.sample!r} spreads frames over the whole video; use random or first"
            )
        if not spread and not self.every:
            raise UserError(f"every=0: sample={self.sample!r} needs the seconds from one frame to the next, 0.1 for instance")

    def build(self, key: str, value: Any, about: About, first: Record) -> VideoColumn:
        if not isinstance(value, np.ndarray) or f"{key}_seen" not in first:
            raise UserError(f"{key} is {type(value).__name__}, and no video; a transform has replaced it")
        if value.dtype == np.uint8:
            field = f"field={key!r}"
            raise UserError(f"the {key} is still uint8 at the end; add Normalise({field}) as the last of its transforms")
        return VideoColumn(key)


class VideoColumn:
    """See `Video`."""

    modality = True  # what an encoder reads

    def __init__(self, key: str) -> None:
        self.key, self.dtype = key, ""
        self.taken = (f"{key}_seen",)

    def __call__(self, values: Sequence[Any] | np.ndarray, records: Sequence[Record]) -> tuple[Arrays, Lost]:
        odd = next((one.shape for one in values if one.shape != values[0].shape), None)
        if odd is not None:
            first = values[0].shape
            raise UserError(
                f"{self.key}: frames of {odd[1]} x {odd[2]} and of {first[1]} x {first[2]} pixels in one batch; add "
                f"Resize(size, field={self.key!r}) or RandomCrop to transforms"
            )
        x_BTHWC = values if isinstance(values, np.ndarray) else np.stack(values)
        mask_BT = np.zeros(x_BTHWC.shape[:2], bool)
        lost = Lost()
        for row, record in zip(mask_BT, records, strict=True):
            seen: Seen = record[f"{self.key}_seen"]
            row[: seen.frames] = True
            lost += Lost(short_videos=int(seen.frames < len(row)), cut_videos=int(seen.cut))
        return {self.key: x_BTHWC.astype(np.float32, copy=False), f"{self.key}_mask": mask_BT}, lost


@dataclasses.dataclass(frozen=True)
class Watch:
    """Reads the video of a record, for a column that says how; the first thing that is done to a record.

    Attributes:
      key: of the record and of the column.
      spec: the column's.
    """

    key: str
    spec: Video

    @property
    def random(self) -> bool:
        """Whether it draws."""
        return self.spec.random

    def whole(self, record: Record) -> Clip:
        """A video that was read, as one that is not: in memory."""
        return Clip(record[self.key], f"{self.key}, in place of one that is lacking")

    def __call__(self, record: Record, rng: np.random.Generator | None, where: str) -> Record:
        """The record with uint8 [T, H, W, 3] for its video, and a `Seen` beside it; without an `rng` nothing is drawn.

        `where` names the record, for complaints about a video that has no name of its own.

        Raises `BadRecordError` as `watch` does.
        """
        if self.key not in record:
            return record  # which the columns say
        spec, video = self.spec, clip(record[self.key], f"{where} {self.key}")
        at: Any = 0.0 if spec.sample == "first" else 0.5
        if rng is not None and spec.random:
            at = rng.random(spec.frames) if spec.sample == "parts" else float(rng.random())
        x_THW3, seen = watch(video, spec.frames, spec.every or None, at)
        return {**record, self.key: x_THW3, f"{self.key}_seen": seen}
