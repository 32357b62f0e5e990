"""Specs as trees of fields: list them, override one by its path, write them to JSON and read them back.

A spec is a dataclass (Linen modules are dataclasses) whose fields hold JSON-able values, tuples, mappings and other specs. A
field's path is dotted: `model.encoders.image.depth`, `tasks.caption.weight`, `data.train.transforms.0.size`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError, nearest

CLASS = "_class"


def is_spec(value: Any) -> bool:
    """Whether a value has fields of its own."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def has_children(value: Any) -> bool:
    """Whether a value is a spec, a mapping, or a tuple of specs; anything else is a leaf."""
    return is_spec(value) or isinstance(value, Mapping) or (isinstance(value, tuple) and any(map(is_spec, value)))


def children(value: Any) -> dict[str, Any]:
    """The fields of a spec, the entries of a mapping or of a tuple of specs; {} for a leaf."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and has_children(value):
        return {str(i): child for i, child in enumerate(value)}
    if not is_spec(value):
        return {}
    names = [f.name for f in dataclasses.fields(value) if f.init]
    if "parent" in names:  # a Linen module
        names = [name for name in names if name not in ("parent", "name")]
    return {name: getattr(value, name) for name in names}


def leaves(spec: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf by its dotted path, in order."""
    out: dict[str, Any] = {}
    for name, value in children(spec).items():
        path = f"{prefix}{name}"
        if has_children(value):
            out |= leaves(value, f"{path}.")
        else:
            out[path] = value
    return out


def replace(spec: Any, name: str, value: Any) -> Any:
    """The same spec, mapping or tuple with one child replaced; an entry of the latter two that becomes None is removed."""
    if not is_spec(spec):
        kept = {k: v for k, v in {**children(spec), name: value}.items() if v is not None}
        return tuple(kept.values()) if isinstance(spec, tuple) else kept
    return type(spec)(**{**children(spec), name: value})


def override(spec: Any, path: str, values: Sequence[str]) -> Any:
    """`spec` with the field at a dotted path set from the words of a command line.

    A leaf is parsed by its declared type. A field that holds a spec takes a name from its table of choices (a `table` in
    the field's metadata) or `package.module:Class`; what the new class shares with the old keeps its values. An entry of a
    mapping or of a tuple of specs is removed by the word `none`; `()` is the empty tuple.

    Raises:
      UserError: an unknown path, or words that are not of the field's type.
    """
    return _override(spec, path.split("."), path, values, spec)


def _override(spec: Any, names: list[str], path: str, values: Sequence[str], root: Any) -> Any:
    known = children(spec)
    name, rest = names[0], names[1:]
    if name not in known:
        every = list(leaves(root))
        raise UserError(f"unknown field --{path}{nearest(path, every)}")
    if rest:
        return replace(spec, name, _override(known[name], rest, path, values, root))
    if not is_spec(spec) and list(values) == ["none"]:
        return replace(spec, name, None)
    return replace(spec, name, _parse(spec, name, known[name], path, values))


def _parse(spec: Any, name: str, current: Any, path: str, values: Sequence[str]) -> Any:
    table = _table(spec, name)
    if table and list(values) == ["none"] and _may_be_none(spec, name):
        return None
    if is_spec(current) or table:
        return _construct(path, values, table, children(current))
    if has_children(current):
        inside = ", ".join(f"--{path}.{key}" for key in children(current)) or "nothing"
        raise UserError(f"--{path} holds {inside}: set one of those")
    kind = _declared_type(spec, name, current)
    import tyro  # slow to import, and only flags need it

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(tyro.conf.FlagConversionOff[kind], args=_words(kind, values))  # type: ignore[valid-type, misc]
    except SystemExit:
        said = getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)
        raise UserError(f"--{path} {' '.join(values)}: expected {said}, now {current!r}") from None


def _words(kind: Any, values: Sequence[str]) -> list[str]:
    """Words for tyro: `true` as Python writes it, `4,4` as two words for a tuple, `()` as none."""
    members = typing.get_args(kind) or (kind,)
    words = list(values)
    if typing.get_origin(kind) is tuple and len(words) == 1 and ("," in words[0] or words[0] == "()"):
        words = [w.strip() for w in words[0].strip("()").split(",") if w.strip()]
    named = {"true": "True", "false": "False"} if bool in members else {}
    return [("None" if w.lower() == "none" and type(None) in members else named.get(w.lower(), w)) for w in words]


def _table(spec: Any, name: str) -> Mapping[str, type]:
    """The classes that a field, or the entries of a mapping's owner, may hold."""
    for f in dataclasses.fields(spec) if is_spec(spec) else ():
        if f.name == name:
            return f.metadata.get("table", {})
    return {}


