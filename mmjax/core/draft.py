"""Specs with some of their fields set anew: flags change drafts, and each spec on their way is made once, when all are read.

So flags may stand in any order, a field that needs another finds it, and a class that is named gets what it needs from the
flags beside it. What no flag touches stays the object it was.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmjax.core.config import children, default, has_children, is_spec, load_class, spec_fields
from mmjax.core.errors import UserError, nearest, within
from mmjax.core.flags import hint, parse, placeholder

MISSING = dataclasses.MISSING
REMOVED = object()  # stands where an entry was, so that the places of the others stay what they were
ALIKE = 0.75  # from here on a new name may be another's, misspelt

logger = logging.getLogger("mmjax")


def set_fields(spec: Any, flags: Sequence[tuple[str, Sequence[str]]]) -> Any:
    """`spec` with fields set by their dotted paths, each from the words of a command line.

    A leaf is parsed by its declared type. A field that holds a spec, and an entry of a mapping or a tuple of specs, takes a
    word of its table (`config.setting`) or `package.module:Class`: what the new class shares with the old keeps its values, and
    what it needs may be set by further flags. `none` removes an entry; another name, or the next number, adds one. A tuple of
    specs is set whole by several words, which keep what entries of their classes held; `()` empties any tuple,
    `{}` any mapping.

    Flags of a whole come before those of its parts, else in order: of two for one field the last counts. Numbers of a tuple's
    entries are those before any was removed.

    Raises:
      UserError: an unknown path, words that are not of the field's type, a class that lacks a field or refuses its values.
    """
    root = _draft(spec, _Place(), "")
    try:
        for path, values in sorted(flags, key=lambda flag: flag[0].count(".")):
            root.set(path.split("."), path, list(values))
        return root.make()
    except _UnknownPathError as error:
        path, advice = error.args
        raise UserError(f"unknown field --{path}{nearest(path, root.paths())}{advice}") from None


class _UnknownPathError(Exception):
    """No field has this path: the path, and advice."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """What may stand at a path: its declared type, the table of its classes, whether `none` may be said."""

    kind: Any = Any
    table: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optional: bool = False

    def entry(self) -> _Place:
        """That of the entries of the mapping or tuple that stands here."""
        members = typing.get_args(self.kind)
        return _Place(members[-1 if issubclass(_origin(self.kind), Mapping) else 0] if members else Any, self.table, True)


@dataclasses.dataclass
class _Draft:
    """A spec, a mapping or a tuple of specs that is being changed.

    Attributes:
      kind: the class of the spec, or `dict` or `tuple`.
      entries: the values that are known; drafts where a flag changes what is in them.
      place: what may stand here.
      path: where it stands.
      flag: the flag that named its class, "" where it stood there before.
      begun: the path of the flag that began it without naming its class, which may well be misspelt.
    """

    kind: Any
    entries: dict[str, Any]
    place: _Place
    path: str
    flag: str = ""
    begun: str = ""

    def set(self, names: list[str], path: str, values: list[str]) -> None:
        """Set the field at `names`, the rest of `path` from here on."""
        name = self._first(names)
        rest = names[name.count(".") + 1 :]
        if rest:
            self._open(name, path).set(rest, path, values)
        else:
            self._assign(name, path, values)

    def paths(self) -> list[str]:
        """Every path from here down, but for what a flag has begun."""
        found: list[str] = []
        for name in self.entries if self.kind in (dict, tuple) else spec_fields(self.kind):
            value, path = self._value(name), self._at(name)
            if isinstance(value, _Draft) and value.begun:
                continue
            held = value if isinstance(value, _Draft) or not has_children(value) else _draft(value, _Place(), path)
            found += [path, *(held.paths() if isinstance(held, _Draft) else ())]
        return found

    def make(self) -> Any:
        """What the draft stands for. Raises `UserError` where its class lacks a field or refuses the values."""
        made = {
            name: value.make() if isinstance(value, _Draft) else value
            for name, value in self.entries.items()
            if value is not REMOVED
        }
        if self.kind in (dict, tuple):
            return made if self.kind is dict else tuple(made.values())
        fields = spec_fields(self.kind).items()
        without = [name for name, field in fields if default(field) is MISSING or field.metadata.get("needed")]
        needed = [name for name in without if name not in made]
        if needed:
            add = " ".join(f"--{self._at(name)} {placeholder(hint(self.kind, name))}" for name in needed)
            if self.begun:
                raise _UnknownPathError(self.begun, f"; a new {self.path} needs {add} too")
            raise UserError(f"{self.flag}: {self.kind.__name__} needs {', '.join(needed)}; add {add}")
        with within(self.path):
            try:
                return self.kind(**made)
            except UserError:
                raise
            except (TypeError, ValueError) as error:  # a class of the user's, and values it was not written for
                raise UserError(f"{self.kind.__name__} takes no such values ({error})") from error

    def _at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _first(self, names: list[str]) -> str:
        """The name of an entry, which may have dots in it; else the first of `names`."""
        joined = (".".join(names[:count]) for count in range(len(names), 0, -1))
        return next((name for name in joined if self.kind is dict and name in self.entries), names[0])

    def _value(self, name: str) -> Any:
        """What stands at a name; MISSING where nothing does."""
        fields = {} if self.kind in (dict, tuple) else spec_fields(self.kind)
        return self.entries.get(name, default(fields[name]) if name in fields else MISSING)

    def _place(self, name: str, path: str) -> _Place:
        if self.kind in (dict, tuple):
            return self.place.entry()
        fields = spec_fields(self.kind)
        if name not in fields:
            raise _UnknownPathError(path, "")
        return _Place(hint(self.kind, name), fields[name].metadata.get("table") or {}, fields[name].default is None)

    def _open(self, name: str, path: str) -> _Draft:
        """The draft at a name, begun where there is none."""
        place, value, at = self._place(name, path), self._value(name), self._at(name)
        if isinstance(value, _Draft):
            return value
        if value is REMOVED:
            raise UserError(f"--{path}: --{at} none has removed what it is of")
        if has_children(value) or (isinstance(value, tuple) and place.table):
            draft = _draft(value, place, at)
        elif value is MISSING and len(place.table) == 1 and self.kind is not tuple:
            (only,) = place.table.values()
            draft = _Draft(only, {}, place, at, begun=path)
        elif value in (None, MISSING) and place.table and name:
            raise _UnknownPathError(path, f"; a new {at} is named as well, --{at} with one of {', '.join(place.table)}")
        else:
            raise _UnknownPathError(path, "")
        self.entries[name] = draft
        return draft

    def _assign(self, name: str, path: str, values: list[str]) -> None:
        place, now, entry = self._place(name, path), self._value(name), self.kind in (dict, tuple)
        whole = isinstance(now, (Mapping, tuple)) or (isinstance(now, _Draft) and now.kind in (dict, tuple))
        spec = is_spec(now) and not (isinstance(now, _Draft) and whole)
        if now is MISSING and entry:
            self._check_new(name, path, values, place)
        if values == ["none"] and (entry or (place.optional and (place.table or spec))):
            self.entries[name] = REMOVED if entry else None
        elif whole and (has_children(now) or place.table or isinstance(now, Mapping)):
            self.entries[name] = self._whole(name, path, values, now, place)
        elif spec and len(place.table) < 2 and not any(word in place.table or ":" in word for word in values):
            raise UserError(_holds(path, now.entries if isinstance(now, _Draft) else children(now)))
        elif spec or place.table or (entry and ":" in values[0] and now in (MISSING, REMOVED)):
            self.entries[name] = _construct(path, values, place, now)
        else:
            self.entries[name] = parse(place.kind, path, values, now)

    def _check_new(self, name: str, path: str, values: list[str], place: _Place) -> None:
        """Whether an entry can be added under a name."""
        leaf = place.kind in (str, int, float, bool)
        if values == ["none"] or not name or not (place.table or leaf or ":" in values[0]):
            raise _UnknownPathError(path, "")
        if self.kind is tuple and name != str(len(self.entries)):
            raise UserError(
                f"--{path}: {self.path} has {len(self.entries)} entries, so the next is --{self._at(str(len(self.entries)))}"
            )
        near = [known for known in self.entries if nearest(name, [known], ALIKE)]
        if near and self.kind is dict:
            logger.info("--%s adds %r beside %s", path, name, ", ".join(map(repr, near)))

    def _whole(self, name: str, path: str, values: list[str], now: Any, place: _Place) -> _Draft:
        """A tuple of specs set at once, each by its class; or a mapping that is emptied."""
        before = now.entries if isinstance(now, _Draft) else children(now)
        mapping = isinstance(now, Mapping) or (isinstance(now, _Draft) and now.kind is dict)
        if mapping and values == ["{}"]:
            return _Draft(dict, {}, place, path)
        words = [] if values == ["()"] else [word for value in values for word in value.split(",") if word]
        if mapping or not all(word in place.table or ":" in word for word in words):
            new = f"--{path}.{'NAME' if mapping else len(before)} for a new one"
            new += f", or --{path} {{}} for none" if mapping and before else ""
            raise UserError(f"{_holds(path, before)}, or {new}{_misspelt(words, place.table)}")
        left, entries = list(before.values()), {}
        for i, word in enumerate(words):
            cls = _class(f"{path}.{i}", word, place.table)
            same = next((value for value in left if (value.kind if isinstance(value, _Draft) else type(value)) is cls), None)
            if same is not None:
                left.remove(same)
            entries[str(i)] = _construct(f"{path}.{i}", [word], place.entry(), same)
        return _Draft(tuple, entries, place, path)


def _draft(value: Any, place: _Place, path: str) -> _Draft:
    kind = type(value) if is_spec(value) else dict if isinstance(value, Mapping) else tuple
    return _Draft(kind, children(value), place, path)


def _construct(path: str, values: list[str], place: _Place, now: Any) -> _Draft:
    """The class that was named; the fields it shares with what stands there keep their values."""
    said = shlex.join(values)
    cls = _class(path, " ".join(values), place.table)
    before = now.entries if isinstance(now, _Draft) else children(now) if is_spec(now) else {}
    return _Draft(cls, {n: v for n, v in before.items() if n in spec_fields(cls)}, place, path, f"--{path} {said}")


def _class(path: str, word: str, table: Mapping[str, Any]) -> Any:
    if word not in table and ":" not in word:
        choices = f"one of {', '.join(table)}, or " if table else ""
        raise UserError(f"--{path} {shlex.quote(word)}: expected {choices}package.module:Class{nearest(word, table)}")
    if word in table:
        return table[word]
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", word):
        raise UserError(f"--{path} {shlex.quote(word)}: write package.module:Class")
    try:
        return load_class(word, f"--{path}")
    except UserError:
        raise
    except Exception as error:  # what the user's module does when it is imported
        raise UserError(f"--{path} {word}: importing it failed, {type(error).__name__}: {error}") from error


def _holds(path: str, names: Iterable[str]) -> str:
    inside = ", ".join(f"--{path}.{name}" for name in names)
    return f"--{path} holds {inside}: set one of those" if inside else f"--{path} holds nothing yet"


def _misspelt(words: list[str], table: Mapping[str, Any]) -> str:
    return next((nearest(word, table) for word in words if word not in table), "") if len(words) > 1 else ""


def _origin(kind: Any) -> type:
    origin = typing.get_origin(kind)
    return origin if isinstance(origin, type) else object
