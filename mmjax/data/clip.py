"""Videos in: of a file only the frames that are wanted are decoded, from the keyframes before them on.

Files are decoded by FFmpeg (`av`: MP4, MOV, MKV, WebM, AVI and more), which comes with `pip install 'mmjax[video]'`. A folder
of images in the order of their names, or an array, is a video too: one without times.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data.files import remote
from mmjax.data.images import printable, read_image
from mmjax.data.types import BadRecordError

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv")
FRAMES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of a folder
LENIENT = 0.5  # seconds that a video may end too early where only the whole file, with its sound, says how long it is


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A video as a source gives it, not read yet: which frames of it are wanted, a column says.

    Attributes:
      source: the path or address of a file, the path of a folder of frames, the bytes of a file, or uint8 [n, H, W, 3].
      where: its name for complaints.
    """

    source: str | bytes | np.ndarray
    where: str

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return 0 if isinstance(self.source, str) else len(self.source) if isinstance(self.source, bytes) else self.source.nbytes

    def encoded(self) -> bytes:
        """The file. Raises OSError; of an address what `remote.asked` raises; ValueError for an array or a folder."""
        if isinstance(self.source, np.ndarray) or _is_folder(self.source):
            raise ValueError(f"{self.where}: a video as separate frames is no file")
        return remote.file_bytes("", self.source) if isinstance(self.source, str) else self.source


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was read of a video.

    Attributes:
      frames: how many of the frames are its own: after them the last one is repeated.
      seconds: length of the whole; of one without times the number of its frames.
      start: second at which what was read begins.
      cut: whether there is more of it, after what was read or before.
    """

    frames: int
    seconds: float
    start: float = 0.0
    cut: bool = False


def clip(value: Any, where: str, root: str = "") -> Clip:
    """A video from what a field holds: a path below `root`, bytes, HuggingFace's `{"bytes", "path"}`, or uint8 [n, H, W, 3].

    Raises:
      BadRecordError: anything else.
    """
    if isinstance(value, Clip):
        return value
    value = remote.inside(value)
    if isinstance(value, bytes):
        return Clip(value, where)
    if isinstance(value, str) and value:
        path = remote.joined(root, value)
        return Clip(path, printable(path))
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 4 and value.shape[3] == 3:
        return Clip(value, where)
    said = f"{value!r:.60}" if isinstance(value, str | int | float | None) else type(value).__name__
    said = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else said
    raise BadRecordError(where, f"a video is the bytes of a file, a path, or frames as uint8 [n, H, W, 3], not {said}")


def watch(video: Clip, frames: int, every: float | None = None, at: float | Sequence[float] = 0.5) -> tuple[np.ndarray, Seen]:
    """uint8 [frames, H, W, 3], upright: some frames of a video. What is shown at a time is the last frame that begins by then.

    Args:
      frames: how many. Of a video that has fewer, or ends before, the last frame is repeated.
      every: seconds between two; None spreads them over the whole: of as many equal parts one each.
      at: with `every` where the first one is, from 0.0 (the start) to 1.0 (so that what is read ends with the video). Without,
        where in its part each frame is, one number for all or one each: 0.5 is the middle, and 1.0 lies in the next part.

    Raises:
      BadRecordError: no such file, no video in it, no frames, a truncated or a damaged one, one whose size changes on the way,
        or one without times where `every` asks for them.
      UserError: a package is missing.
    """
    times: np.ndarray
    with _opened(video) as film:
        seconds, count = film.seconds, film.count
        if count < 1:
            raise BadRecordError(video.where, "it has no frames")
        if every is None:
            own = min(frames, count)
            places = np.broadcast_to(np.asarray(0.5 if own < frames else at, np.float64), frames)[:own]
            times, start, cut = (np.arange(own) + places) / own * seconds, 0.0, False
        else:
            if not film.timed:
                raise BadRecordError(video.where, f"every={every:g}, and it is frames without times: every=None spreads them")
            start = float(np.asarray(at)) * max(0.0, seconds - frames * every)
            times, cut = start + np.arange(frames) * every, seconds > frames * every + film.tick
            times = times[times < max(seconds - film.tick, film.tick)]
        found = film.shown(times)
    for other in found:
        if other.shape != found[0].shape:
            sizes = [f"{one.shape[0]} x {one.shape[1]}" for one in (found[0], other)]
            raise BadRecordError(video.where, f"its size changes on the way, from {sizes[0]} to {sizes[1]} pixels")
    filled = [*found, *[found[-1]] * (frames - len(found))]
    return np.stack(filled), Seen(len(found), seconds, start, cut)


class _Film(Protocol):
    """An open video: how long it is, how many frames it has, and whether these have times; `tick` seconds are its grain."""

    seconds: float
    count: int
    timed: bool
    tick: float

    def __enter__(self) -> _Film: ...

    def __exit__(self, *_: Any) -> None: ...

    def shown(self, times: np.ndarray) -> list[np.ndarray]:
        """The frame [H, W, 3] at each of increasing times."""
        ...


class _Pages:
    """Frames one by one: an array, or files; the time of each is its number."""

    timed, tick = False, 0.0

    def __init__(self, pages: np.ndarray | list[str]) -> None:
        self.pages, self.count, self.seconds = pages, len(pages), float(len(pages))

    def __enter__(self) -> _Pages:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def shown(self, times: np.ndarray) -> list[np.ndarray]:
        numbers = [min(int(time + 1e-6), self.count - 1) for time in times]
        return [read_image(page) if isinstance(page := self.pages[n], str) else page for n in numbers]


class _Decoded:
    """A file of FFmpeg's."""

    timed = True

    def __init__(self, container: Any, where: str) -> None:
        self.container, self.where = container, where
        self.stream = container.streams.video[0]
        self.stream.codec_context.thread_count = 1  # the pipeline has threads of its own
        self.first = self.stream.start_time or 0
        self.base = float(self.stream.time_base)
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = float(rate) if rate else 0.0
        # Times are rounded to its base, which is less than a frame.
        self.tick = min(self.base / 2, 0.05 / self.rate if self.rate else self.base / 2) + 1e-6
        own, whole = self.stream.duration, container.duration
        self.lenient = 0.0 if own else LENIENT
        self.seconds = own * self.base if own else whole / 1e6 if whole else 0.0
        self.count = self.stream.frames or round(self.seconds * self.rate)

    def __enter__(self) -> _Decoded:
        return self

    def __exit__(self, *_: Any) -> None:
        self.container.close()

    def shown(self, times: np.ndarray) -> list[np.ndarray]:
        shown = ahead = None
        flow: Iterator[Any] = iter(())
        kept: dict[int, np.ndarray] = {}
        found = []
        for time in times:
            if shown is None or self._leaps(time, shown):
                flow, shown, ahead = self._from(time)
            while True:
                ahead = ahead or self._next(flow)
                if ahead is None or self._time(ahead) > time + self.tick:
                    break
                shown, ahead = ahead, None
            if ahead is None:
                self._check_end(shown, time)
            if shown.pts not in kept:
                kept = {shown.pts: self._pixels(shown)}
            found.append(kept[shown.pts])
        return found

    def ends(self) -> list[float]:
        """When each frame ends, in the order in which they are stored. Nothing can be read afterwards."""
        with self:
            try:
                packets = [packet for packet in self.container.demux(self.stream) if packet.pts is not None]
            except Exception as error:  # of FFmpeg
                raise BadRecordError(self.where, f"it is damaged or truncated ({_reason(error)})") from error
        return [(packet.pts + (packet.duration or 0) - self.first) * self.base for packet in packets]

    def _from(self, time: float) -> tuple[Iterator[Any], Any, Any]:
        """Frames from the last keyframe by then on, after the first of them; that one; and none ahead."""
        place = self._keyframe(time)
        while True:
            if place is not None:
                self._seek(place)
            flow = self._flow()
            shown = self._next(flow)
            if shown is None:
                said = f"nothing can be decoded from second {time:.2f} of {self.seconds:.2f} on"
                raise BadRecordError(self.where, f"it is damaged or truncated: {said}")
            earlier = None if place is None else self._keyframe((place - 1 - self.first) * self.base)
            if self._time(shown) <= time + self.tick or earlier is None or earlier == place:
                return flow, shown, None
            place = earlier  # a keyframe is decoded before it is shown

    def _keyframe(self, time: float) -> int | None:
        """Where the keyframe before a time lies, by the file's own index; None where it has none, or none before."""
        entries, wanted = self.stream.index_entries, self.first + int((time + self.tick) / self.base)
        number = entries.search_timestamp(wanted, backward=True) if len(entries) else -1
        return None if number is None or number < 0 else int(entries[number].timestamp)

    def _leaps(self, time: float, shown: Any) -> bool:
        """Whether a keyframe lies between what is shown and that time: frames before it need not be decoded."""
        place = self._keyframe(time)
        return place is not None and place > shown.pts

    def _seek(self, place: int) -> None:
        try:
            self.container.seek(place, stream=self.stream, backward=True)
        except Exception as error:
            raise BadRecordError(self.where, f"no place can be found in it ({_reason(error)})") from error

    def _flow(self) -> Iterator[Any]:
        yield from self.container.decode(self.stream)

    def _next(self, flow: Iterator[Any]) -> Any:
        """The next frame; None after the last."""
        try:
            frame = next(flow, None)
        except Exception as error:  # of FFmpeg, which also asks for the memory that a damaged number says
            raise BadRecordError(self.where, f"it is damaged or truncated ({_reason(error)})") from error
        if frame is not None and (frame.is_corrupt or frame.pts is None):
            raise BadRecordError(self.where, "it is damaged: a frame cannot be decoded whole")
        return frame

    def _time(self, frame: Any) -> float:
        return (frame.pts - self.first) * self.base

    def _check_end(self, shown: Any, time: float) -> None:
        """Raises `BadRecordError` where a video ends well before what it says."""
        end = self._time(shown) + (2 / self.rate if self.rate else 0.0) + self.lenient
        if time > end:
            said = f"it ends at second {self._time(shown):.2f} of {self.seconds:.2f}"
            raise BadRecordError(self.where, f"it is truncated: {said}")

    def _pixels(self, frame: Any) -> np.ndarray:
        try:
            found: np.ndarray = frame.to_ndarray(format="rgb24")
        except Exception as error:  # of FFmpeg: colours that it does not know
            raise BadRecordError(self.where, f"a frame cannot be made red, green and blue ({_reason(error)})") from error
        return np.rot90(found, round(frame.rotation / 90) % 4)


