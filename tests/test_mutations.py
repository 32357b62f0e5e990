"""The table of mutations fits the code as it is, and `mutations.py` tells what is caught from what survives."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def mutations():
    """The script as a module; the table is found beside it, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        spec = importlib.util.spec_from_file_location("mutations", HERE / "mutations.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "mutations", module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A package of one line, and the test of it, for which only the plugin is loaded that the script has a word for."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    root = tmp_path / "root"
    for file, text in {
        "pyproject.toml": "[tool.pytest.ini_options]\nfilterwarnings = ['error']\n",
        "mmjax/__init__.py": "def double(x):\n    return 2 * x\n",
        "configs/one.py": "N = 1\n",
        "tests/test_double.py": "from mmjax import double\nfrom mmjax_configs.one import N\n\n\n"
        "def test_zero():\n    assert double(0) == 0\n\n\ndef test_one():\n    assert double(N) == 2\n",
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return root


def mistake(module, name, old, new):
    return module.Mutation(name, "it", "mmjax/__init__.py", "tests/test_d*.py", old, new)


def test_every_text_to_replace_stands_once(mutations):
    names = [mutation.name for mutation in mutations.MUTATIONS]
    assert mutations.check(mutations.ROOT, mutations.MUTATIONS) == []
    assert len(set(names)) == len(names) >= 30
    assert all(mutation.old != mutation.new for mutation in mutations.MUTATIONS)


def test_every_room_has_some(mutations):
    rooms = {path.parent.name for path in (mutations.ROOT / "mmjax").glob("*/__init__.py")} | {"tpu_scripts"}
    parts = {part for mutation in mutations.MUTATIONS for part in Path(mutation.file).parts}
    assert rooms - parts == set()


def test_what_is_caught_and_what_survives(mutations, checkout, tmp_path, capsys):
    page, code = tmp_path / "page.md", (checkout / "mmjax/__init__.py").read_text()
    table = [mistake(mutations, "squared", "2 * x", "x * x"), mistake(mutations, "added", "2 * x", "x + x")]
    status = mutations.main(["--root", str(checkout), "--write", str(page), "--column", "before"], table)
    said = capsys.readouterr().out
    assert status == 1 and "1 of 2 caught: not added" in said
    assert [line.split(" | ")[3] for line in page.read_text().splitlines()[-2:]] == [
        "tests/test_double.py::test_one",
        "**survives**",
    ]
    assert (checkout / "mmjax/__init__.py").read_text() == code and sorted(p.name for p in checkout.iterdir()) == [
        "configs",
        "mmjax",
        "pyproject.toml",
        "tests",
    ]


def test_a_mutation_that_cannot_be_made_runs_nothing(mutations, checkout, capsys):
    table = [mistake(mutations, "gone", "3 * x", "x"), mistake(mutations, "twice", "double", "x")]
    table.append(mistake(mutations, "untested", "2 * x", "x")._replace(tests="tests/test_e*.py -k x"))
    (checkout / "mmjax/__init__.py").write_text("def double(x):\n    return 2 * x  # double\n")
    assert mutations.main(["--root", str(checkout)], table) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and said[-1] == "3 mutations, 3 wrong"
    assert said[0] == "gone: '3 * x' stands 0 times in mmjax/__init__.py, not once"
    assert said[2] == "untested: no file matches 'tests/test_e*.py -k x'"


def test_a_run_that_shows_nothing_is_not_a_catch(mutations, checkout):
    broken = mistake(mutations, "broken", "2 * x", "2 *")  # no test is even collected
    outcome = mutations.run(checkout, broken, broken.tests, 60.0)
    assert outcome.caught_by == "" and "pytest ended with" in outcome.broken


def test_a_test_that_fails_anyway_catches_nothing(mutations, checkout, tmp_path, capsys):
    (checkout / "tests/test_a.py").write_text("def test_never():\n    assert False\n")
    squared = mistake(mutations, "squared", "2 * x", "x * x")
    outcome = mutations.run(mutations.copy(checkout, tmp_path), squared, "tests/test_*.py", 60.0)
    assert outcome.caught_by == "tests/test_double.py::test_one"
    assert "test_a.py::test_never fails without a mutation as well: left out" in capsys.readouterr().out


def test_a_column_is_filled_and_the_other_kept(mutations):
    table = [mistake(mutations, name, "a", "b") for name in ("one", "two", "new")]
    page = (
        mutations.merged("# Mine\n\ntext\n", table[:2], {"one": mutations.Outcome("t.py::f[a|b]", 1.6)}, "before") + "\nend\n"
    )
    page = mutations.merged(page, table, {"one": mutations.Outcome("t.py::g", 3.2), "new": mutations.Outcome("", 1)}, "after")
    lines = page.splitlines()
    assert lines[:3] == ["# Mine", "", "text"] and lines[-1] == "end"
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert rows == [
        r"| one | mmjax/__init__.py | it | t.py::f[a\|b] | 2 | t.py::g | 3 |",
        "| two | mmjax/__init__.py | it |  |  |  |  |",
        "| new | mmjax/__init__.py | it |  |  | **survives** | 1 |",
    ]
    assert mutations.merged(page, table, {}, "after") == page
