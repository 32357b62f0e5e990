"""From the name of a config, or its file, to an experiment; and flags on top."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mmjax.core.draft import set_fields
from mmjax.core.errors import UserError, nearest
from mmjax.core.flags import pairs
from mmjax.train.experiment import Experiment
from mmjax.train.kept_code import forget_changed, taken_in

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_configs() -> dict[str, Path]:
    """Name -> file of the configs that come with the package."""
    found = importlib.util.find_spec("mmjax_configs")
    folders = list(found.submodule_search_locations or []) if found else []
    beside = PACKAGE.parent / "configs"  # a checkout that was not installed
    for folder in [*map(Path, folders), beside]:
        files = {p.stem: p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"} if folder.is_dir() else {}
        if files:
            return files
    return {}


def load_config(name: str) -> Experiment:
    """The experiment of a config file, or of a shipped config by its name.

    Raises:
      UserError: there is no such config, or it does not make an experiment.
    """
    shipped = shipped_configs()
    path = shipped.get(name) or Path(name)
    if path.is_dir() and name:
        raise UserError(f"config {name!r}: it is a folder; give a Python file, or one of {', '.join(shipped)}")
    if not path.is_file():
        raise UserError(f"config {name!r}: no such file, and not one of {', '.join(shipped)}{nearest(name, shipped)}")
    with _beside(path):
        module = _execute(path)
        if not hasattr(module, "experiment"):
            raise UserError(f"config {path}: it defines no experiment()")
        made = _calling(path, module.experiment)
    if not isinstance(made, Experiment):
        raise UserError(f"config {path}: experiment() returned {type(made).__name__}, not an Experiment")
    return made


def apply_flags(experiment: Experiment, words: Sequence[str]) -> Experiment:
    """`--a.b.c value ...` words on top of an experiment; see `core.draft.set_fields`.

    Raises:
      UserError: a word that is no flag, an unknown field, a value of the wrong type, a value that its class refuses.
    """
    return set_fields(experiment, pairs(words))


def from_words(words: list[str]) -> tuple[str, Experiment]:
    """The config that a command's words begin with (digits where there is none), taken out of them, with their flags on top.

    Returns:
      Its name, and the experiment.

    Raises:
      UserError: as `load_config` and `apply_flags`; a config that stands after the flags.
    """
    name = words.pop(0) if words and not words[0].startswith("-") else "digits"
    for flag, values in pairs(words):
        late = [
            value for value in values[1:] if value in shipped_configs() or (value.endswith(".py") and Path(value).is_file())
        ]
        if late:
            raise UserError(f"{late[0]} after --{flag}: a config goes before the flags, mmjax COMMAND {late[0]} --{flag} ...")
    return name, apply_flags(load_config(name), words)


def _execute(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mmjax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the config's own look their module up
    _calling(path, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """A config, and its `experiment()`, may import what lies beside it; what they import is noted."""
    here = str(path.resolve().parent)
    forget_changed(here)
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
    for name, found in list(sys.modules.items()):
        file = getattr(found, "__file__", None)
        if name == f"mmjax_config_{path.stem}" or (file and file.startswith(f"{here}{os.sep}") and "site-packages" not in file):
            taken_in(found)


def _calling(path: Path, fn: Any) -> Any:
    """Run the user's code; what is wrong with it becomes one line that names the file."""
    try:
        return fn()
    except UserError as error:
        raise UserError(f"config {path}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"config {path}: line {error.lineno or 1}: {error.msg}") from None
    except ImportError as error:
        raise UserError(f"config {path}: {error}") from None
    except TypeError as error:
        raise UserError(f"config {path}: {error}{_near_argument(error)}") from error
    except (Exception, SystemExit) as error:
        frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if frames[-1][0].is_relative_to(PACKAGE):
            raise  # a defect of ours
        line = [line for file, line in frames if file == path.resolve()] or [frames[-1][1]]
        raise UserError(f"config {path}: line {line[-1]}: {type(error).__name__}: {error}") from error


def _near_argument(error: TypeError) -> str:
    """For "ViT.__init__() got an unexpected keyword argument 'dept'": the field that was probably meant."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not found:
        return ""

    frame = error.__traceback__
    while frame is not None:
        for value in frame.tb_frame.f_globals.values():
            if isinstance(value, type) and value.__name__ == found.group(1) and dataclasses.is_dataclass(value):
                return nearest(found.group(2), [f.name for f in dataclasses.fields(value)])
        frame = frame.tb_next
    return ""
