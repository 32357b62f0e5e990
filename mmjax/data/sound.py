"""Sounds in: of a file only the part that is wanted is read, made one channel and brought to one rate.

Files are decoded by libsndfile (`soundfile`: WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF and more) and resampled by `soxr`; both
come with `pip install 'mmjax[audio]'`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data.files import remote
from mmjax.data.images import printable
from mmjax.data.types import BadRecordError

SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
LEAST = 1.0 / 64  # seconds that are read before a part and after it, so that it is resampled as a part of the whole
FULL = 1 - 2.0**-14  # of what a file can hold: from here up a sample is at the limit
MOST_CHANNELS = 256  # an array of more has its channels first
FLAT = 4  # samples in a row at the limit: a wave that touches it does so for fewer
STREAMED = 0x7FFFF000  # bytes of a WAV from here up: written by what could not go back and say how many there are
LENIENT = 0.5  # seconds that an MP3 may end too early, whose length is an estimate where the file does not say it
CUT = re.compile(r"data : (\d+) \(should be (\d+)\)")  # of libsndfile's account of a WAV: bytes as said, and as there are


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A sound as a source gives it, not read yet: which part of it is wanted, a column says.

    Attributes:
      source: the path or address of a file, the bytes of one, or samples [n] or [n, channels], floats of which 1.0 is the most.
      where: its name for complaints.
      rate: of samples, in Hz; 0 for a file, which says its own.
    """

    source: str | bytes | np.ndarray
    where: str
    rate: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return 0 if isinstance(self.source, str) else len(self.source) if isinstance(self.source, bytes) else self.source.nbytes

    def encoded(self) -> bytes:
        """The file. Raises OSError; of an address what `remote.asked` raises; ValueError for samples."""
        if isinstance(self.source, np.ndarray):
            raise ValueError(f"{self.where}: a sound as an array is no file")
        return remote.file_bytes("", self.source) if isinstance(self.source, str) else self.source


@dataclasses.dataclass(frozen=True)
class Heard:
    """What was read of a sound.

    Attributes:
      rate: of the samples, in Hz.
      seconds: length of the whole sound.
      start: second at which the part that was read begins.
      cut: whether there is more of it.
      silent: whether all samples of the part are the same.
      clipped: whether `FLAT` of its samples in a row are at the limit of what a file can hold: the loud parts are cut off.
    """

    rate: int
    seconds: float
    start: float = 0.0
    cut: bool = False
    silent: bool = False
    clipped: bool = False


def recording(value: Any, where: str, root: str = "") -> Recording:
    """A sound from what a field holds: a path below `root`, bytes, or HuggingFace's `{"bytes", "path"}` or `{"array",
    "sampling_rate"}`.

    Raises:
      BadRecordError: anything else.
    """
    if isinstance(value, Recording):
        return value if not isinstance(value.source, np.ndarray) else _of_samples(value.source, value.rate, value.where)
    if isinstance(value, Mapping) and "array" in value:
        return _of_samples(np.asarray(value["array"]), value.get("sampling_rate"), where)
    value = remote.inside(value)
    if isinstance(value, bytes):
        return Recording(value, where)
    if isinstance(value, str) and value:
        path = remote.joined(root, value)
        return Recording(path, printable(path))
    said = f"{value!r:.60}" if isinstance(value, str | int | float | None) else type(value).__name__
    wanted = 'the bytes of a file, a path, or {"array": floats, "sampling_rate": Hz}'
    raise BadRecordError(where, f"a sound is {wanted}, not {said}")


def _of_samples(samples: np.ndarray, rate: Any, where: str) -> Recording:
    if samples.dtype.kind != "f" or samples.ndim not in (1, 2):
        said = f"{samples.ndim} dims of {samples.dtype}"
        raise BadRecordError(where, f"a sound as an array is floats of which 1 is the most, [n] or [n, channels], not {said}")
    if not isinstance(rate, int | np.integer) or isinstance(rate, bool) or rate < 1:
        raise BadRecordError(
            where, f"a sound as an array has its rate beside it, in Hz, a whole number from 1 up, not {rate!r}"
        )
    if samples.ndim == 2 and samples.shape[1] > MOST_CHANNELS:
        raise BadRecordError(where, f"a sound as an array is [n, channels], and this is {list(samples.shape)}: turn it")
    return Recording(samples, where, int(rate))


