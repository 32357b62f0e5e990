"""A run folder in a bucket (`gs://`, `s3://`): its small files are worked on in a copy on this machine and sent back whole.

A bucket can neither append to a file nor rename one, which metrics and TensorBoard need; checkpoints are
written to it directly.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from mmjax.core.errors import UserError

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
      UserError: here and from each method: the address cannot be opened or written, or what opens it is not installed.
    """

    def __init__(self, address: str) -> None:
        self.home = epath.Path(address)
        place = tempfile.mkdtemp(prefix="mmjax_run_")
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        self.copy = Path(place) / self.home.name  # W&B knows a run by its folder's name
        self.copy.mkdir()
        self._sent: dict[Path, tuple[int, int]] = {}
        self.fetch()

    def fetch(self) -> None:
        """Copy from the bucket."""
        with self._errors("opened"):
            if self.home.exists():
                self._fetch(self.home, self.copy)

    def send(self) -> None:
        """Copy to the bucket what has changed here since; each file arrives whole or not at all."""
        for file in sorted(path for path in self.copy.rglob("*") if path.is_file()):
            state = file.stat()
            seen = (state.st_size, state.st_mtime_ns)
            if self._sent.get(file) != seen:
                place = self.home / file.relative_to(self.copy).as_posix()
                with self._errors("written"):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(file.read_bytes())
                self._sent[file] = seen

    def _fetch(self, source: epath.Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        for child in source.iterdir():
            place = target / child.name
            if child.is_dir():
                if child != self.home / CHECKPOINTS:
                    self._fetch(child, place)
                continue
            place.write_bytes(child.read_bytes())
            self._sent[place] = (place.stat().st_size, place.stat().st_mtime_ns)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """One clear line for what storage raises."""
        try:
            yield
        except ImportError:
            raise UserError(f"{self.home}: opening it needs gcsfs (gs://) or s3fs (s3://); pip install 'mmjax[tpu]'") from None
        except Exception as error:  # each kind of storage has errors of its own: no credentials, no such bucket, no network
            raise UserError(f"{self.home} cannot be {what}: {' '.join(str(error).split())[:200]}") from None
