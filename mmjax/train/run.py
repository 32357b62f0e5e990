"""The run folder: config, code, environment, tokenizer, metrics and checkpoints; enough to go on with nothing else at hand."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmjax.core.config import differences, from_json, rooted, to_json
from mmjax.core.errors import UserError
from mmjax.core.files import write_whole
from mmjax.core.strict_json import pages
from mmjax.data import Tokenizer
from mmjax.parallel.multihost import is_main, told
from mmjax.train import kept_code
from mmjax.train.begun import as_begun, began_with, heedless, in_stored_order
from mmjax.train.bucket import CHECKPOINTS, Bucket, in_bucket
from mmjax.train.experiment import Experiment
from mmjax.train.lock import locked
from mmjax.train.reading import names_in, numbered, read_json, read_text

# What may change when a run goes on: none of it changes what was already computed.
FREE = (
    "steps",
    "evaluate",
    "evaluate_every",
    "checkpoint",
    "log",
    "hooks",
    "mesh",
    "test_data",
    "init_from",
    "init_fresh",
    "init_layers",
    "init_parts",
)
READING = (".workers", ".threads", ".prefetch", ".cache_mb")  # of data: how it is read changes no batch
GIT_TIMEOUT = 10.0  # seconds
PACKAGES = (
    "mmjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "numpy",
    "pillow",
    "simplejpeg",
    "soundfile",
    "av",
    "soxr",
)
# Of config.json; raise it with every change of what its fields mean, and say in `_config` how older ones are read.
FORMAT = 3
ORDERED = 2  # the first format whose data say in which order they are read
MINDFUL = 3  # the first format whose `Flip` says which words hold it back; before, none did
CLASSES = "classes.json"  # the names of the classes of each head
FINISHED = "finished.json"  # what `finish` writes
AVERAGED = "average.json"  # of a run that `mmjax convert average` has made
OWN = ("_format", "_folder")  # what config.json holds beside the experiment


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
        return bool(self.saved_steps())

    def saved_steps(self) -> list[int]:
        """Steps that have a checkpoint, in order. Raises `UnreachableError` where that cannot be told."""
        return sorted(int(name) for name in names_in(self.checkpoints) if name.isdigit())

    def fetch(self) -> None:
        """See what another process has sent to the bucket."""
        if self._bucket is not None:
            self._bucket.fetch()

    def send(self) -> None:
        """Bring the bucket up to date; process 0 alone does. Raises UserError where another process writes this run."""
        if self._bucket is not None and is_main():
            self._bucket.send()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While it lasts, this run is written by this process (and its peers) and by no other.

        Raises:
          UserError: another process is training in it.
        """
        if not is_main():
            yield
        elif self._bucket is not None:
            with self._bucket.writing():
                yield
        else:
            with locked(self.path, self.name):
                yield

    def continued(self, experiment: Experiment) -> Experiment:
        """The experiment with the batches that this run has begun with, see `began_with`. On every process alike; the others as
        process 0 tells them."""
        known = began_with(self._config()[0], experiment) if is_main() and self.has_checkpoint() else {}
        return as_begun(experiment, told("what batches were", known))

    def check(self, experiment: Experiment) -> None:
        """Whether this folder may hold an experiment: nothing, or an earlier part of the same.

        Raises:
          UserError: it holds a checkpoint of another experiment; the fields that differ are named. Or one of more steps.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir {self.name}: a file is there, not a folder")
        steps = self.saved_steps()
        if read_text(self.path / AVERAGED) is not None:
            raise UserError(
                f"--workdir {self.name}: its parameters are a mean of other runs' ({AVERAGED}), which no steps have led to; to "
                "go on from them use another --workdir and --init_from"
            )
        if not steps:
            self._check_unlost()
            return
        kept, folder = self._config()
        different = differing(kept, experiment)
        if different and differing(rooted(kept, folder), rooted(experiment, Path.cwd())):
            shown = "; ".join(different[:5]) + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
            raise UserError(f"--workdir {self.name} holds a checkpoint of another experiment: {shown}. Use another --workdir")
        if steps[-1] > experiment.steps:
            raise UserError(
                f"--workdir {self.name}: the run is at step {steps[-1]} and steps={experiment.steps} are asked for; ask for as "
                "many or more, or use another --workdir"
            )

    def _check_unlost(self) -> None:
        """Raises UserError where checkpoints have been here: a start would undo what is left of the run."""
        if self._bucket is None and self.checkpoints.is_file():
            raise UserError(f"--workdir {self.name}: {CHECKPOINTS} is a file there, not a folder; use another --workdir")
        if read_text(self.path / FINISHED) is not None:
            raise UserError(
                f"--workdir {self.name}: {FINISHED} says that the run has come to its end, and it has no checkpoint; bring its "
                f"folder {CHECKPOINTS} back, or use another --workdir"
            )

    def open(self, experiment: Experiment, say: Any = None) -> None:
        """Write down what the experiment is, and keep its code. `check` it before.

        Args:
          say: called with a line where the code has changed since the run began.

        Raises:
          UserError: a class of the experiment that a run could not find again.
        """
        code, lost = kept_code.collect(experiment)
        self.path.mkdir(parents=True, exist_ok=True)
        before, now = kept_code.kept(self.path), kept_code.read(code)
        if before and before != now and self.has_checkpoint():
            place = self._keep_old_code()
            changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            if say is not None:
                say(f"the code has changed since this run began: {', '.join(changed)}; what it was is in {place}")
        for line in lost if say is not None else ():
            say(line)
        kept_code.write(self.path, now)
        (self.path / FINISHED).unlink(missing_ok=True)  # until it is again
        self.write_config(experiment)

    def write_config(self, experiment: Experiment) -> None:
        """config.json: the experiment, and the folder that its relative paths are below."""
        self.write_json("config.json", {"_format": FORMAT, "_folder": str(Path.cwd()), **to_json(experiment)})

    def experiment(self) -> Experiment:
        """The experiment of this run, read back from its folder alone. A relative path in it that is still there below the
        folder where the run was started is absolute.

        Raises:
          UserError: this is no run folder, or its config cannot be read.
        """
        experiment, folder = self._config(kept_code.finder(self.path))
        return rooted(experiment, folder)

    def _config(self, find: Any = None) -> tuple[Experiment, Path]:
        """The experiment as it was written, with the classes that this process knows or those that `find` finds; and where."""
        config = self.path / "config.json"
        data = read_json(config)
        if data is None:
            raise UserError(f"{self.name} is not a run: it has no config.json")
        about = {name: data.pop(name, None) for name in OWN} if isinstance(data, dict) else {}
        if isinstance(about.get("_format"), int) and about["_format"] > FORMAT:
            raise UserError(f"{config} has format {about['_format']}, newer than this mmjax reads ({FORMAT}): upgrade mmjax")
        try:
            experiment = from_json(data, "config", find or kept_code.live_first(self.path))
        except UserError as error:
            raise UserError(f"{config}: {error}") from error
        if not isinstance(experiment, Experiment):
            raise UserError(f"{config}: holds no experiment")
        if about.get("_format") is None or about["_format"] < ORDERED:
            experiment = in_stored_order(experiment, experiment.data)
        if about.get("_format") is None or about["_format"] < MINDFUL:
            experiment = heedless(experiment, experiment.data)
        return experiment, Path(about.get("_folder") or Path.cwd())

    def _keep_old_code(self) -> Path:
        place = numbered(self.path / kept_code.FOLDER)
        os.replace(self.path / kept_code.FOLDER, place)
        return place

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that was kept here, if any."""
        folder = self.path / "tokenizer"
        return Tokenizer.load(folder) if names_in(folder) else None

    def tokenizers(self) -> dict[str, Tokenizer]:
        """All that were kept here, by name; "" is that of texts which name no other."""
        folder, own = self.path / "tokenizers", self.tokenizer()
        found = {name: Tokenizer.load(folder / name) for name in sorted(names_in(folder))}
        return found if own is None else {"": own, **found}

    def keep_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer of texts which name no other."""
        self._keep("tokenizer", {"": tokenizer})
        self.send()

    def keep_tokenizers(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Keep these and no others, by name; {}: a run without one."""
        self._keep("tokenizer", {"": tokenizers[""]} if "" in tokenizers else {})
        self._keep("tokenizers", {name: tokenizer for name, tokenizer in tokenizers.items() if name})
        self.send()

    def _keep(self, folder: str, tokenizers: Mapping[str, Tokenizer]) -> None:
        """Write them beside, then rename, so that none is ever half there."""
        place, beside = self.path / folder, self.path / f"{folder}.new"
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed here
        for name, tokenizer in tokenizers.items():
            tokenizer.save(beside / name if name else beside)
        shutil.rmtree(place, ignore_errors=True)  # a folder that is not empty cannot be replaced
        if tokenizers:
            os.replace(beside, place)

    def classes(self) -> dict[str, tuple[str, ...]]:
        """Head -> the names of its classes in the order of its logits, of those that the run knows."""
        kept = self.read_json(CLASSES)
        if isinstance(kept, dict):
            return {head: tuple(names) for head, names in kept.items()}
        # A run of before there was that file: the names were those of the data that the head was trained on.
        about: dict[str, Any] = self.about_data()
        found: dict[str, tuple[str, ...]] = {}
        for task in self.experiment().tasks.values() if about else ():
            names = about.get(task.data, {}).get("classes") if hasattr(task.objective, "label") else None
            if names:
                found.setdefault(getattr(task.objective, "head", ""), tuple(names))
        return found

    def about_data(self) -> dict[str, Any]:
        """Name of each set of data -> its size, classes, fingerprint and shapes, as it was when the run was opened last."""
        kept = self.read_json("environment.json")
        return kept.get("data", {}) if isinstance(kept, dict) else {}

    def identity(self) -> str:
        """A name that no other run has, not even a later one in the same folder or a copy; made when first asked for.

        The file says where it was made: a folder whose original is still there is a copy, and gets a name of its own.
        """
        place = self.name if self._bucket is not None else str(self.path.resolve())
        name = None
        if is_main():
            name, _, made_in = (read_text(self.path / "identity") or "").strip().partition("\n")
            copied = made_in and made_in != place and _names_itself(made_in, name)
            if not name or copied:
                name = uuid.uuid4().hex
            if made_in != place:
                write_whole(self.path / "identity", f"{name}\n{place}\n")
                self.send()
        return told("identity", name)

    def read_json(self, name: str) -> Any:
        """What a JSON file of this run holds; None where there is none, or it is damaged."""
        try:
            return read_json(self.path / name)
        except UserError as error:
            if error.exit_status == 1:
                raise
            return None

    def write_json(self, name: str, data: Any) -> None:
        """A JSON file, replaced whole or not at all, by process 0 alone."""
        self.write(name, pages(data))

    def write(self, name: str, content: str) -> None:
        """A file, replaced whole or not at all, by process 0 alone."""
        if not is_main():
            return
        write_whole(self.path / name, content)
        self.send()


def _names_itself(place: str, name: str) -> bool:
    """Whether the run at a place has this very name."""
    file: Any = (Bucket.at(place) if in_bucket(place) else Path(place)) / "identity"
    return (read_text(file) or "").strip().partition("\n")[0] == name


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
