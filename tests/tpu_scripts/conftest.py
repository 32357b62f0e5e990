"""A folder of tools in which gcloud, kubectl, sbatch and the like only stand in for the real ones; nothing else is on PATH."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# A worker's python3, whose `uv venv` makes the folder, and mmjax, whose starts do what MMJAX says: a status, or "forever".
PYTHON = """#!/usr/bin/env bash
[[ $* == "-m uv venv "* ]] || exit 0
bin=${@: -1}/bin
mkdir -p "$bin" && touch "$bin/activate" && ln -s "$STAND_IN/worker/"* "$bin" && ln -s python3 "$bin/python"
"""
MMJAX = r"""#!/usr/bin/env bash
[[ $1 == train ]] || exit 0
starts=$STAND_IN/starts.${HOME##*/}
printf '%s\0' "$PWD" "$GREETING" "$@" >>"$starts"; echo >>"$starts"; echo >>"$starts.count"
read -ra plan <<<"${MMJAX:-0}"
mapfile -t before <"$starts.count"; next=${plan[${#before[@]} - 1]:-${plan[-1]}}
echo mmjax trains
[[ $next == forever ]] || exit "$next"
trap 'exit 0' TERM  # as mmjax, which saves
while [[ -d $HOME/mmjax_run ]]; do sleep 0.05; done
"""
SCRIPTS = HERE.parents[1] / "tpu_scripts"
TOOLS = (
    "bash base64 basename cat dirname env git grep gzip head hostname ln mkdir mktemp nohup paste python3 rm sed seq setsid"
    " sleep sort tail tar tee touch tr"
)


class Cloud:
    """Runs a script against the stand-ins and says what they were asked."""

    def __init__(self, root: Path):
        self.root, self.runs = root, 0
        self.folder = root  # where scripts run
        self.bin, worker = root / "bin", root / "worker"
        for folder in (self.bin, worker, root / "home"):
            folder.mkdir()
        for tool in TOOLS.split():
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        for name in ("gcloud", "kubectl", "sbatch", "squeue", "scancel", "scontrol", "sacct"):
            self.stand_in(self.bin / name)
        for name, text in (("python3", PYTHON), ("mmjax", MMJAX)):
            (worker / name).write_text(text)
            (worker / name).chmod(0o755)
        (root / "homes").mkdir()
        (root / "memory").write_text('{"seen": {}, "machines": {}, "requests": {}}')
        checkout = root / "checkout"
        (checkout / "mmjax").mkdir(parents=True)
        (checkout / "pyproject.toml").write_text("[project]\n")
        self.variables = {
            "PATH": str(self.bin), "HOME": str(root / "home"), "STAND_IN": str(root), "BACKOFF": "0", "POLL": "0",
            "PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-16", "SOURCE": str(checkout), "BUCKET": "b",
        }  # fmt: skip

    def stand_in(self, path: Path) -> None:
        path.write_text(f"#!{sys.executable} -IS\n" + (HERE / "stand_in.py").read_text())
        path.chmod(0o755)

    def run(self, command: str, status: int = 0, rules=(), **variables: str) -> subprocess.CompletedProcess:
        """The script with its words; fails unless it ends with `status`. A variable that is None is unset."""
        name, *words = shlex.split(command)
        self.runs += 1
        given = {**self.variables, "RULES": json.dumps(list(rules)), "RUN": str(self.runs), **variables}
        environment = {name: value for name, value in given.items() if value is not None}
        done = subprocess.run(
            [SCRIPTS / name, *words],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def write(self, files: dict[str, str]) -> None:
        """Files (name -> text) where scripts run."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    @property
    def calls(self) -> list[list[str]]:
        """Every call of a tool, as its words."""
        path = self.root / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def called(self, words: str) -> list[list[str]]:
        return [call for call in self.calls if words in " ".join(call)]

    def verbs(self) -> list[str]:
        """What was asked of gcloud, looks at a state left out: 'create', 'ssh', ..."""
        return [call[4] for call in self.calls if call[:3] == ["gcloud", "compute", "tpus"] and call[4] != "describe"]

    def starts(self, worker: str = "mmjax.0") -> list[dict]:
        """The trainings that one worker began."""
        path = self.root / f"starts.{worker}"
        found = path.read_text().split("\0\n")[:-1] if path.exists() else []
        return [
            {"folder": folder, "greeting": greeting, "words": words}
            for folder, greeting, *words in (start.split("\0") for start in found)
        ]


@pytest.fixture
def cloud(tmp_path):
    yield Cloud(tmp_path)
    shutil.rmtree(tmp_path / "homes", ignore_errors=True)  # ends what still trains there
