"""A run folder in a bucket (`gs://`, `s3://`): its small files are worked on in a copy on this machine and sent back whole.

A bucket can neither append to a file nor rename one, which metrics and TensorBoard need.
Checkpoints are written to it directly.
"""

from __future__ import annotations

import tempfile
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
      UserError: the address cannot be opened, or what opens it is not installed.
    """

    def __init__(self, address: str) -> None:
        try:
            self.home = epath.Path(address)
            held = self.home.exists()
        except ImportError:
            raise UserError(f"{address}: opening it needs gcsfs (gs://) or s3fs (s3://); pip install 'mmjax[tpu]'") from None
        except Exception as error:  # each kind of storage has errors of its own: no credentials, no such bucket, no network
            raise UserError(f"{address} cannot be opened: {' '.join(str(error).split())[:200]}") from None
        self.copy = Path(tempfile.mkdtemp(prefix="mmjax_run_"))
        self._sent: dict[Path, tuple[int, int]] = {}
        if held:
            self.fetch()

    def fetch(self) -> None:
        """Copy from the bucket."""
        self._fetch(self.home, self.copy)

    def send(self) -> None:
        """Copy to the bucket what has changed here since; each file arrives whole or not at all."""
        for file in sorted(path for path in self.copy.rglob("*") if path.is_file()):
            state = file.stat()
            seen = (state.st_size, state.st_mtime_ns)
            if self._sent.get(file) != seen:
                place = self.home / file.relative_to(self.copy).as_posix()
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
