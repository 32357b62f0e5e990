"""The help of a command: each flag with its value now and the field's own words, which are those of its class's docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.core.config import children, is_spec, spec_fields
from mmjax.core.flags import hint, placeholder, written

SHORT = 40  # lines of a help that is not asked for everything
COLUMN = 48  # the words begin there, or after a longer flag
NOTHING: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of help.

    Attributes:
      path: of the field.
      value: the words that set it to what it is, or what stands for them.
      words: what the field is.
      everyday: whether a short help has it.
      entries: names of mappings' entries in the path; lines that differ in them alone become one in a short help.
    """

    path: str
    value: str
    words: str
    everyday: bool = False
    entries: tuple[str, ...] = ()


def field_words(cls: type, name: str) -> str:
    """The first sentence of what the `Attributes:` of a class, or of one it inherits from, say of a field; "" for nothing."""
    for base in cls.__mro__:
        said = _attributes(base).get(name)
        if said:
            return first_sentence(said)
    return ""


def first_sentence(text: str) -> str:
    """Without its full stop, in one line."""
    return re.split(r"(?<!e\.g\.)(?<!i\.e\.)(?<=\.)\s+(?=[A-Z`\"(])", " ".join(text.split()))[0].removesuffix(".")


def options(cls: type) -> list[Line]:
    """The lines of a command's own options, the fields of a dataclass."""
    lines = []
    for name, field in spec_fields(cls).items():
        metavar = field.metadata.get("metavar")
        kind = hint(cls, name)
        value = (placeholder(kind) if field.default is None else written(field.default)) if metavar is None else metavar
        if metavar != "":
            everyday = field.metadata.get("everyday", False)
            lines.append(Line(name, "" if kind is bool else value, field_words(cls, name), everyday))
    return lines


def fields(spec: Any, only: Sequence[str] = ()) -> dict[str, list[Line]]:
    """Title -> lines of every flag that sets something in a spec, or in the fields `only` names, a group for each field that
    holds others."""
    rest: list[Line] = []
    groups: dict[str, list[Line]] = {"run": rest}
    for name, value in children(spec).items():
        found = list(_field(spec, name, name, value, ()))
        if only and name not in only:
            continue
        if len(found) == 1 and found[0].path == name:
            rest += found
        else:
            groups[f"{name}: {field_words(type(spec), name)}".removesuffix(": ")] = found
    return {title: lines for title, lines in groups.items() if lines}


def page(head: str, own: Sequence[Line], groups: Mapping[str, Sequence[Line]], everything: bool) -> str:
    """A help: `head`, a command's own options, then groups of fields.

    What would be longer than 40 lines keeps the everyday ones, unless `everything` is asked for; where these are too many, the
    largest group is cut at its end, those of the run itself last.
    """
    titled = {"options": own} if own else {}
    whole = _laid_out(head, titled | dict(groups))
    if everything or len(whole) <= SHORT:
        return "\n".join(whole)
    short = {title: _everyday(lines) for title, lines in groups.items()}
    short = {title: lines for title, lines in short.items() if lines}
    if len(_laid_out(head, titled | short)) >= SHORT:
        titled = {"options": _everyday(own)} if _everyday(own) else {}
    while len(_laid_out(head, titled | short)) >= SHORT:
        max(short.values(), key=_size).pop()
    last = f"--help all lists every flag, {len(own) + sum(map(len, groups.values()))} in all"
    return "\n".join([*_laid_out(head, titled | short), last])


def folded(lines: Sequence[Line]) -> list[Line]:
    """Lines that differ only in the names of entries as one: the first, with the names of the others and their values."""
    alike: dict[str, list[Line]] = {}
    for line in lines:
        shape = re.sub("|".join(rf"(?<=\.){re.escape(name)}(?=\.|$)" for name in line.entries) or r"\Z.", "*", line.path)
        alike.setdefault(shape, []).append(line)
    return [_one(same) for same in alike.values()]


def _everyday(lines: Sequence[Line]) -> list[Line]:
    return folded([line for line in lines if line.everyday])


def _size(lines: Sequence[Line]) -> tuple[bool, int, int]:
    deepest = max(line.path.count(".") for line in lines)
    return deepest > 0, len(lines), deepest


def _one(same: list[Line]) -> Line:
    first, *others = same
    also = ", ".join(".".join(o.entries) + (f" {o.value}" if o.value != first.value else "") for o in others)
    return dataclasses.replace(first, words=f"{first.words} (also {also})") if also else first


def _laid_out(head: str, groups: Mapping[str, Sequence[Line]]) -> list[str]:
    out = head.splitlines()
    for title, lines in groups.items():
        out.append(f"{title}")
        for line in lines:
            flag = f"  --{line.path} {line.value}".rstrip()
            out.append(f"{flag:<{COLUMN}}  {line.words}".rstrip())
    return out


def _field(spec: Any, name: str, path: str, value: Any, entries: tuple[str, ...]) -> Iterator[Line]:
    if not is_spec(spec):
        yield from _lines(path, value, NOTHING, Any, "", False, (*entries, name))
        return
    cls, about = type(spec), spec_fields(type(spec))[name].metadata
    table, everyday = about.get("table") or NOTHING, about.get("everyday", False)
    yield from _lines(path, value, table, hint(cls, name), field_words(cls, name), everyday, entries)


def _lines(
    path: str, value: Any, table: Mapping[str, Any], kind: Any, words: str, everyday: bool, entries: tuple[str, ...]
) -> Iterator[Line]:
    """The lines of what stands at a path."""
    choices = f"one of {', '.join(table)}" if len(table) > 1 else ""  # of one there is nothing to choose
    if isinstance(value, Mapping) or (isinstance(value, tuple) and (table or any(map(is_spec, value)))):
        for name, child in children(value).items():
            inner = words if not table and not is_spec(child) else ""
            own = (*entries, name) if isinstance(value, Mapping) else entries
            yield from _lines(f"{path}.{name}", child, table, Any, inner, everyday, own)
        new = "NAME" if isinstance(value, Mapping) else str(len(value))
        inner_kind = (typing.get_args(kind) or (Any,))[-1]
        if choices:
            yield Line(f"{path}.{new}", "", f"a new one: {choices}; {words}".removesuffix("; "))
        elif inner_kind in (str, int, float, bool):
            yield Line(f"{path}.{new}", placeholder(inner_kind), words)
        return
    if choices:
        yield Line(path, _word(value, table), f"{choices}; {words}".removesuffix("; "), everyday, entries)
    if is_spec(value):
        for name, child in children(value).items():
            yield from _field(value, name, f"{path}.{name}", child, entries)
    elif not choices:
        yield Line(path, written(value), words, everyday, entries)


def _word(value: Any, table: Mapping[str, Any]) -> str:
    """The word of a table for the class of a value."""
    if value is None:
        return "none"
    cls = type(value)
    return next((word for word, known in table.items() if known is cls), f"{cls.__module__}:{cls.__qualname__}")


def _attributes(cls: type) -> dict[str, str]:
    """Name -> text of the `Attributes:` in a class's own docstring; of "a, b: text" both have it."""
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in inspect.cleandoc(cls.__dict__.get("__doc__") or "").splitlines():
        if not line.startswith(" "):
            inside = line == "Attributes:" or (inside and not line)
            continue
        begun = re.match(r"  (\w+(?:, \w+)*): (.*)", line) if inside else None
        if begun:
            names = begun.group(1).split(", ")
            found |= dict.fromkeys(names, begun.group(2))
        elif inside:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