def hear(sound: Recording, rate: int, seconds: float, channel: int | None = None, at: float = 0.0) -> tuple[np.ndarray, Heard]:
    """float32 [n], n = seconds * rate at most: one part of a sound, of which no more is read than that.

    Args:
      rate: in Hz, to which it is resampled.
      seconds: of the part.
      channel: which one, from 0; None for their mean.
      at: where the part begins, from 0.0 (the start) to 1.0 (so that it ends with the sound). The part is then the same as that
        of the whole sound resampled, to rounding.

    Raises:
      BadRecordError: no such file, no sound, an empty or a truncated one, a sample that is no number, no such channel.
      UserError: a package is missing.
    """
    with Listening(sound, rate, channel) as file:
        wanted = round(seconds * rate)
        last = max(0, file.frames - math.ceil(wanted * file.own_rate / rate))
        x_N, clipped = file.read(int(at * last) // file.own_step * file.step, wanted)
        if not len(x_N):
            raise BadRecordError(sound.where, f"it is empty at {rate} Hz: {file.frames} samples at {file.own_rate} Hz")
        start = int(at * last) // file.own_step * file.own_step / file.own_rate
        return x_N, Heard(rate, file.seconds, start, file.samples > wanted, bool(np.all(x_N == x_N[0])), clipped)


class Listening:
    """A sound that is open: one channel at one rate, of which parts are read where they are wanted, for instance
    `with Listening(recording("talk.wav", "talk.wav"), 16_000) as talk: talk.read(0, 480_000)`.

    Args:
      sound, rate, channel: as `hear` takes them.

    Attributes:
      seconds: length of the whole.
      samples: at `rate`.
      frames, own_rate: of the file itself.
      step, own_step: the fewest samples, at `rate` and of the file, that are as long as each other.

    Raises:
      BadRecordError, UserError: as `hear`.
    """

    def __init__(self, sound: Recording, rate: int, channel: int | None = None) -> None:
        self.where, self.rate, self.channel = sound.where, rate, channel
        self._file = _opened(sound)
        self.own_rate, self.frames = int(self._file.samplerate), int(self._file.frames)
        self.own_step, self.step = (n // math.gcd(self.own_rate, rate) for n in (self.own_rate, rate))
        self.seconds, self.samples = self.frames / self.own_rate, round(self.frames * rate / self.own_rate)
        reason = ""
        if channel is not None and channel >= self._file.channels:
            reason = f"channel={channel}, and it has {self._file.channels}, numbered from 0"
        if self.frames < 1:
            reason = "it is empty: no samples"
        if reason:
            self.__exit__()
            raise BadRecordError(sound.where, reason)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error or (None,) * 3)

    def read(self, first: int, count: int) -> tuple[np.ndarray, bool]:
        """[n] float32, samples at `rate` from `first` on, `count` of them, or fewer where the sound ends; and whether they
        are clipped. They are those of the whole sound resampled, to rounding.

        Raises:
          BadRecordError: the part is truncated, or has samples that are no numbers.
        """
        own = first // self.step * self.own_step  # a step of whole samples both here and there: a part begins at one
        skipped, margin = first % self.step, 0
        if self.own_rate != self.rate:
            margin = self.own_step * math.ceil(LEAST * self.own_rate / self.own_step)
        length = math.ceil((skipped + count) * self.own_rate / self.rate)
        start, end = max(0, own - margin), min(self.frames, own + length + margin)
        x_NC = _read(self._file, self.where, start, end)
        x_N = x_NC.mean(axis=1) if self.channel is None else np.ascontiguousarray(x_NC[:, self.channel])
        if not np.isfinite(x_N).all():
            raise BadRecordError(self.where, "it has samples that are no finite numbers")
        clipped = _is_clipped(x_NC if self.channel is None else x_NC[:, self.channel, None])
        if self.own_rate != self.rate:
            x_N = resampled(x_N, self.own_rate, self.rate)
        skipped += (own - start) * self.rate // self.own_rate
        return x_N[skipped : skipped + count], clipped


def resampled(x_N: np.ndarray, old: float, new: float) -> np.ndarray:
    """[n * new / old] float32 of samples [n] at the rate `old`, at the rate `new`. Raises `UserError` for a missing package."""
    found: np.ndarray = _package("soxr").resample(x_N, old, new, quality="HQ")
    return found


def wav(x_N: np.ndarray, rate: int) -> bytes:
    """A WAV file of 16 bits of float samples [n], of which 1.0 is the most; needs no package."""
    samples = np.rint(np.clip(np.nan_to_num(x_N), -1, 1) * 32767).astype("<i2").tobytes()
    sizes = (int(n).to_bytes(4, "little") for n in (36 + len(samples), 16, rate, 2 * rate, len(samples)))
    whole, about, hertz, a_second, size = sizes
    kind = b"\x01\0\x01\0"  # PCM, one channel
    return b"RIFF" + whole + b"WAVEfmt " + about + kind + hertz + a_second + b"\x02\0\x10\0data" + size + samples


class _Samples:
    """An array read as a file is."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self.samples = samples if samples.ndim == 2 else samples[:, None]
        self.samplerate, (self.frames, self.channels), self.place = rate, self.samples.shape, 0

    def __enter__(self) -> _Samples:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def seek(self, place: int) -> None:
        self.place = place

    def read(self, frames: int, **_: Any) -> np.ndarray:
        return self.samples[self.place : self.place + frames].astype(np.float32)


@functools.cache
def _package(name: str) -> ModuleType:
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # OSError: a soundfile without its library
        said = " ".join(str(error).split())
        raise UserError(f"columns: sounds are read by soundfile and soxr: pip install 'mmjax[audio]' ({said})") from None
    found: ModuleType = {"soundfile": soundfile, "soxr": soxr}[name]
    return found


def _opened(sound: Recording) -> Any:
    """A file of `soundfile`, at its start."""
    if isinstance(sound.source, np.ndarray):
        return _Samples(sound.source, sound.rate)
    library = _package("soundfile")
    try:
        file = library.SoundFile(_place(sound.source))
    except UnreachableError as error:
        raise BadRecordError(sound.where, str(error)) from error
    except UserError as error:
        if not str(error).endswith(": no such file"):  # of an address
            raise
        raise BadRecordError(sound.where, "no such file") from None
    except Exception as error:  # of libsndfile, and of a file's name
        there = not isinstance(sound.source, str) or remote.is_address(sound.source) or os.path.exists(sound.source)
        reason = f"no sound that can be read ({_reason(error)})" if there else "no such file"
        raise BadRecordError(sound.where, reason) from error
    if reason := _cut_short(file.format, file.extra_info):
        file.close()
        raise BadRecordError(sound.where, reason)
    return file


def _place(source: str | bytes) -> Any:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return io.BufferedReader(remote.RemoteFile(source), 1 << 18) if remote.is_address(source) else source


def _cut_short(kind: str, said: str) -> str:
    """Why a file is truncated, by libsndfile's account of it, which reads what is left without a complaint; "" for one that is
    not."""
    found = CUT.search(said) if kind.startswith(("WAV", "RF64")) else None
    if found is not None and int(found[2]) < int(found[1]) < STREAMED:
        return f"it is truncated: {found[2]} of {found[1]} bytes"
    if kind == "OGG" and "Junk after the last page" in said and re.search("[Ee]nd-[Oo]f-[Ss]tream", said):
        return "it is truncated: its last page is cut"
    return "it is truncated" if kind == "AIFF" and "Exiting parser" in said else ""


def _read(file: Any, where: str, start: int, end: int) -> np.ndarray:
    """float32 [n, channels], the frames from `start` to `end`."""
    try:
        file.seek(start)
        found: np.ndarray = file.read(end - start, dtype="float32", always_2d=True)
    except MemoryError:
        raise
    except Exception as error:
        raise BadRecordError(where, f"it cannot be read at second {start / file.samplerate:.1f} ({_reason(error)})") from error
    missing = end - start - len(found)
    lenient = LENIENT * file.samplerate if getattr(file, "format", "") in ("MP3", "MPEG") else 0
    if missing > lenient or not len(found):
        raise BadRecordError(where, f"it is truncated: it ends at second {(start + len(found)) / file.samplerate:.1f}")
    return found


def _is_clipped(x_NC: np.ndarray) -> bool:
    full_NC = np.abs(x_NC) >= FULL
    if np.count_nonzero(full_NC) < FLAT:
        return False
    run_NC = full_NC[: len(full_NC) - FLAT + 1].copy()
    for later in range(1, FLAT):
        run_NC &= full_NC[later : len(full_NC) - FLAT + 1 + later]
    return bool(run_NC.any())


def _reason(error: Exception) -> str:
    """The end of a complaint, without the name of what it is about."""
    said = " ".join(str(error).split())
    return f"{said.rsplit(': ', 1)[-1].rstrip('.')[:120] or type(error).__name__}"
