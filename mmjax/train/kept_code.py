"""The code that a config needs, kept in its run: the config file, and the user's own modules that it has imported.

A run is read where its config no longer lies, or lies changed. Its classes are found in `RUN/code` under the names that
config.json gives them; a module of the same name that this process holds already is used where it is the same code, and else
left alone: the run's own is then loaded apart from it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from mmjax.core.config import class_name, specs
from mmjax.core.errors import UserError
from mmjax.core.files import write_whole

FOLDER = "code"
SOURCE = "__mmjax_source__"  # an attribute of a module: the code that it was made of
LOADING: list[Path] = []  # the folders whose modules are being executed: a run must not begin while one is


def collect(experiment: Any) -> tuple[dict[str, Path], list[str]]:
    """(name below `code/` -> file, lines to say) of what must be kept for an experiment: for each class of its specs that is
    not of an installed package its module, and with it all of the user's modules from the same folder that are loaded.

    Of what a notebook or a prompt defines there is no file; a line says so.

    Raises:
      UserError: a class that cannot be found again: of a function, or of another run's code.
    """
    found: dict[str, Path] = {}
    lost: list[str] = []
    roots: set[Path] = set()
    for path, cls in specs(experiment):
        module = sys.modules.get(cls.__module__)
        if module is None or _is_installed(module):
            continue
        file = _file(module)
        _check_findable(path, cls, file)
        if file is None:
            lost.append(
                f"{path}: {cls.__qualname__} is defined in this session alone, so no other can read the run; put it in a file"
            )
            continue
        found[_place(class_name(cls).partition(":")[0], file)] = file
        roots.add(_root(module, file))
    for module in list(sys.modules.values()) if roots else ():
        file = _file(module)
        if file is None or module.__name__ == "__main__" or APART in module.__name__ or _is_installed(module):
            continue
        if _root(module, file) in roots:
            found[_place(module.__name__, file)] = file
    return found, lost


def _check_findable(path: str, cls: type, file: Path | None) -> None:
    if "<locals>" in cls.__qualname__:
        raise UserError(
            f"{path}: {cls.__qualname__} is defined inside a function, so a run could not find it again; define it at the top "
            "of its file"
        )
    if APART in cls.__module__:
        raise UserError(
            f"{path}: {cls.__qualname__} comes from a run that keeps another {file.name if file else cls.__module__} than "
            "the one loaded here; rename one of the two files, or take the class from the present one"
        )


def read(files: dict[str, Path]) -> dict[str, bytes]:
    """Their contents, by the same names."""
    return {name: file.read_bytes() for name, file in sorted(files.items())}


def kept(run_folder: Path) -> dict[str, bytes]:
    """What a run keeps, by the same names."""
    folder = run_folder / FOLDER
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else []
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def write(run_folder: Path, code: dict[str, bytes]) -> None:
    """Make `RUN/code` hold these files."""
    folder = run_folder / FOLDER
    for name, content in code.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, content)
    for name in kept(run_folder).keys() - code.keys():
        (folder / name).unlink()


def digest(code: dict[str, bytes]) -> str:
    """What tells two versions of it apart."""
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()[:12]


def finder(run_folder: Path) -> Callable[[str], ModuleType]:
    """A function that imports a module by its name as `importlib.import_module` does, a run's own code first."""
    code = kept(run_folder)
    names = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): name for name in code}
    loaded: dict[str, ModuleType] = {}

    def find(name: str) -> ModuleType:
        if name not in names:
            return importlib.import_module(name)
        if not loaded:
            same = all(_same(_live(module), code[file]) for module, file in names.items())
            loaded.update(_load(run_folder / FOLDER, names) if same else _load_apart(run_folder / FOLDER, names, digest(code)))
        return loaded[name]

    return find


def live_first(run_folder: Path) -> Callable[[str], ModuleType]:
    """The same, but for what this process holds already: to compare a run's config with one of its later versions."""
    find = finder(run_folder)
    return lambda name: live if (live := _live(name)) is not None else find(name)


APART = "__of_"  # in the name of a module that is kept apart from one of the same name


