"""Put small mistakes into a copy of the code, one at a time, and see that a test fails: what the suite must not lose.

    python tests/mutations.py                                       # all of `mutation_table.py`, half an hour on two cores
    python tests/mutations.py --only gelu_kind rotary_sign
    python tests/mutations.py --check                               # only that each text to replace stands once in its file
    python tests/mutations.py --write docs/mutations.md --column after

Exit status 1 where a text to replace is not found exactly once, or where a mistake survives its tests.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mutation_table import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "runs")
COLUMNS = ("before", "after")
HEAD = ["mutation", "file", "what it breaks", *(title for column in COLUMNS for title in (f"{column}: caught by", "seconds"))]
SURVIVED = "**survives**"
PREFACE = """# Mutations

Small mistakes put into the code one at a time, and the first test that fails for each. `before` is the suite as it was, `after`
as it is; all that was caught has to stay caught. A column is filled by
`python tests/mutations.py --write docs/mutations.md --column after`.
"""


class Outcome(NamedTuple):
    """What became of a mutation: `caught_by`, the first test that failed, "" for none; `broken`, why nothing was learnt."""

    caught_by: str
    seconds: float
    broken: str = ""


def check(root: Path, mutations: Sequence[Mutation]) -> list[str]:
    """One line for each mutation that cannot be made: its text is not found exactly once, or no file matches its tests."""
    wrong = []
    for mutation in mutations:
        path = root / mutation.file
        times = path.read_text().count(mutation.old) if path.is_file() else 0
        if times != 1:
            wrong.append(f"{mutation.name}: {mutation.old!r} stands {times} times in {mutation.file}, not once")
        if not tests_of(root, mutation.tests):
            wrong.append(f"{mutation.name}: no file matches {mutation.tests!r}")
    return wrong


def tests_of(root: Path, words: str) -> list[str]:
    """Words for pytest, with globs replaced by what they match; [] where no path is left."""
    found, paths, options = [], 0, iter(shlex.split(words))
    for word in options:
        if word.startswith("-"):
            found += [word, next(options)]
            continue
        matches = sorted(str(path.relative_to(root)) for path in root.glob(word))
        found, paths = found + matches, paths + len(matches)
    return found if paths else []


def copy(root: Path, folder: Path) -> Path:
    """A copy of a checkout, where `mmjax_configs` is a package too."""
    made = folder / "checkout"
    shutil.copytree(root, made, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    (folder / "path").mkdir()
    (folder / "path" / "mmjax_configs").symlink_to(made / "configs")
    return made


def run(made: Path, mutation: Mutation, tests: str, timeout: float) -> Outcome:
    """Make one mutation in the copy, run its tests there until one fails, and undo it.

    A test that fails without the mutation as well has caught nothing: it is left out, and the rest are run again.
    """
    path = made / mutation.file
    text = path.read_text()
    words, seconds = tests_of(made, tests), 0.0
    while True:
        path.write_text(text.replace(mutation.old, mutation.new))
        try:
            outcome = tested(made, words, timeout)
        finally:
            path.write_text(text)
        outcome = outcome._replace(seconds=seconds + outcome.seconds)
        if not outcome.caught_by or passes(made, outcome.caught_by, timeout):
            return outcome
        print(f"{outcome.caught_by} fails without a mutation as well: left out", flush=True)
        words, seconds = [*words, "--deselect", outcome.caught_by], outcome.seconds


@functools.cache
def passes(made: Path, test: str, timeout: float) -> bool:
    """Whether a test passes on the code as it is."""
    outcome = tested(made, [test], timeout)
    return not outcome.caught_by and not outcome.broken


def tested(made: Path, words: list[str], timeout: float) -> Outcome:
    """Run pytest in the copy, on the copy's own code."""
    python_path = os.pathsep.join([str(made), str(made.parent / "path")])
    # No bytecode: the files change and change back within the resolution of their times.
    environment = {**os.environ, "PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-rfE", "-p", "no:cacheprovider", *words]
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Outcome("", timeout, f"no end within {timeout:g} s")
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return Outcome("", seconds)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return Outcome(failed[0], seconds)
    last = (done.stdout + done.stderr).strip().splitlines()[-15:]
    return Outcome("", seconds, f"pytest ended with {done.returncode}:\n  " + "\n  ".join(last))


def merged(text: str, mutations: Sequence[Mutation], outcomes: dict[str, Outcome], column: str) -> str:
    """The page with this column's cells of these outcomes; other cells, and what stands around the table, stay."""
    lines = (text or PREFACE).rstrip("\n").split("\n")
    at = next((i for i, line in enumerate(lines) if line.startswith("| mutation |")), len(lines))
    end = next((i for i in range(at, len(lines)) if not lines[i].startswith("|")), len(lines))
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[at:end]]
    held = {row[0]: row[3:] for row in rows[2:]}
    first = 2 * COLUMNS.index(column)
    table = [HEAD, ["---"] * len(HEAD)]
    for mutation in mutations:
        cells = held.get(mutation.name, [""] * 2 * len(COLUMNS))
        if mutation.name in outcomes:
            outcome = outcomes[mutation.name]
            cells[first : first + 2] = [outcome.caught_by or SURVIVED, f"{outcome.seconds:.0f}"]
        table.append([mutation.name, mutation.file, mutation.breaks, *cells])
    written = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
    before = [*lines[:at], ""] if at == len(lines) else lines[:at]
    return "\n".join([*before, *written, *lines[end:]]) + "\n"


def arguments(words: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these mutations alone")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="run these instead of each mutation's own")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout whose code and tests are taken (this one)")
    parser.add_argument("--check", action="store_true", help="only that each text to replace stands once; runs nothing")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the outcomes into the table of a page")
    parser.add_argument("--column", choices=COLUMNS, default="after", help="which column of it (after)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one mutation's tests (600)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None, mutations: Sequence[Mutation] = MUTATIONS) -> int:
    given = arguments(words, [mutation.name for mutation in mutations])
    chosen = [mutation for mutation in mutations if not given.only or mutation.name in given.only]
    wrong = check(given.root.resolve(), chosen)
    print("\n".join([*wrong, f"{len(chosen)} mutations, {len(wrong)} wrong"]))
    if wrong or given.check:
        return int(bool(wrong))
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutations.") as folder:
        made = copy(given.root.resolve(), Path(folder).resolve())
        for mutation in chosen:
            tests = shlex.join(given.tests) if given.tests else mutation.tests
            outcome = run(made, mutation, tests, given.timeout)
            said = outcome.broken or outcome.caught_by or "SURVIVES: every test passes"
            print(f"{mutation.name:22} {outcome.seconds:5.0f} s  {said}", flush=True)
            if not outcome.caught_by:
                failed.append(mutation.name)
            if given.write and not outcome.broken:
                # After each one: what was learnt is kept if the rest is interrupted.
                text = given.write.read_text() if given.write.exists() else ""
                given.write.write_text(merged(text, mutations, {mutation.name: outcome}, given.column))
    print(f"{len(chosen) - len(failed)} of {len(chosen)} caught{': not ' * bool(failed)}{', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
