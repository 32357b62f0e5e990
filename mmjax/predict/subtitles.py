"""What is said in sounds, as subtitles: SubRip (.srt) and WebVTT (.vtt, https://www.w3.org/TR/webvtt1/), a file a sound."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.core.files import write_whole

KINDS = ("srt", "vtt")
LEAST = 20  # milliseconds that something is shown: one tick of Whisper's times
ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}  # what is a mark in WebVTT


def subtitles(segments: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The text of a file of `srt` or `vtt`. What has no words is left out, and nothing begins before what is before it ends.

    Args:
      segments: `start` and `end`, in seconds, and `text`.
    """
    cues = list[str]()
    shown = 0
    for one in segments:
        text = " ".join(str(one["text"]).split())
        if not text:
            continue
        start = max(shown, round(float(one["start"]) * 1000))
        shown = max(start + LEAST, round(float(one["end"]) * 1000))
        if kind == "vtt":
            text = "".join(ESCAPED.get(letter, letter) for letter in text)
            cues.append(f"{_clock(start, '.')} --> {_clock(shown, '.')}\n{text}\n")
        else:
            text = text.replace("-->", "->")
            cues.append(f"{len(cues) + 1}\n{_clock(start, ',')} --> {_clock(shown, ',')}\n{text}\n")
    return "\n".join([*(["WEBVTT\n"] if kind == "vtt" else []), *cues])


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"


class Shelf:
    """Folders for subtitles, a file an input: its own name where no other input has it, else with its folders below those
    that all have in common.

    Args:
      folders: `srt`, `vtt` -> where these go; "" for nowhere.
      inputs: the names of all inputs.

    Raises:
      UserError: a file that is there already, a folder that cannot be made, an input that is given twice.
    """

    def __init__(self, folders: Mapping[str, str], inputs: Sequence[str]) -> None:
        self.folders = {kind: Path(folder) for kind, folder in folders.items() if folder}
        self.names = _names(inputs) if self.folders else []
        for kind, folder in self.folders.items():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--{kind} {folder}: it cannot be made a folder ({error.strerror})") from None
            there = next((name for name in self.names if (folder / f"{name}.{kind}").exists()), None)
            if there is not None:
                raise UserError(f"--{kind} {folder}: {there}.{kind} is there already; give another folder")

    def put(self, number: int, segments: Sequence[Mapping[str, Any]]) -> None:
        """Write those of one input. Raises `UserError` where that fails."""
        for kind, folder in self.folders.items():
            file = folder / f"{self.names[number]}.{kind}"
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(file, subtitles(segments, kind))
            except OSError as error:
                raise UserError(f"--{kind} {folder}: {file.name} cannot be written ({error.strerror})") from None


def _names(inputs: Sequence[str]) -> list[str]:
    """A path without a suffix of each input, no two the same."""
    paths = [Path(os.path.abspath(one)) for one in inputs]
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    above = os.path.commonpath([path.parent for path in paths])
    names = [os.path.relpath(path.with_suffix(""), above) for path in paths]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    names = [os.path.relpath(path, above) if name in twice else name for path, name in zip(paths, names, strict=True)]
    if len(set(names)) < len(names):
        again = next(one for n, one in enumerate(inputs) if names[n] in names[:n])
        raise UserError(f"{again}: it is given twice, and its subtitles are one file")
    return names
