"""The column of sounds: a waveform and where it is real."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.kinds import About, Arrays, Lost
from mmjax.data.sound import Heard, Recording, hear, recording
from mmjax.data.types import Record

STARTS = ("random", "first")


@dataclasses.dataclass(frozen=True)
class Audio:
    """A sound: `KEY` [B, N] float32, of which 1.0 is the most a file holds, and `KEY_mask` [B, N] bool, True where it is real.

    N is `seconds` * `rate`. A longer sound is cut, which is counted, a shorter one filled up with zeros at its end. Of a file
    no more is read than that. It is read before the transforms, which get [n] float32 under KEY.

    A record holds a path, the bytes of a file, HuggingFace's `{"bytes", "path"}`, or `{"array", "sampling_rate"}`.

    Attributes:
      rate: samples a second, to which all are resampled.
      seconds: length of a row.
      channel: which channel, from 0; None for the mean of all.
      start: of a sound that is too long, where the part begins: `random`, anew each time while training, and at its start
        otherwise; `first`, at its start always: then what is read is kept (`Data.cache_mb`).
    """

    rate: int = setting(least=1, default=16_000)
    seconds: float = setting(above=0, default=10.0)
    channel: int | None = setting(least=0, default=None)
    start: str = "random"

    @property
    def samples(self) -> int:
        """N."""
        return round(self.seconds * self.rate)

    def check(self) -> None:
        """Raises `UserError` for a number out of range, an unknown start, or rows without a sample."""
        check_ranges(self)
        if not isinstance(self.rate, int):
            raise UserError(f"rate={self.rate!r}: give a whole number of samples a second")
        if self.start not in STARTS:
            raise UserError(f"start={self.start!r}: use one of {', '.join(STARTS)}")
        if self.samples < 1:
            raise UserError(f"seconds={self.seconds}: at rate={self.rate} that is no sample; use {1 / self.rate:g} or more")

    def build(self, key: str, value: Any, about: About, first: Record) -> AudioColumn:
        if not isinstance(value, np.ndarray) or f"{key}_heard" not in first:
            raise UserError(f"{key} is {type(value).__name__}, and no sound; a transform has replaced it")
        return AudioColumn(key, self.samples)


class AudioColumn:
    """See `Audio`."""

    modality = True  # what an encoder reads

    def __init__(self, key: str, samples: int) -> None:
        self.key, self.samples = key, samples
        self.taken = (f"{key}_heard",)

    def __call__(self, values: Sequence[Any] | np.ndarray, records: Sequence[Record]) -> tuple[Arrays, Lost]:
        x_BN = np.zeros((len(values), self.samples), np.float32)
        mask_BN = np.zeros((len(values), self.samples), bool)
        lost = Lost()
        for row, (x_N, record) in enumerate(zip(values, records, strict=True)):
            own: Heard = record[f"{self.key}_heard"]
            count = min(len(x_N), self.samples)
            x_BN[row, :count], mask_BN[row, :count] = x_N[:count], True
            kept, cut = count / own.rate, own.cut or len(x_N) > count
            seconds = max(0.0, own.seconds - kept) if cut else 0.0
            lost += Lost(cut_sounds=int(cut), cut_seconds=seconds, silent=int(own.silent), clipped=int(own.clipped))
        return {self.key: x_BN, f"{self.key}_mask": mask_BN}, lost


@dataclasses.dataclass(frozen=True)
class Hear:
    """Reads the sound of a record, for a column that says how; the first thing that is done to a record.

    Attributes:
      key: of the record and of the column.
      spec: the column's.
    """

    key: str
    spec: Audio

    @property
    def random(self) -> bool:
        """Whether it draws."""
        return self.spec.start == "random"

    def whole(self, record: Record) -> Recording:
        """A sound that was read, as one that is not: in memory."""
        return Recording(record[self.key], f"{self.key}, in place of one that is lacking", self.spec.rate)

    def __call__(self, record: Record, rng: np.random.Generator | None, where: str) -> Record:
        """The record with [n] float32 for its sound, and a `Heard` beside it; without an `rng` from its start.

        `where` names the record, for complaints about a sound that has no name of its own.

        Raises `BadRecordError` as `hear` does.
        """
        if self.key not in record:
            return record  # which the columns say
        spec, sound = self.spec, recording(record[self.key], f"{where} {self.key}")
        at = float(rng.random()) if rng is not None and self.random else 0.0
        x_N, heard = hear(sound, spec.rate, spec.seconds, spec.channel, at)
        return {**record, self.key: x_N, f"{self.key}_heard": heard}
