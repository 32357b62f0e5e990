"""What a config imports from beside it: `python3 imports.py CONFIG [WORD ...]`.

Prints the files that a machine without them needs, CONFIG first: of each its folder and its place in that, ended by a NUL. The
folder is CONFIG's or, where a module is neither there nor installed, this one, as mmjax has it. On stderr goes a line for each
kind of thing that is here and left out. A string that names a class, `module:Class`, counts as an import, in the code and as a
WORD of the command line; CONFIG may be empty. Nothing is run to find out, so mmjax need not be installed here. Exit status 2,
and one line, where what is imported cannot be copied.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

INSTALLED = ("mmjax", "mmjax_configs")  # on the machines by setup, whatever lies here
CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
COMPILED = (".so", ".pyd", ".dylib")
Parts = tuple[str, ...]  # of a module's name, from CONFIG's folder on


class NotCopiedError(Exception):
    """One line that names what and why."""


class Imports:
    """Follows imports from file to file.

    Attributes:
      files: place of what is needed -> the folder in which it is there, and whether it certainly is needed; as it was found.
      elsewhere: first parts of the names of modules that are in none of the folders.
      data: strings that name a file or folder that is here.
      left: files of packages that are no Python.
    """

    def __init__(self, config: Path | None, words: list[str]):
        here = Path(os.path.realpath(os.curdir))
        self.name = config.name if config else "the command"
        self.beside = config.parent if config else None
        self.folders = [config.parent] if config else []
        self.folders += [here] if here not in self.folders else []
        self.files: dict[Path, tuple[Path, bool]] = {}
        self.elsewhere: dict[str, None] = {}
        self.data: dict[str, None] = {}
        self.left: dict[str, None] = {}
        if config:
            self._file(config.parent, config, True)
        for word in words:
            value = word.partition("=")[2] or word
            if CLASS.fullmatch(value):
                self.string(value)
        read = 0
        while read < len(self.files):
            self._read(list(self.files)[read])
            read += 1

    def module(self, parts: Parts) -> None:
        """A module of that name is imported; what is in none of the folders is left alone."""
        if parts[0] in INSTALLED:
            return
        for folder in self.folders:
            # What is installed comes before the current folder, unless it is installed from there.
            free = folder == self.beside or not _place(parts[0]) or _own(parts[0]).startswith(f"{folder}{os.sep}")
            if free and self._module(folder, parts):
                return
        self.elsewhere[parts[0]] = None

    def string(self, text: str) -> None:
        """A string of the code: perhaps a class, perhaps a file."""
        if CLASS.fullmatch(text):
            self.module(tuple(text.partition(":")[0].split(".")))
        elif len(text) < 200 and text.isprintable() and text.strip("./") and not os.path.isabs(text):
            here = any(os.path.exists(folder / text) for folder in self.folders)
            if here and Path(os.path.normpath(text)) not in self.files:
                self.data[text] = None

    def notes(self) -> Iterator[str]:
        """A line for each kind of thing that is here and not copied."""
        if self.data:
            yield f"{self.name} names {_some(self.data)}: here, and not copied; keep data in the bucket or on the machines"
        if self.left:
            yield f"of packages only Python files are copied, not {_some(self.left)}"
        for name in self.elsewhere:
            if place := _own(name):
                yield f"{self.name} imports {name} ({place}): not beside it, and not copied; install it on the machines"

    def _module(self, folder: Path, parts: Parts) -> bool:
        """Whether it is in that folder, or a part of it is."""
        for end in range(1, len(parts) + 1):
            path = folder.joinpath(*parts[:end])
            if (path / "__init__.py").is_file():
                self._package(folder, path, parts[end:])
                return True
            source = path.with_name(path.name + ".py")
            if source.is_file():
                self._file(folder, source, True)
                return True
            for suffix in (*COMPILED, ".pyc"):
                for compiled in _named(path, suffix):
                    raise NotCopiedError(f"{compiled} is compiled for this machine and will not be copied")
            if not path.is_dir():
                return end > 1
        return True

    def _package(self, folder: Path, path: Path, inner: Parts) -> None:
        """All of a package: they look for their own modules in ways that cannot be read here."""
        sure = [path / "__init__.py"]
        for end in range(1, len(inner) + 1):
            inside = path.joinpath(*inner[:end])
            sure += [inside / "__init__.py", inside.with_name(inside.name + ".py")]
        for file in _inside(path):
            if file.name.endswith(COMPILED):
                raise NotCopiedError(f"{file} is compiled for this machine and will not be copied")
            if file.name.endswith(".py"):
                self._file(folder, file, file in sure)
            elif not file.name.endswith((".pyc", ".pyi")):
                self.left[str(file.relative_to(folder))] = None

    def _file(self, folder: Path, file: Path, sure: bool) -> None:
        self.files.setdefault(file.relative_to(folder), (folder, sure))

    def _read(self, place: Path) -> None:
        """Find what a file imports. One that may not be needed may be broken."""
        folder, sure = self.files[place]
        try:
            self._follow(folder, folder / place, place.parent.parts)
        except NotCopiedError:
            if sure:
                raise

    def _follow(self, folder: Path, file: Path, package: Parts) -> None:
        version = ".".join(map(str, sys.version_info[:2]))
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError as error:
            raise NotCopiedError(f"{file} line {error.lineno}: {error.msg} (as Python {version} reads it)") from None
        except (ValueError, RecursionError) as error:
            raise NotCopiedError(f"{file}: {error}") from None
        for node in ast.walk(tree):
            for level, name, members in _imported(node):
                if level > len(package) + 1:
                    line = getattr(node, "lineno", 0)
                    raise NotCopiedError(f"{file} line {line} imports from above {folder}, which will not be copied")
                start = package[: len(package) - level + 1] if level else ()
                found = (*start, *name.split(".")) if name else start
                for parts in (found, *((*found, member) for member in members)):
                    if parts:
                        self.module(parts)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.string(node.value)


def _imported(node: ast.AST) -> Iterator[tuple[int, str, list[str]]]:
    """(level, module, what of it) of each import that a node makes."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield 0, alias.name, []
    elif isinstance(node, ast.ImportFrom):
        yield node.level, node.module or "", [alias.name for alias in node.names if alias.name != "*"]
    elif isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0]
        if called in ("import_module", "__import__") and isinstance(first, ast.Constant) and isinstance(first.value, str):
            name = first.value.lstrip(".")
            if all(part.isidentifier() for part in name.split(".")):
                yield len(first.value) - len(name), name, []


