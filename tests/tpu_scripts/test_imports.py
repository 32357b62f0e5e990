"""What a config imports from beside it: found without running it, and without mmjax."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tpu_scripts" / "imports.py"


@pytest.fixture
def find(tmp_path):
    """Writes files (name -> text) into a folder and gives (what mine.py needs, the notes), or a refusal's line."""

    def run(files: dict[str, str], *words: str, config: str = "mine.py", **variables: str):
        for name, text in files.items():
            path = tmp_path / "my folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        command = [sys.executable, "-S", SCRIPT, config and tmp_path / "my folder" / config, *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **variables})
        if done.returncode:
            assert (done.returncode, done.stdout) == (2, "")
            (line,) = done.stderr.splitlines()
            return line.replace(str(tmp_path / "my folder"), "HERE")
        found = done.stdout.split("\0")[:-1]
        folders, places = found[::2], found[1::2]
        assert all(Path(folder, place).is_file() for folder, place in zip(folders, places, strict=True))
        if config:
            assert (Path(folders[0]), places[0]) == ((tmp_path / "my folder").resolve(), config)
        return sorted(places[bool(config) :]), done.stderr.splitlines()

    return run


THING = {"thing.py": "", "other.py": ""}
PACKAGE = {"lib/__init__.py": "", "lib/a.py": "", "lib/deep/__init__.py": "", "lib/deep/b.py": ""}
FOLDER = {"plain/a.py": "", "plain/b.py": "", "plain/deep/c.py": ""}


@pytest.mark.parametrize(
    ("text", "files", "needed"),
    [
        ("import os, json, jax\nfrom mmjax.data import Data", THING, []),
        ("from thing import X", THING, ["thing.py"]),
        ("import thing as t, other", THING, ["other.py", "thing.py"]),
        ("from thing import *", THING, ["thing.py"]),
        ("from . import thing", THING, ["thing.py"]),
        ("from .thing import X", THING, ["thing.py"]),
        ("def experiment():\n    if True:\n        import thing", THING, ["thing.py"]),
        ("class A:\n    def f(self):\n        async def g():\n            from thing import x", THING, ["thing.py"]),
        ("try:\n    import thing\nexcept ImportError:\n    import other", THING, ["other.py", "thing.py"]),
        ("import importlib\nm = importlib.import_module('thing')", THING, ["thing.py"]),
        ("m = __import__('thing')", THING, ["thing.py"]),
        ("OBJECTIVE = 'thing:Mine'", THING, ["thing.py"]),
        ("# import thing\nX = 'import thing'\n\"\"\"import other\"\"\"", THING, []),
        ("import thing", {"thing.py": "import other", "other.py": "import mine, third", "third.py": ""},
         ["other.py", "thing.py", "third.py"]),
        ("import lib", PACKAGE, sorted(PACKAGE)),
        ("import lib.deep.b", PACKAGE, sorted(PACKAGE)),
        ("from lib.deep import b", PACKAGE, sorted(PACKAGE)),
        ("import lib", PACKAGE | {"lib/deep/b.py": "from ..a import y\nimport thing", "thing.py": ""},
         sorted([*PACKAGE, "thing.py"])),
        ("import lib", {"lib/__init__.py": "", "lib.py": ""}, ["lib/__init__.py"]),
        ("import plain.a", FOLDER, ["plain/a.py"]),
        ("from plain import a, b", FOLDER, ["plain/a.py", "plain/b.py"]),
        ("import plain", FOLDER, []),
        ("from plain.deep import c", FOLDER | {"plain/deep/c.py": "from .. import b"}, ["plain/b.py", "plain/deep/c.py"]),
        ("from plain.deep.c import x", FOLDER | {"plain/deep/c.py": "from ..a import x"}, ["plain/a.py", "plain/deep/c.py"]),
        ("import mmjax, thing", THING | {"mmjax/__init__.py": ""}, ["thing.py"]),
        ("import größe", {"größe.py": ""}, ["größe.py"]),
    ],
)  # fmt: skip
def test_what_is_beside_it(find, text, files, needed):
    assert find({"mine.py": text, **files}) == (needed, [])


def test_what_is_named_on_the_command_line(find):
    files = {"mine.py": "", **THING, **FOLDER}
    words = ["--tasks.a.objective", "thing:Mine", "--tasks.b.objective=plain.deep.c:Mine", "--steps", "3", "--at", "h:80"]
    assert find(files, *words) == (["plain/deep/c.py", "thing.py"], [])