def _load(folder: Path, names: Iterable[str]) -> dict[str, ModuleType]:
    """The modules under their own names; where this process holds one already, it is of the same code."""
    with _executing(folder):
        found = {name: live if (live := _live(name)) is not None else importlib.import_module(name) for name in names}
    for module in found.values():
        by_value(module)
    return found


def _load_apart(folder: Path, names: Iterable[str], tag: str) -> dict[str, ModuleType]:
    """The modules under names of their own, since this process holds others under theirs, which it keeps."""
    renamed = {name: f"{name.partition('.')[0]}{APART}{tag}{''.join(name.partition('.')[1:])}" for name in names}
    if all(new in sys.modules for new in renamed.values()):
        return {name: sys.modules[new] for name, new in renamed.items()}
    tops = {name.partition(".")[0] for name in names}
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in tops}
    try:
        with _executing(folder):
            found = {name: importlib.import_module(name) for name in names}
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            del sys.modules[name]
        sys.modules.update(before)
    for name, module in found.items():
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == name:
                value.__module__ = renamed[name]
        module.__name__ = renamed[name]
        sys.modules[renamed[name]] = module
        by_value(module)
    return found


class _executing:  # noqa: N801 (used as a function)
    """While it lasts, a folder is searched first, and no run begins: code that trains when it is imported would train again."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> None:
        importlib.invalidate_caches()
        sys.path.insert(0, str(self._folder))
        LOADING.append(self._folder)

    def __exit__(self, *_: Any) -> None:
        LOADING.pop()
        sys.path.remove(str(self._folder))


def refuse_while_loading() -> None:
    """Raises UserError where a run's code trains as soon as it is imported."""
    if LOADING:
        raise UserError(
            f"{LOADING[-1]}: the code of this run trains when it is imported, so its classes cannot be read; in the script put "
            "the call of train under if __name__ == '__main__':"
        )


def by_value(module: ModuleType) -> None:
    """Let worker processes have what a module defines: they cannot import it."""
    if module.__name__ in sys.modules and module.__name__ != "__main__":
        cloudpickle.register_pickle_by_value(module)


def taken_in(module: ModuleType) -> None:
    """Note which code a module of the user's was made of, and let worker processes have what it defines."""
    file = _file(module)
    if file is not None:
        vars(module)[SOURCE] = file.read_bytes()
    by_value(module)


def forget_changed(folder: str) -> None:
    """Let modules of a folder whose files have changed since be imported anew: what is kept must be what is used."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if SOURCE not in getattr(module, "__dict__", {}) or not file or not file.startswith(f"{folder}{os.sep}"):
            continue
        if not Path(file).is_file() or Path(file).read_bytes() != vars(module)[SOURCE]:
            del sys.modules[name]


def _live(name: str) -> ModuleType | None:
    """The module of that name that this process holds; the script that it runs stands under the name of its file."""
    main = sys.modules.get("__main__")
    file = _file(main) if main is not None else None
    return main if name not in sys.modules and file is not None and file.stem == name else sys.modules.get(name)


def _same(module: ModuleType | None, content: bytes) -> bool:
    """Whether a module that is loaded, if it is, is of this code."""
    file = _file(module) if module is not None else None
    if module is None or file is None:
        return module is None
    return vars(module).get(SOURCE) == content if SOURCE in vars(module) else file.is_file() and file.read_bytes() == content


def _file(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name).resolve() if name and name.endswith(".py") else None


def _place(module: str, file: Path) -> str:
    parts = module.split(".")
    return "/".join([*parts, "__init__.py"] if file.name == "__init__.py" else [*parts[:-1], f"{parts[-1]}.py"])


def _root(module: ModuleType, file: Path) -> Path:
    """The folder that a module was found in: above its package, for one in a package."""
    depth = module.__name__.count(".") + (file.name == "__init__.py")
    return file.parents[depth]


def _is_installed(module: ModuleType) -> bool:
    """Whether a module is mmjax's, Python's, or of an installed package."""
    if module.__name__.partition(".")[0] in {"mmjax", "mmjax_configs", *sys.builtin_module_names}:
        return True
    file = _file(module)
    if file is None:
        return module.__name__ != "__main__"
    return any(file.is_relative_to(folder) for folder in _installed_folders())


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_paths()[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