def _opened(video: Clip) -> _Film:
    source = video.source
    if isinstance(source, np.ndarray):
        return _Pages(source)
    if isinstance(source, str) and _is_folder(source):
        names = sorted(name for name in os.listdir(source) if name.lower().endswith(FRAMES) and not name.startswith("."))
        return _Pages([os.path.join(source, name) for name in names])
    library = _package()
    film = _Decoded(_container(library, video), video.where)
    if film.seconds and film.count:
        return film
    # It says neither how long it is nor how many frames it has: they are counted, not decoded.
    ends = film.ends()
    film = _Decoded(_container(library, video), video.where)
    film.count, film.seconds = len(ends), max([*ends, len(ends) / film.rate if film.rate else 0.0], default=0.0)
    return film


def _container(library: ModuleType, video: Clip) -> Any:
    """An open file that has a video in it."""
    source = video.source
    try:
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
        if isinstance(source, str) and remote.is_address(source):
            file = io.BufferedReader(remote.RemoteFile(source), 1 << 18)
        container = library.open(file, "r")
    except UnreachableError as error:
        raise BadRecordError(video.where, str(error)) from error
    except UserError as error:
        if not str(error).endswith(": no such file"):  # of an address
            raise
        raise BadRecordError(video.where, "no such file") from None
    except Exception as error:  # of FFmpeg, and of a file's name
        there = not isinstance(source, str) or remote.is_address(source) or os.path.exists(source)
        reason = f"no video that can be read ({_reason(error)})" if there else "no such file"
        raise BadRecordError(video.where, reason) from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise BadRecordError(video.where, f"there is no video in it, only {kinds}")
    return container


def _package() -> ModuleType:
    try:
        import av
    except (ImportError, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"columns: videos are read by av: pip install 'mmjax[video]' ({said})") from None
    found: ModuleType = av
    found.logging.set_level(None)  # what is wrong is said once, by us
    return found


def _is_folder(source: Any) -> bool:
    return isinstance(source, str) and not remote.is_address(source) and os.path.isdir(source)


def _reason(error: Exception) -> str:
    """The beginning of a complaint, without the name of what it is about."""
    said = " ".join(str(getattr(error, "strerror", None) or error).split())
    return said.rstrip(".")[:120] or type(error).__name__
