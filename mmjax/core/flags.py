"""The words of a command line: flags with their values, and what a value is by the type of its field."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import shlex
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from mmjax.core.config import spec_fields
from mmjax.core.errors import UserError

Options = TypeVar("Options")


def pairs(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """`--a.b.c value ...` words as (path, values), in order.

    Raises:
      UserError: a word that is no flag, a flag without a value.
    """
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            path, equals, first = word[2:].partition("=")
            if not path:
                raise UserError(f"{word!r} names no field; flags are --field value, for instance --steps 100")
            found.append((path, [first] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise UserError(f"{word!r} is neither a config nor a flag; flags are --field value, for instance --steps 100")
    for path, values in found:
        if not values:
            raise UserError(f"--{path}: a value is missing")
    return found


def take(words: list[str], options: type[Options]) -> Options:
    """A command's own options, found anywhere among `words` and taken out of them; of two for one option the last counts.

    Args:
      options: a dataclass; a field that is a bool is a flag without a value.

    Raises:
      UserError: a value that is missing or of another type.
    """
    values: dict[str, Any] = {}
    for name, field in spec_fields(options).items():
        if field.metadata.get("metavar") == "":
            continue
        kind = hint(options, name)
        index = 0
        while index < len(words):
            flag, equals, value = words[index].partition("=")
            if flag != f"--{name}":
                index += 1
            elif kind is bool and not equals:
                values[name] = bool(words.pop(index))
            else:
                words.pop(index)
                if not equals:
                    value = words.pop(index) if index < len(words) and not words[index].startswith("--") else ""
                if not value:
                    raise UserError(f"--{name}: a value is missing")
                values[name] = parse(_without_none(kind), name, [value], dataclasses.MISSING)
    return options(**values)


def hint(cls: type, name: str) -> Any:
    """The type that a field declares; `Any` where it declares none, or one that cannot be found."""
    return _hints(cls).get(name, Any)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except Exception:  # a name that only a type checker sees, in a class of the user's
        return {}


def parse(kind: Any, path: str, values: Sequence[str], now: Any) -> Any:
    """The words of one flag as a value of a type; where that is `Any`, of the type of the value that stands there now
    (`dataclasses.MISSING`: none does).

    Raises:
      UserError: words that are not of the type.
    """
    if kind is Any or (isinstance(kind, types.UnionType) and Any in typing.get_args(kind)):
        kind = _type_of(now)
    if kind is str and len(values) == 1:
        return values[0]
    import tyro  # slow to import, and only flags need it

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(tyro.conf.FlagConversionOff[kind], args=_words(kind, values))  # type: ignore[valid-type, misc]
    except SystemExit:
        there = "" if now is dataclasses.MISSING else f", now {now!r}"
        raise UserError(f"--{path} {shlex.join(values)}: expected {_name(kind)}{there}") from None


def written(value: Any) -> str:
    """A leaf as the words that set it: `true`, `none`, `4 4`, `()`, `'a photo of a {}.'`."""
    if isinstance(value, tuple):
        return " ".join(map(written, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else shlex.quote(str(value))


def placeholder(kind: Any) -> str:
    """What stands for a value in a line of help or advice: `INT`, `FLOAT FLOAT`, `TEXT ...`."""
    members = [member for member in typing.get_args(kind) if member is not type(None)]
    if typing.get_origin(kind) is tuple:
        return f"{placeholder(members[0])} ..." if members[-1] is Ellipsis else " ".join(map(placeholder, members))
    if members and isinstance(kind, types.UnionType):
        return placeholder(members[0])
    return {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}.get(kind, "NAME")


def _without_none(kind: Any) -> Any:
    """The first member of `int | None`, the type itself of another."""
    return typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind


def _type_of(now: Any) -> Any:
    if isinstance(now, tuple):
        return tuple[type(now[0]), ...] if now else tuple[str, ...]  # type: ignore[misc]
    return str if now is None or now is dataclasses.MISSING else type(now)


def _words(kind: Any, values: Sequence[str]) -> list[str]:
    """Words for tyro: `true` as Python writes it, `4,4` as two words for a tuple, `()` as none."""
    members = typing.get_args(kind) or (kind,)
    words = list(values)
    if typing.get_origin(kind) is tuple and len(words) == 1 and words[0] == "()":
        words = []
    elif typing.get_origin(kind) is tuple and len(words) == 1 and not (str in members and " " in words[0]):
        words = [w.strip() for w in words[0].strip("()").split(",") if w.strip()]  # a sentence with a comma is one text
    known = {"true": "True", "false": "False"} if bool in members else {}
    return [("None" if w.lower() == "none" and type(None) in members else known.get(w.lower(), w)) for w in words]


def _name(kind: Any) -> str:
    return str(kind) if typing.get_args(kind) else getattr(kind, "__name__", str(kind))
