"""A sound of any length on its way through a Whisper: features of one window at a time, as if all had been computed at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.core.types import Array, Batch, Params
from mmjax.data.sound import Listening
from mmjax.predict.made import Listened
from mmjax.predict.segments import Segment
from mmjax.predict.work import Work

Rows = Callable[..., Any]  # `Predictor._rows`


@dataclasses.dataclass
class Passage:
    """A sound and how far it is.

    Attributes:
      listened: the sound.
      number: of it among all that are asked for.
      window: frames of features that the encoder reads at once.
      timed: whether times are written.
      opening: the tokens by which a window's text begins; () until its language is heard.
      seek: the frame at which the next window begins.
      segments: what was said up to there.
      score: of that.
      ended: whether each window's text came to an end.
      goes_on: whether the next window is told what was said.
    """

    listened: Listened
    number: int
    front: Any
    window: int
    timed: bool = True
    opening: tuple[int, ...] = ()
    seek: int = 0
    segments: list[Segment] = dataclasses.field(default_factory=list)
    score: float = 0.0
    ended: bool = True
    goes_on: bool = False
    loudest: float = 0.0
    file: Listening | None = None

    @property
    def samples(self) -> int:
        """Of the sound, at least those of a window: a shorter one is filled up with zeros."""
        assert self.file is not None
        return max(self.file.samples, self.window * self.front.hop)

    @property
    def frames(self) -> int:
        """Of the features of the whole sound."""
        return int(self.samples // self.front.hop)

    def open(self, work: Work, rows_of: Rows) -> None:
        """Begin: find the loudest power of the whole sound, which every feature depends on. Raises `BadRecordError`."""
        assert work.hears is not None and self.listened.source is not None
        self.file = Listening(self.listened.source, work.hears.rate, work.hears.channel)
        front = self.front

        def loudest(params: Params, rows: Batch) -> Array:
            log_BTF = front.logs(rows["audio"])
            real_BT = jnp.arange(log_BTF.shape[1])[None] < rows["frames"][:, None]
            return jnp.max(jnp.where(real_BT[..., None], log_BTF, -jnp.inf), axis=(1, 2))

        found = [rows_of(("loudest",), loudest, self.part(start), bound=False) for start in range(0, self.frames, self.window)]
        self.loudest = float(np.max(np.concatenate(found)))

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.__exit__()

    @property
    def left(self) -> int:
        """Frames of the window at `seek` that are of the sound; 0 after its end."""
        return max(0, min(self.window, self.frames - self.seek))

    def part(self, seek: int) -> dict[str, np.ndarray]:
        """One row of `window_features`: `audio` [1, N] float32, samples of which the frames from `seek` on are made."""
        assert self.file is not None
        half, hop, total = self.front.n_fft // 2, self.front.hop, self.samples
        first = seek * hop - half
        last = first + (self.window - 1) * hop + self.front.n_fft
        start, end = max(0, first), min(total, last)
        x_N = np.zeros(end - start, np.float32)
        if start < self.file.samples:
            read, _ = self.file.read(start, min(end, self.file.samples) - start)
            x_N[: len(read)] = read
        before = x_N[1 : 1 + start - first][::-1]  # mirrored at both ends of the sound
        after = x_N[max(0, len(x_N) - 1 - min(last - end, half)) : -1][::-1] if last > end else x_N[:0]
        row = np.concatenate([before, x_N, after, np.zeros(last - end - len(after), np.float32)])
        frames = max(0, min(self.window, self.frames - seek))
        return {"audio": row[None], "frames": np.array([frames], np.int32), "loudest": np.array([self.loudest], np.float32)}


def window_features(passages: Sequence[Passage], rows_of: Rows) -> dict[str, np.ndarray]:
    """`audio` [B, T, F], features of each one's next window, 0 after its sound, and `audio_mask` [B, T]."""
    front = passages[0].front

    def features(params: Params, rows: Batch) -> dict[str, Array]:
        log_BTF = front.logs(rows["audio"])
        mask_BT = jnp.arange(log_BTF.shape[1])[None] < rows["frames"][:, None]
        x_BTF = jnp.where(mask_BT[..., None], front.scaled(log_BTF, rows["loudest"]), 0.0)
        return {"audio": x_BTF, "audio_mask": mask_BT}

    parts = [one.part(one.seek) for one in passages]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found: dict[str, np.ndarray] = rows_of(("window features",), features, rows, bound=False)
    return found
