"""Transforms of sounds, on the host: they take and give the [n] float32 that the column `Audio` has read."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data.files.walk import images
from mmjax.data.sound import SOUNDS, Heard, hear, recording, resampled
from mmjax.data.types import Record, Records


@dataclasses.dataclass(frozen=True)
class SoundNoise:
    """Add noise at a ratio of signal to noise that is drawn evenly, in decibels; of powers, each the mean over the sound.

    Silence stays silent. Sums above 1 are kept: nothing is cut off.

    Attributes:
      ratio: (low, high) in dB; 0 is as loud as the sound.
      noises: a folder of files of noise, at any depth: a part of one of them, drawn anew each time, repeated where it is
        shorter than the sound; "" for white noise.
      probability: how often, from 0 to 1.
      field: the sound it changes.
    """

    ratio: tuple[float, float] = setting(least=-60, most=120, default=(5.0, 30.0))
    noises: str = setting(path=True, default="")
    probability: float = setting(least=0, most=1, default=1.0)
    field: str = "audio"

    def __post_init__(self) -> None:
        _check(self, "ratio")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        x_N, heard = _sound(record, "SoundNoise", self.field)
        apply, ratio = rng.random() < self.probability, rng.uniform(*self.ratio)
        if not apply:
            return record
        noise_N = self._noise(len(x_N), heard.rate, rng)
        power, of_noise = np.mean(np.square(x_N, dtype=np.float64)), np.mean(np.square(noise_N, dtype=np.float64))
        scale = np.sqrt(power / of_noise / 10 ** (ratio / 10)) if of_noise else 0.0
        return {**record, self.field: x_N + np.float32(scale) * noise_N}

    def _noise(self, samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
        if not self.noises:
            return rng.standard_normal(samples, np.float32)
        files = _files(self.noises)
        chosen, at = files[rng.integers(len(files))], float(rng.random())
        return np.resize(hear(recording(chosen, "", self.noises), rate, samples / rate, at=at)[0], samples)


@dataclasses.dataclass(frozen=True)
class Gain:
    """Make a sound louder or quieter by decibels that are drawn evenly. Samples above 1 are kept: nothing is cut off.

    Attributes:
      decibels: (low, high); 6 is about twice the amplitude.
      field: the sound it changes.
    """

    decibels: tuple[float, float] = setting(least=-120, most=60, default=(-6.0, 6.0))
    field: str = "audio"

    def __post_init__(self) -> None:
        _check(self, "decibels")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        x_N, _ = _sound(record, "Gain", self.field)
        return {**record, self.field: x_N * np.float32(10 ** (rng.uniform(*self.decibels) / 20))}


@dataclasses.dataclass(frozen=True)
class Shift:
    """Move a sound earlier or later by a time that is drawn evenly; silence comes in, and what goes out is lost.

    Attributes:
      seconds: how far at most, either way.
      field: the sound it changes.
    """

    seconds: float = setting(above=0, default=0.1)
    field: str = "audio"

    def __post_init__(self) -> None:
        check_ranges(self, "Shift.")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        x_N, heard = _sound(record, "Shift", self.field)
        most = min(round(self.seconds * heard.rate), len(x_N) - 1)
        by = int(rng.integers(-most, most + 1))
        moved_N = np.zeros_like(x_N)
        moved_N[max(0, by) : len(x_N) + min(0, by)] = x_N[max(0, -by) : len(x_N) - max(0, by)]
        return {**record, self.field: moved_N}


@dataclasses.dataclass(frozen=True)
class Speed:
    """Play a sound faster or slower, with its pitch, by a factor that is drawn (Ko et al. 2015, "Audio augmentation for speech
    recognition").

    It is resampled: 1.1 makes it a tenth higher, and 1 / 1.1 as long. What is then longer than a row is cut, and counted.

    Attributes:
      factors: one of these is drawn; 1.0 leaves the sound as it is.
      field: the sound it changes.
    """

    factors: tuple[float, ...] = setting(least=0.25, most=4, default=(0.9, 1.0, 1.1))
    field: str = "audio"

    def __post_init__(self) -> None:
        check_ranges(self, "Speed.")
        if not self.factors:
            raise UserError("Speed.factors=(): give one or more, such as (0.9, 1.0, 1.1)")

    def __call__(self, record: Record, rng: np.random.Generator, records: Records) -> Record:
        x_N, heard = _sound(record, "Speed", self.field)
        factor = self.factors[rng.integers(len(self.factors))]
        found_N = x_N if factor == 1 else resampled(x_N, heard.rate * factor, heard.rate)
        return {**record, self.field: found_N if len(found_N) else x_N}


def _sound(record: Record, transform: str, field: str) -> tuple[np.ndarray, Heard]:
    """The record's sound, [n] float32, and what is known of it. Raises `UserError` where there is none that has been read."""
    x_N, heard = record.get(field), record.get(f"{field}_heard")
    if not isinstance(x_N, np.ndarray) or not isinstance(heard, Heard):
        raise UserError(f"transforms: {transform} needs a sound {field!r}, which a column reads: columns {field!r}: Audio(...)")
    return x_N, heard


@functools.lru_cache(maxsize=16)
def _files(folder: str) -> tuple[str, ...]:
    """Files of sounds at any depth, sorted. Raises `UserError` where there are none."""
    if not os.path.isdir(folder):
        raise UserError(f"SoundNoise.noises={folder!r}: no such folder")
    found = tuple(sorted(file.removeprefix("./") for file in images(Path(folder), Path(folder), SOUNDS)))
    if not found:
        raise UserError(f"SoundNoise.noises={folder!r}: no sounds in it ({', '.join(SOUNDS)})")
    return found


def _check(spec: SoundNoise | Gain, field: str) -> None:
    name, (low, high) = type(spec).__name__, getattr(spec, field)
    check_ranges(spec, f"{name}.")
    if low > high:
        raise UserError(f"{name}.{field}=({low}, {high}): give (low, high) with low <= high")