def _named(path: Path, suffix: str) -> list[Path]:
    """Files beside `path` called like it, with a suffix and perhaps a tag before it."""
    if not path.parent.is_dir():
        return []
    name = re.compile(re.escape(path.name) + r"(\.[\w-]+)?" + re.escape(suffix))
    return [other for other in sorted(path.parent.iterdir()) if name.fullmatch(other.name)]


def _inside(package: Path) -> Iterator[Path]:
    """Every file of a package, links followed."""
    seen = set()
    for folder, folders, names in os.walk(package, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if name.isidentifier() and name != "__pycache__")
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


@functools.cache
def _place(name: str) -> str:
    """The file or folder of an installed module; "" where there is none."""
    try:
        spec = None if name in sys.builtin_module_names else importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return ""
    places = [] if spec is None else [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
    return next((place for place in places if place and os.path.exists(place)), "")


def _own(name: str) -> str:
    """Where a module is that is neither Python's nor an installed package's, but somebody's own."""
    place = _place(name)
    python = os.path.realpath(sysconfig.get_paths()["stdlib"])
    installed = {"site-packages", "dist-packages"} & set(Path(place).parts) or os.path.realpath(place).startswith(python)
    return "" if installed else place


def _some(names: dict[str, None]) -> str:
    return ", ".join(list(names)[:5]) + " ..." * (len(names) > 5)


def main() -> int:
    sys.path.pop(0)  # this file's own folder
    # mmjax too looks beside the file that a link points to.
    config = Path(os.path.realpath(sys.argv[1])) if sys.argv[1] else None
    try:
        imports = Imports(config, sys.argv[2:])
    except (NotCopiedError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for place, (folder, _) in imports.files.items():
        sys.stdout.buffer.write(os.fsencode(folder) + b"\0" + os.fsencode(place) + b"\0")
    for note in imports.notes():
        print(note, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
