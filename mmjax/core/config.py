"""Specs as trees of fields: list them, replace one, write them to JSON and read them back.

A spec is a dataclass (Linen modules are dataclasses) whose fields hold JSON-able values, tuples, mappings and other specs. A
field's path is dotted: `model.encoders.image.depth`, `tasks.caption.weight`, `data.train.transforms.0.size`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError, nearest

CLASS = "_class"
WITHIN = {"least": operator.ge, "above": operator.gt, "most": operator.le, "below": operator.lt}  # NaN is in no range
SAID = {"least": "from", "above": "above", "most": "up to", "below": "below"}


def setting(
    table: Mapping[str, Any] | None = None,
    everyday: bool = False,
    path: bool = False,
    metavar: str | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    needed: bool = False,
    **kwargs: Any,
) -> Any:
    """A field of a spec, with what flags, help and checks should know of it.

    Args:
      table: word -> class, the classes that the field may hold, or that the entries of the mapping or tuple in it may be.
      everyday: whether the short help lists it.
      path: whether it names a file or a folder: a run finds it from anywhere (`rooted`).
      metavar: of a command's own option: what stands for its value in the help; "" for a field that is no option.
      least, above, most, below: the range of its number, or of each number of a tuple or a mapping; see `check_ranges`.
      needed: flags must give it; it has a default for Python alone, whose complaint about it is then the class's own.
      kwargs: those of `dataclasses.field`.
    """
    limits = {"least": least, "above": above, "most": most, "below": below}
    about = {"table": table or {}, "everyday": everyday, "path": path, "metavar": metavar, "needed": needed}
    return dataclasses.field(metadata=about | {"limits": {word: x for word, x in limits.items() if x is not None}}, **kwargs)


def check_ranges(spec: Any, prefix: str = "") -> None:
    """Raises `UserError`, with the field's path, for a number that is out of the range its field declares.

    NaN and infinity are in no range, that of a field that declares none included: neither can be written to config.json.
    """
    declared = spec_fields(type(spec)) if is_spec(spec) else {}
    for name, value in children(spec).items():
        if name in declared:
            _check_range(f"{prefix}{name}", value, declared[name].metadata.get("limits", {}))
        if has_children(value):
            check_ranges(value, f"{prefix}{name}.")


def _check_range(path: str, value: Any, limits: Mapping[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items() if limits else ():  # without limits it holds what is another's, or specs
            _check_range(f"{path}.{key}", entry, limits)
        return
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)):
            continue
        if not math.isfinite(number) or not all(WITHIN[word](number, x) for word, x in limits.items()):
            said = " and ".join(f"{SAID[word]} {x:g}" for word, x in limits.items() if math.isfinite(x))
            plain = limits and not math.isinf(number) and all(map(math.isfinite, limits.values()))
            raise UserError(f"{path}={value}: use {'a number' if plain else 'a finite number'} {said}".rstrip())


def spec_fields(cls: type) -> dict[str, dataclasses.Field]:
    """The fields of a spec's class that a config sets, by name."""
    found = {f.name: f for f in dataclasses.fields(cls) if f.init}
    return {name: f for name, f in found.items() if "parent" not in found or name not in ("parent", "name")}  # of Linen's


def default(field: dataclasses.Field) -> Any:
    """The value of a field that nothing sets; `dataclasses.MISSING` where it has to be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


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
    return {name: getattr(value, name) for name in spec_fields(type(value))}


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


def rooted(value: Any, folder: Path) -> Any:
    """The same specs, with each relative path in a field that is marked as one absolute where it is there below `folder`."""
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
    if isinstance(path, Mapping):
        entries = {name: _below(folder, child) for name, child in path.items()}
        return entries if entries != path else path
    if not isinstance(path, str) or not path or "://" in path or Path(path).expanduser().is_absolute():
        return path
    place = folder / path
    pattern = re.sub(r"\*?(?:\{[^{}]*\}\*?)+", "*", path)  # {000..099}: several files, of which one there is enough to tell
    return str(place) if place.exists() or any(folder.glob(pattern)) else path


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
