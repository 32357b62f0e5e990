"""Reading what a run holds, where reading may fail. Broken, unreachable and absent are three outcomes, and only one of them may
lead to doing without: a disk that times out says nothing about the checkpoint on it.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mmjax.core.errors import DEFECTS, UnreachableError, UserError
from mmjax.parallel.multihost import gather

T = TypeVar("T")

WAITS = (0.2, 1.0, 3.0)  # seconds before each further attempt

# What is there and is not what was written. Everything else may be a disk, a network or a machine in trouble.
BROKEN = (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError, IsADirectoryError, NotADirectoryError, EOFError)
BROKEN_SAYS = re.compile(r"^(NOT_FOUND|OUT_OF_RANGE|DATA_LOSS)\b|was not found in the checkpoint")  # tensorstore's, orbax's
CODES = re.compile(  # how libraries of storage, RPC and devices say that it may work another time
    r"^[A-Z_]{5,}: |\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|50[0234]|429)\b|tim(ed|e) ?out|temporar", re.I
)
CLIENTS = {"gcsfs", "s3fs", "adlfs", "fsspec", "google", "botocore", "aiobotocore", "azure", "aiohttp", "requests", "urllib3"}


class UnfitError(Exception):
    """What was read is whole, and of another run, mesh or version."""


def is_broken(error: BaseException) -> bool:
    """Whether what was read is damaged for certain."""
    return isinstance(error, BROKEN) or bool(BROKEN_SAYS.search(str(error).strip("'\"")))


def is_storage(error: BaseException) -> bool:
    """Whether an error is storage's or the machine's, and may not come another time: not about the values that were read."""
    if isinstance(error, (*DEFECTS, UserError, UnfitError)) or is_broken(error):
        return False
    known = isinstance(error, (OSError, MemoryError)) or type(error).__module__.partition(".")[0] in CLIENTS
    return known or bool(CODES.search(str(error)))


def again(what: str, act: Callable[[], T]) -> T:
    """`act()`, tried again while storage does not answer.

    Args:
      what: for the message, "config.json of runs/a".

    Raises:
      UnreachableError: it did not at any attempt. What `act` itself raises where that is about what was read.
    """
    for wait in (*WAITS, None):
        try:
            return act()
        except Exception as error:
            if not is_storage(error):
                raise
            if wait is None:
                raise unreachable(what, error) from error
            time.sleep(wait)
    raise AssertionError


def together(what: str, act: Callable[[], T], timeout: float) -> tuple[T | None, str, str]:
    """`act()` on every process, tried again by all of them while it fails on any for reasons of storage.

    Returns:
      (its value, "", ""), or (None, kind, reason) with the kind `broken` or `unfit`: the same on every process.

    Raises:
      UnreachableError: some process could not reach it at any attempt.
    """
    for wait in (*WAITS, None):
        value, problem = _attempt(act)
        problems = [p for p in gather(what, problem, timeout) if p]
        if not problems:
            return value, "", ""
        told = next((p for p in problems if p[0] == "unreachable"), problems[0])
        if told[0] != "unreachable":
            return None, *told
        if wait is None:
            raise UnreachableError(f"{what}: it cannot be read just now ({told[1]}); nothing was changed, start again later")
        time.sleep(wait)
    raise AssertionError


def _attempt(act: Callable[[], T]) -> tuple[T | None, list[str] | None]:
    try:
        return act(), None
    except UserError:
        raise
    except Exception as error:  # orbax raises whatever its file readers meet
        kind = "unfit" if isinstance(error, UnfitError) else "broken" if is_broken(error) else "unreachable"
        if kind == "unreachable" and not is_storage(error):
            raise
        return None, [kind, first_line(error)]


def unreachable(what: str, error: BaseException) -> UnreachableError:
    """One line of it."""
    return UnreachableError(
        f"{what}: it cannot be reached just now ({first_line(error)}); nothing was changed, start again later"
    )


def first_line(error: BaseException) -> str:
    """What an error says first, or its name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:160]


def names_in(folder: Any) -> list[str]:
    """The names in a folder, local or in a bucket; [] where there is no such folder.

    Raises:
      UnreachableError: it cannot be told.
    """

    def look() -> list[str]:
        try:
            return sorted(child.name for child in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    return again(str(folder), look)


def numbered(path: Path) -> Path:
    """The path with the first number that no name beside it has: `code.0` of `code`, `metrics.1.jsonl` of `metrics.jsonl`.

    Raises:
      UnreachableError: it cannot be told.
    """
    taken = set(names_in(path.parent))
    names = (f"{path.stem}.{number}{path.suffix}" for number in itertools.count())
    return path.with_name(next(name for name in names if name not in taken))


def read_text(path: Path) -> str | None:
    """A file's text; None where there is no such file. Bytes that are no text are shown as replacement characters.

    Raises:
      UnreachableError: it cannot be told.
    """

    def look() -> str | None:
        try:
            return path.read_bytes().decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    return again(str(path), look)


def read_json(path: Path) -> Any:
    """A JSON file's value; None where there is no such file.

    Raises:
      UserError: it is not JSON. UnreachableError: it cannot be told.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
