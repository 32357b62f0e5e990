"""A bucket for tests: fsspec's `served://`, a folder of this machine that counts what it is asked and fails on demand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem


class Served(AbstractFileSystem):
    """`served://a/b` is the file a/b below `root`.

    Attributes:
      root: the folder.
      calls: (method, path) of each request.
      trouble: called with (method, path) before each answer; may raise.
    """

    protocol = "served"
    cachable = False
    root: ClassVar[Path]
    calls: ClassVar[list[tuple[str, str]]] = []

    @staticmethod
    def trouble(method: str, path: str) -> None:
        pass

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self._called("ls", path)
        place = self.root / path
        found = [place] if place.is_file() else sorted(place.iterdir())
        return [self._entry(one) if detail else self._name(one) for one in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        self._called("info", path)
        return self._entry(self.root / path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        self._called("cat", path)
        return (self.root / path).read_bytes()[start:end]

    def _called(self, method: str, path: str) -> None:
        self.calls.append((method, path))
        type(self).trouble(method, path)

    def _name(self, place: Path) -> str:
        return place.relative_to(self.root).as_posix()

    def _entry(self, place: Path) -> dict[str, Any]:
        stat = os.stat(place)
        kind = "directory" if place.is_dir() else "file"
        return {"name": self._name(place), "size": stat.st_size, "type": kind, "etag": f"{stat.st_mtime_ns:x}"}


fsspec.register_implementation("served", Served, clobber=True)
