"""The files below a folder, through links to other folders; links that lead in a circle end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmjax.data.images import printable
from mmjax.data.once import warn_once

log = logging.getLogger(__name__)


def folders(path: Path) -> list[str]:
    """Names of the folders in a folder, links to folders among them; hidden ones are passed over."""
    found = []
    for entry in path.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            found.append(entry.name)
        elif _leads_nowhere(entry):
            warn_once(log, "%s is a link to what is not there, and is left out", printable(entry))
    return sorted(found)


def images(root: Path, folder: Path, extensions: Sequence[str]) -> Iterator[str]:
    """Paths below `root`, with forward slashes, of the images in `folder` and below it.

    Each folder is read once, by its own path rather than that of a link: first what is really below `folder`, then what links
    lead to, in the order of their paths. Hidden files and folders are passed over.
    """
    seen: set[str] = set()
    waiting = [os.fspath(folder)]
    while waiting:
        links: list[str] = []
        for start in waiting:
            if os.path.realpath(start) not in seen:
                yield from _really_below(start, os.fspath(root), tuple(extensions), seen, links)
        waiting = sorted(links)


def _really_below(start: str, root: str, extensions: tuple[str, ...], seen: set[str], links: list[str]) -> Iterator[str]:
    for parent, below, files in os.walk(start):
        seen.add(os.path.realpath(parent))
        visible = sorted(name for name in below if not name.startswith("."))
        linked = [name for name in visible if os.path.islink(os.path.join(parent, name))]
        links += [os.path.join(parent, name) for name in linked]
        below[:] = [name for name in visible if name not in linked and os.path.realpath(os.path.join(parent, name)) not in seen]
        place = Path(os.path.relpath(parent, root)).as_posix()
        for file in sorted(files):
            if file.lower().endswith(extensions) and not file.startswith("."):
                yield f"{place}/{file}"
            elif _leads_nowhere(Path(parent, file)):
                warn_once(log, "%s is a link to what is not there, and is left out", printable(Path(parent, file)))


def _leads_nowhere(path: Path) -> bool:
    """Whether a path is a broken link to what may have been a folder: one with a suffix was a file."""
    return path.is_symlink() and not path.exists() and not path.suffix and not path.name.startswith(".")
