"""Many texts as one array of bytes in a file, mapped into memory: no Python object a text, and shared between processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np


def pack(folder: Path, name: str, texts: Iterable[str]) -> None:
    """Write texts, half a character that JSON may spell included."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    np.save(folder / f"{name}.npy", np.frombuffer(b"".join(encoded), np.uint8))
    np.save(folder / f"{name}.ends.npy", np.cumsum([0, *map(len, encoded)], dtype=np.int64))


class Packed:
    """What `pack` has written."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises OSError where it is not there."""
        self._bytes = np.load(folder / f"{name}.npy", mmap_mode="r")
        self._ends = np.load(folder / f"{name}.ends.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index], self._ends[index + 1]
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
