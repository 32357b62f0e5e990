"""A run folder in a bucket (`gs://`, `s3://`): its small files are worked on in a copy on this machine and sent back whole.

A bucket can neither append to a file nor rename one, which metrics and TensorBoard need; checkpoints are
written to it directly.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from mmjax.core.errors import UnreachableError, UserError
from mmjax.train.lock import WRITER, whoami
from mmjax.train.reading import again

T = TypeVar("T")

CHECKPOINTS = "checkpoints"


def in_bucket(path: str | Path) -> bool:
    """Whether a run folder's name is an address."""
    return "://" in str(path)


class Bucket:
    """A run folder at an address, and its copy here.

    Attributes:
      home: the folder in the bucket.
      copy: the folder here; everything but the checkpoints, as it was in the bucket when this was made.

    Raises:
      UserError: here and from each method: what opens the address is not installed.
      UnreachableError: it cannot be opened or written.
    """

    def __init__(self, address: str) -> None:
        self.home = self.at(address)
        place = tempfile.mkdtemp(prefix="mmjax_run_")
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        self.copy = Path(place) / self.home.name
        self.copy.mkdir()
        self._sent: dict[Path, tuple[int, int]] = {}
        self._writer = ""
        self.fetch()

    @staticmethod
    def at(address: str) -> Any:
        """The folder at an address."""
        return epath.Path(address)

    def fetch(self) -> None:
        """Copy from the bucket; what is gone there goes here."""
        seen: set[Path] = set()
        if self._try("opened", self.home.exists):
            self._fetch(self.home, self.copy, seen)
        for file in self._sent.keys() - seen:
            file.unlink(missing_ok=True)
            del self._sent[file]

    def send(self) -> None:
        """Make the bucket hold what is here, but for the checkpoints: each file arrives whole or not at all.

        Raises:
          UserError: another process has begun to write this run.
        """
        self._check_writer()
        here = {path for path in self.copy.rglob("*") if path.is_file()}
        for file in sorted(here):
            state = file.stat()
            seen = (state.st_size, state.st_mtime_ns)
            if self._sent.get(file) != seen:
                place, content = self._place(file), file.read_bytes()
                self._try("written", lambda: place.parent.mkdir(parents=True, exist_ok=True))  # noqa: B023
                self._try("written", lambda: place.write_bytes(content))  # noqa: B023
                self._sent[file] = seen
        for file in sorted(self._sent.keys() - here):
            place = self._place(file)
            self._try("written", lambda: place.unlink(missing_ok=True))  # noqa: B023
            del self._sent[file]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While it lasts, this process writes the run.

        A bucket has no locks, and the one who wrote before may have been killed a moment ago: so the newcomer takes over, and
        an earlier one, should it still live, ends at its next `send`.
        """
        self._writer = f"{uuid.uuid4().hex} {whoami()}"
        self._try("written", lambda: self.home.mkdir(parents=True, exist_ok=True))
        self._try("written", lambda: (self.home / WRITER).write_text(self._writer))
        try:
            yield
        finally:
            self._writer = ""

    def _check_writer(self) -> None:
        if not self._writer:
            return
        found = self._try("opened", lambda: (self.home / WRITER).read_text())
        if found != self._writer:
            raise UserError(
                f"{self.home}: another process is training there now ({found.partition(' ')[2]}), so this one ends; start "
                "one at a time, or use another --workdir"
            )

    def _place(self, file: Path) -> Any:
        return self.home / file.relative_to(self.copy).as_posix()

    def _fetch(self, source: Any, target: Path, seen: set[Path]) -> None:
        target.mkdir(exist_ok=True)
        for child in self._try("opened", lambda: list(source.iterdir())):
            place = target / child.name
            if self._try("opened", child.is_dir):
                if child != self.home / CHECKPOINTS:
                    self._fetch(child, place, seen)
            elif child != self.home / WRITER:
                place.write_bytes(self._try("opened", child.read_bytes))
                self._sent[place] = (place.stat().st_size, place.stat().st_mtime_ns)
                seen.add(place)

    def _try(self, what: str, act: Callable[[], T]) -> T:
        """Tried again where storage fails; one clear line for what it raises at last."""
        try:
            return again(str(self.home), act)
        except ImportError:
            tip = "pip install 'mmjax[gcs]' or 'mmjax[s3]'"
            raise UserError(f"{self.home}: opening it needs gcsfs (gs://) or s3fs (s3://); {tip}") from None
        except Exception as error:  # each kind of storage has errors of its own: no credentials, no such bucket, no network
            cause = (error.__cause__ or error) if isinstance(error, UserError) else error
            raise UnreachableError(f"{self.home} cannot be {what}: {' '.join(str(cause).split())[:200]}") from None