def _construct(path: str, values: Sequence[str], table: Mapping[str, type], before: Mapping[str, Any]) -> Any:
    """The class that was named; the fields it shares with the spec it replaces keep their values."""
    said = " ".join(values)
    if said not in table and ":" not in said:
        choices = f"one of {', '.join(table)}, or " if table else ""
        raise UserError(f"--{path} {said}: expected {choices}package.module:Class{nearest(said, table)}")
    cls: Any = table[said] if said in table else load_class(said, f"--{path}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    needed = [n for n, f in fields.items() if (f.default, f.default_factory) == missing and n not in before]
    if needed:
        raise UserError(f"--{path} {said}: {cls.__name__} needs {', '.join(needed)}; name it in a config file, with those")
    return cls(**{name: value for name, value in before.items() if name in fields})


def _may_be_none(spec: Any, name: str) -> bool:
    return any(f.name == name and f.default is None for f in dataclasses.fields(spec))


def _declared_type(spec: Any, name: str, current: Any) -> Any:
    """The type a field declares; that of its present value when it declares none."""
    if is_spec(spec):
        kind = typing.get_type_hints(type(spec)).get(name, Any)
        if kind is not Any and not (isinstance(kind, types.UnionType) and Any in typing.get_args(kind)):
            return kind
    if isinstance(current, tuple):
        return tuple[type(current[0]), ...] if current else tuple[str, ...]  # type: ignore[misc]
    return str if current is None else type(current)


def class_name(cls: type) -> str:
    """`package.module:Class`, as `load_class` takes it. The script that runs stands under the name of its file."""
    module = main_module() if cls.__module__ == "__main__" else cls.__module__
    return f"{module}:{cls.__qualname__}"


def main_module() -> str:
    """The name by which another process would import the script that runs; `__main__` in a notebook or at a prompt."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).stem if file else "__main__"


def load_class(name: str, field: str, find: Callable[[str], Any] = importlib.import_module) -> type:
    """The class that `package.module:Class` names; the user's own code works without a fork.

    Args:
      find: imports a module by its name.

    Raises:
      UserError: no such module or class, or it is not a dataclass.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise UserError(f"{field} {name!r}: a class is named as package.module:Class")
    module_name, _, path = name.partition(":")
    main = sys.modules["__main__"]
    ours = module_name == main_module() and hasattr(main, path.split(".")[0])
    found: Any = main if ours else _imported(module_name, name, field, find)
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"{field} {name}: {module_name!r} has no {path!r}{nearest(part, vars(found))}")
        found = getattr(found, part)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"{field} {name}: a spec must be a dataclass")
    return found


def _imported(module_name: str, name: str, field: str, find: Callable[[str], Any]) -> Any:
    try:
        return find(module_name)
    except UserError:
        raise
    except Exception as error:  # it is the user's code: anything may happen in it
        what = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise UserError(f"{field} {name}: cannot import {module_name!r} ({what}{error})") from error


def to_json(value: Any) -> Any:
    """A spec as JSON-able data: each spec is an object with its class under `_class`.

    Raises:
      UserError: a field that holds what JSON cannot, for instance a function.
    """
    if is_spec(value):
        own = {CLASS: class_name(type(value))}
        return own | {name: to_json(child) for name, child in children(value).items()}
    if isinstance(value, Mapping):
        return {str(name): to_json(child) for name, child in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(child) for child in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise UserError(f"{value!r} of type {type(value).__name__} cannot be written to config.json; name it by a string instead")


def from_json(data: Any, field: str = "config", find: Callable[[str], Any] = importlib.import_module) -> Any:
    """The spec that `to_json` wrote. Lists become tuples; a field that the file lacks gets its default.

    Args:
      find: imports the module of a class by its name.

    Raises:
      UserError: a class that cannot be found, a field that it does not have, values that it does not take.
    """
    if isinstance(data, list):
        return tuple(from_json(child, f"{field}[{i}]", find) for i, child in enumerate(data))
    if not isinstance(data, dict):
        return data
    values = {name: from_json(child, f"{field}.{name}", find) for name, child in data.items() if name != CLASS}
    if CLASS not in data:
        return values
    cls = load_class(data[CLASS], field, find)
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    for name in values:
        if name not in known:
            raise UserError(f"{field}.{name}: {cls.__name__} has no such field{nearest(name, known)}")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}: {cls.__name__} does not take what stands there ({error})") from error


def specs(value: Any, field: str = "") -> Iterator[tuple[str, type]]:
    """(path, class) of every spec in a tree, the outermost first."""
    if is_spec(value):
        yield field or "experiment", type(value)
    for name, child in children(value).items():
        yield from specs(child, f"{field}.{name}" if field else name)


PATH = {"path": True}  # metadata of a field that names a file or folder: a run finds it from anywhere


def rooted(value: Any, folder: Path) -> Any:
    """The same specs, with each relative path of a field marked as `PATH` absolute where it is there below `folder`."""
    if is_spec(value):
        marked = {f.name for f in dataclasses.fields(value) if f.metadata.get("path")}
        fields = children(value)
        new = {n: _below(folder, child) if n in marked else rooted(child, folder) for n, child in fields.items()}
        changed = any(new[n] is not fields[n] for n in fields)
        return type(value)(**new) if changed else value
    if isinstance(value, Mapping):
        entries = {name: rooted(child, folder) for name, child in value.items()}
        return entries if any(entries[name] is not value[name] for name in value) else value
    if isinstance(value, tuple):
        items = tuple(rooted(child, folder) for child in value)
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


def _below(folder: Path, path: Any) -> Any:
    if not isinstance(path, str) or not path or "://" in path or Path(path).expanduser().is_absolute():
        return path
    place = folder / path
    return str(place) if place.exists() or any(folder.glob(path)) else path


def differences(old: Any, new: Any, ignore: Iterable[str] = ()) -> list[str]:
    """ "path: old -> new" for each leaf in which two specs' JSON differ, but for the paths that start with an ignored name."""
    a, b = _flat(to_json(old)), _flat(to_json(new))
    skip = tuple(ignore)
    out = []
    for path in sorted(a.keys() | b.keys()):
        if path.startswith(skip) and any(path == s or path.startswith(f"{s}.") for s in skip):
            continue
        if a.get(path, "absent") != b.get(path, "absent"):
            out.append(f"{path}: {a.get(path, 'absent')!r} -> {b.get(path, 'absent')!r}")
    return out


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, list) and any(isinstance(child, dict) for child in data):
        data = dict(enumerate(data))
    if not isinstance(data, dict) or not data:
        return {prefix[:-1]: data}
    out: dict[str, Any] = {}
    for name, child in data.items():
        out |= _flat(child, f"{prefix}{name}.")
    return out
