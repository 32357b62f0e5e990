"""The files that a pattern names: `*`, `?` and `[...]` as a shell has them, and `{000..099}` or `{a,b}`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator

from mmjax.core.errors import UserError
from mmjax.data.files import remote

MOST = 1_000_000  # files that braces may name
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])")


def shard_names(source: str, path: str) -> tuple[str, ...]:
    """Paths of the files in a fixed order: that of the braces, and sorted by name where a `*` names them.

    Args:
      source: the source's name, for complaints.

    Raises:
      UserError: no such file, one of those that braces name is missing or named twice, braces that do not close; of an address
        also what `remote.asked` says. A file at an address without a `*` is not looked for.
    """
    option = f"{source}.path={path!r}"
    if "::" in path or path.startswith("pipe:"):
        raise UserError(
            f"{option}: examples are read in any order, which takes files, on a disk or at an address such as gs://"
        )
    if remote.is_address(path):
        return _distinct(option, _at_address(option, path))
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return (path,)
    if os.path.isdir(path):
        raise UserError(f"{option} is a folder: name the files in it, for instance {os.path.join(path, '*')!r}")
    found: list[str] = []
    for one in braces(path, option):
        here = sorted(glob.glob(one, recursive=True)) if glob.has_magic(one) else [one]
        files = [file for file in here if os.path.isfile(file)]
        if not files:
            raise UserError(f"{option}: no such file" + (f" as {one!r}" if one != path else ""))
        found += files
    return _distinct(option, found)


def _at_address(option: str, path: str) -> list[str]:
    found: list[str] = []
    for one in braces(path, option):
        files = remote.matching(one) if remote.has_pattern(one) else [one]
        if not files:
            raise UserError(f"{option}: no such file" + (f" as {one!r}" if one != path else ""))
        found += files
    return found


def _distinct(option: str, found: list[str]) -> tuple[str, ...]:
    if len(set(found)) < len(found):
        twice = next(file for file in found if found.count(file) > 1)
        raise UserError(f"{option} names {twice} more than once")
    return tuple(found)


def braces(pattern: str, option: str) -> list[str]:
    """What a pattern with braces stands for, in order: `{000..099}` with its zeros, `{0..9..3}` by steps, `{a,b}`, also nested.

    Args:
      option: begins a complaint.

    Raises:
      UserError: braces that do not close, or more than `MOST` names.
    """
    found = []
    for one in _expanded(pattern, option):
        found.append(one)
        if len(found) > MOST:
            raise UserError(f"{option} names more than {MOST} files")
    return found


def _expanded(pattern: str, option: str) -> Iterator[str]:
    start = pattern.find("{")
    if start < 0:
        if "}" in pattern:
            raise UserError(f"{option}: a brace closes that never opened")
        yield pattern
        return
    depth, commas, end = 0, [start], -1
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if pattern[place] == "," and depth == 1:
            commas.append(place)
        if depth == 0:
            end = place
            break
    if end < 0:
        raise UserError(f"{option}: a brace opens and never closes")
    before, after = pattern[:start], pattern[end + 1 :]
    for middle in _middles(pattern, commas, end, option):
        for rest in _expanded(after, option):
            yield before + middle + rest


def _middles(pattern: str, commas: list[int], end: int, option: str) -> Iterator[str]:
    inside = pattern[commas[0] + 1 : end]
    if len(commas) > 1:
        for a, b in zip(commas, [*commas[1:], end], strict=True):
            yield from _expanded(pattern[a + 1 : b], option)
        return
    found = _RANGE.fullmatch(inside)
    if found is None:
        raise UserError(f"{option}: {{{inside}}} is no range such as {{000..099}} and no list such as {{a,b}}")
    if found[4]:
        a, b = ord(found[4]), ord(found[5])
        yield from map(chr, range(a, b + 1) if a <= b else range(a, b - 1, -1))
        return
    low, high, step = int(found[1]), int(found[2]), abs(int(found[3] or 1)) or 1
    padded = any(len(word.lstrip("-")) > 1 and word.lstrip("-").startswith("0") for word in (found[1], found[2]))
    width = max(len(found[1]), len(found[2])) if padded else 0
    for number in range(low, high + 1, step) if low <= high else range(low, high - 1, -step):
        yield f"{number:0{width}d}" if width else str(number)
