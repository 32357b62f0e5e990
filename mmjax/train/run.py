"""The run folder: config, environment, tokenizer, metrics and checkpoints; enough to go on with nothing else at hand."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

from mmjax.core.config import differences, from_json, to_json
from mmjax.core.errors import UserError
from mmjax.data import Tokenizer
from mmjax.parallel.multihost import is_main, told
from mmjax.train.bucket import CHECKPOINTS, Bucket, in_bucket
from mmjax.train.experiment import Experiment

# What may change when a run goes on: none of it changes what was already computed.
FREE = ("steps", "evaluate", "evaluate_every", "checkpoint", "log", "mesh", "test_data", "init_from", "init_fresh")
READING = (".workers", ".threads", ".prefetch", ".cache_mb")  # of data: how it is read changes no batch
GIT_TIMEOUT = 10.0  # seconds
PACKAGES = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


class Run:
    """A run folder by its path, or by its address in a bucket.

    Attributes:
      name: the path or address as it was given.
      path: the folder; of a run in a bucket a copy on this machine, in which `checkpoints` is not.
    """

    def __init__(self, path: str | Path):
        self.name = str(path)
        self._bucket = Bucket(self.name) if in_bucket(path) else None
        self.path = Path(path) if self._bucket is None else self._bucket.copy

    @property
    def checkpoints(self) -> Path:
        home: Any = self.path if self._bucket is None else self._bucket.home
        return home / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def has_checkpoint(self) -> bool:
        """Whether any whole checkpoint is here."""
        return self.checkpoints.is_dir() and any(child.name.isdigit() for child in self.checkpoints.iterdir())

    def fetch(self) -> None:
        """See what another process has sent to the bucket."""
        if self._bucket is not None:
            self._bucket.fetch()

    def send(self) -> None:
        """Bring the bucket up to date; process 0 alone does."""
        if self._bucket is not None and is_main():
            self._bucket.send()

    def open(self, experiment: Experiment) -> None:
        """Make the folder for an experiment, or check that it is this experiment's.

        Raises:
          UserError: it holds a checkpoint of another experiment; the fields that differ are named.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir {self.name}: a file is there, not a folder")
        if self.has_checkpoint():
            different = differing(self.experiment(), experiment)
            if different:
                shown = "; ".join(different[:5]) + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
                raise UserError(
                    f"--workdir {self.name} holds a checkpoint of another experiment: {shown}. Use another --workdir"
                )
        if is_main():
            self.path.mkdir(parents=True, exist_ok=True)
        self.write_json("config.json", to_json(experiment))

    def experiment(self) -> Experiment:
        """The experiment of this run, read back from its config.json alone.

        Raises:
          UserError: this is no run folder, or its config cannot be read.
        """
        config = self.path / "config.json"
        if not config.is_file():
            raise UserError(f"{self.name} is not a run: it has no config.json")
        try:
            data = json.loads(config.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{config}: not JSON ({error})") from None
        experiment = from_json(data)
        if not isinstance(experiment, Experiment):
            raise UserError(f"{config}: holds no experiment")
        return experiment

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that was kept here, if any."""
        folder = self.path / "tokenizer"
        return Tokenizer.load(folder) if folder.is_dir() else None

    def keep_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Write the tokenizer beside, then rename, so that it is never half there; None: a run without one."""
        folder, beside = self.path / "tokenizer", self.path / "tokenizer.new"
        if tokenizer is not None:
            tokenizer.save(beside)
        shutil.rmtree(folder, ignore_errors=True)  # a folder that is not empty cannot be replaced
        if tokenizer is not None:
            os.replace(beside, folder)
        self.send()

    def identity(self) -> str:
        """A name that no other run has, not even a later one in the same folder; made by process 0 when first asked for."""
        kept = self.path / "identity"
        if is_main() and not kept.exists():
            kept.write_text(uuid.uuid4().hex)
        return told("identity", kept.read_text() if is_main() else None)

    def write_json(self, name: str, data: Any) -> None:
        """A JSON file, replaced whole or not at all, by process 0 alone."""
        if not is_main():
            return
        beside = self.path / f"{name}.new"
        beside.write_text(json.dumps(data, indent=1) + "\n")
        os.replace(beside, self.path / name)
        self.send()


def differing(old: Experiment, new: Experiment) -> list[str]:
    """ "field: old -> new" for each field that a run may not change when it goes on."""
    return [line for line in differences(old, new, FREE) if not line.split(": ")[0].endswith(READING)]


def environment() -> dict[str, Any]:
    """Versions of what computes, and the git revision of mmjax where it runs from a checkout (None where it cannot be told)."""
    return {"packages": {name: _version(name) for name in PACKAGES}, "git": _revision(Path(__file__).resolve())}


def _revision(file: Path) -> str | None:
    """The commit that is checked out around mmjax's own `file`; None whatever is the matter with git, which no run needs."""
    where = ["git", "-C", str(file.parent)]
    try:
        # Installed in a virtual environment inside the user's own repository, HEAD would be the user's commit.
        _said([*where, "ls-files", "--error-unmatch", file.name])
        return _said([*where, "rev-parse", "HEAD"]) or None
    except (OSError, subprocess.SubprocessError, ValueError):  # not there, not allowed, too slow, no repository, no text
        return None


def _said(words: list[str]) -> str:
    found = subprocess.run(
        words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=GIT_TIMEOUT
    )
    return found.stdout.decode().strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
