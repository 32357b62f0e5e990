"""The rungs of the house: imports go down only, flax stays in its rooms, files stay small, tables name what is there."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmjax"
RUNGS = {
    "core": 0,
    "parallel": 1,
    "data": 1,
    "objectives": 1,
    "nn": 2,
    "models": 3,
    "adapt": 3,
    "evaluate": 4,
    "generate": 4,
    "train": 5,
    "convert": 5,
    "plan": 6,
    "predict": 6,
    "cli": 7,
}
FLAX_ROOMS = {"nn", "models", "adapt"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only_and_flax_stays_in_its_rooms(path):
    if path == PACKAGE / "__init__.py":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "flax":
            assert room(path) in FLAX_ROOMS, f"{path} imports flax"
        if parts[0] == "mmjax" and len(parts) > 1:
            assert RUNGS[parts[1]] <= RUNGS[room(path)], f"{path} imports upward: {name}"


@pytest.mark.parametrize(("room", "above"), [("files", ("tables", "sources")), ("tables", ("sources",))])
def test_files_of_data_know_no_tables_and_tables_no_sources(room, above):
    for path in (PACKAGE / "data" / room).glob("*.py"):
        for name in imports(path):
            assert not name.startswith(tuple(f"mmjax.data.{other}" for other in above)), f"{path} imports upward: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_under_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_rooms_do_not_import_each_other_in_a_circle():
    edges = {}
    for path in FILES:
        if path != PACKAGE / "__init__.py":
            edges.setdefault(room(path), set()).update(
                name.split(".")[1] for name in imports(path) if name.startswith("mmjax.") and name.split(".")[1] != room(path)
            )
    seen: dict[str, int] = {}

    def visit(name, trail):
        assert name not in trail, f"circle: {' -> '.join([*trail, name])}"
        if name not in seen:
            for below in edges.get(name, ()):
                visit(below, [*trail, name])
            seen[name] = 1

    for name in edges:
        visit(name, [])


def test_there_is_no_drawer_for_everything():
    assert not [p for p in PACKAGE.rglob("*") if p.stem in ("utils", "common", "helpers", "misc")]


def test_top_level_holds_what_the_design_names():
    allowed = {
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "mmjax",
        "configs",
        "tests",
        "benchmarks",
        "tpu_scripts",
        "docs",
        "examples",
    }
    there = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")}
    assert there - allowed <= {"runs", "build", "dist"}


def test_the_wheel_carries_every_package():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in FILES}
    assert listed == folders | {"mmjax_configs"}