@pytest.mark.parametrize(
    ("text", "files", "line"),
    [
        ("import fast", {"fast.cpython-311-x86_64-linux-gnu.so": ""}, "HERE/fast.cpython-311-x86_64-linux-gnu.so is compiled"),
        ("import fast", {"fast.pyc": ""}, "HERE/fast.pyc is compiled"),
        ("import lib", PACKAGE | {"lib/_fast.so": ""}, "HERE/lib/_fast.so is compiled for this machine and will not be copied"),
        ("from .. import x", {}, "HERE/mine.py line 1 imports from above HERE, which will not be copied"),
        ("\nfrom ..x import y", {}, "HERE/mine.py line 2 imports from above HERE"),
        ("import lib.a", PACKAGE | {"lib/a.py": "from ... import x"}, "HERE/lib/a.py line 1 imports from above"),
        ("x = = 1", {}, "HERE/mine.py line 1: invalid syntax (as Python 3."),
        ("import thing", {"thing.py": "\n\ndef"}, "HERE/thing.py line 3: invalid syntax"),
        ("import thing", {"thing.py": "x = '\0'"}, "HERE/thing.py"),
    ],
)
def test_what_cannot_be_copied_is_named(find, text, files, line):
    assert find({"mine.py": text, **files}).startswith(line)


def test_a_module_of_a_package_that_may_not_be_needed_may_be_broken(find):
    files = {**PACKAGE, "lib/template.py": "x = = 1", "lib/above.py": "from .... import x"}
    assert find({"mine.py": "import lib.a", **files}) == (sorted(files), [])


def test_what_is_left_here_is_said(find, tmp_path):
    own = tmp_path / "elsewhere"
    own.mkdir()
    (own / "ours.py").write_text("")
    files = {"labels.csv": "", "photos/a.png": "", "lib/__init__.py": "", "lib/words.txt": "", "lib/__pycache__/a.pyc": ""}
    text = "import lib, ours, absent\nA, B, C = 'labels.csv', 'photos', 'nothing.csv'\nD = '/etc', '.', 'mine.py'"
    assert find({"mine.py": text, **files}, PYTHONPATH=str(own)) == (
        ["lib/__init__.py"],
        [
            "mine.py names labels.csv, photos: here, and not copied; keep data in the bucket or on the machines",
            "of packages only Python files are copied, not lib/words.txt",
            f"mine.py imports ours ({own / 'ours.py'}): not beside it, and not copied; install it on the machines",
        ],
    )


def test_links_are_followed_and_circles_end(find, tmp_path):
    there = tmp_path / "my folder"
    find({"mine.py": "", "lib/__init__.py": "", "real/__init__.py": "", "real/a.py": ""})
    (there / "lib" / "inner").symlink_to("../real")
    (there / "lib" / "again").symlink_to("../lib")
    (there / "thing.py").symlink_to("real/a.py")
    needed = ["lib/__init__.py", "lib/inner/__init__.py", "lib/inner/a.py", "thing.py"]
    assert find({"mine.py": "import lib, thing"}) == (needed, [])
    (tmp_path / "link.py").symlink_to("my folder/mine.py")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "link.py"], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:2] == [str(there.resolve()), "mine.py"]


def test_what_is_in_the_current_folder_comes_after_what_is_beside_it_and_what_is_installed(find, tmp_path):
    files = {
        "mine.py": "import thing, lib, jax",
        "thing.py": "",
        "../thing.py": "import other",
        "../lib/__init__.py": "import third",
    }
    files |= {"third.py": "", "../third.py": "", "../jax/__init__.py": "", "../fast.so": ""}
    installed = tmp_path / "site-packages" / "jax"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert find(files, PYTHONPATH=str(installed.parent)) == (["lib/__init__.py", "thing.py", "third.py"], [])


def test_a_shipped_config_needs_what_the_words_name(find):
    files = {"../ours/__init__.py": "", "../ours/a.py": "import thing", "../thing.py": "", "../labels.csv": ""}
    words = ["--tasks.a.objective", "ours.a:Mine", "--workdir", "labels.csv"]
    assert find(files, *words, config="") == (["ours/__init__.py", "ours/a.py", "thing.py"], [])
    assert find({"../ours/fast.so": ""}, *words, config="").endswith(
        "ours/fast.so is compiled for this machine and will not be copied"
    )


def test_a_chain_of_any_length(find):
    chain = {f"m{i}.py": f"import m{i + 1}" for i in range(1500)}
    assert len(find({"mine.py": "import m0", **chain})[0]) == 1500
