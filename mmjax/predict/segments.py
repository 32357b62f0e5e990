"""What a Whisper wrote of one window of a sound, parted at its times (Radford 2022, section 3.8)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

TICK = 0.02  # seconds from one time's token to the next
FRAMES = 2  # of features, in a tick


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of what was said.

    Attributes:
      start, end: seconds from the beginning of the sound.
      ids: its tokens, times among them.
      text: without them.
    """

    start: float
    end: float
    ids: tuple[int, ...]
    text: str = ""


def parted(ids: Sequence[int], begin: int, seek: int, frames: int) -> tuple[list[Segment], int]:
    """The segments of a window, without texts, and how many frames on the next window begins.

    Two times that follow each other end a segment and begin the next. What begins and does not end is left for the next window,
    which begins there; one time alone at the end says that nothing follows it. The same as `transformers` has it.

    Args:
      ids: the tokens of the window, without an end.
      begin: the token of 0.00 s; those after it are later times.
      seek: the frame of the sound at which the window begins.
      frames: of the window that are of the sound.
    """
    offset = seek * TICK / FRAMES
    timed = [token >= begin for token in ids]
    cuts = [n + 1 for n in range(len(ids) - 1) if timed[n] and timed[n + 1]]
    if not cuts:
        times = [token for token, is_time in zip(ids, timed, strict=True) if is_time]
        last = times[-1] - begin if times and times[-1] != begin else int(frames * TICK / FRAMES / TICK)
        return [Segment(offset, offset + last * TICK, tuple(ids))], frames
    alone = timed[-2:] == [False, True]
    if alone:
        cuts.append(len(ids))
    else:
        cuts[-1] += 1  # the last segment shows by two times at its end that more was begun
    found, start = [], 0
    for number, cut in enumerate(cuts):
        own = tuple(ids[start:cut])
        end = own[-2] if number == len(cuts) - 1 and not alone else own[-1]
        found.append(Segment(offset + (own[0] - begin) * TICK, offset + (end - begin) * TICK, own))
        start = cut
    return found, frames if alone else (ids[start - 2] - begin) * FRAMES
