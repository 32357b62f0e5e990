"""A file of vectors: written whole or not at all, read as a memory map, searched exactly.

It is what `numpy.savez` writes, so `numpy.load` opens it: `vectors` [N, E] float32, `names` [N] str, `about`, a JSON object.
`numpy.load` cannot map it, though. But a member of a zip that is stored uncompressed is a `.npy` file that begins at some byte
of the whole (PKWARE's APPNOTE 6.3.10, section 4.3.7: after its local header of 30 bytes, its name and its extra field), and
from there the offset of its numbers is known, which is all that `numpy.memmap` needs. A checksum would have to read everything,
so none is looked at.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmjax.core.errors import UserError

BLOCK = 1 << 16  # vectors that are held at once
LOCAL_HEADER = 30  # bytes before a member's name


class NewIndex:
    """An index that is being written; see `new_index`."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.about: dict[str, Any] = {}
        self.names: list[str] = []
        self.width, self._raw = 0, raw

    def add(self, name: str, vector_E: np.ndarray) -> None:
        """One input more."""
        self.width = len(vector_E)
        self._raw.write(vector_E.astype("<f4").tobytes())
        self.names.append(name)

    def write(self, path: Path) -> None:
        """All members, the vectors first."""
        self._raw.seek(0)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            with file.open("vectors.npy", "w", force_zip64=True) as member:
                head = {"descr": "<f4", "fortran_order": False, "shape": (len(self.names), self.width)}
                np.lib.format.write_array_header_1_0(member, head)
                shutil.copyfileobj(self._raw, member, 1 << 20)
            for name, array in (("names", np.array(self.names)), ("about", np.array(json.dumps(self.about)))):
                with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


@contextlib.contextmanager
def new_index(out: str) -> Iterator[NewIndex]:
    """A new file, there when the block ends well and something was added. Memory holds the names, and one vector.

    Raises:
      UserError: the file is there already, before the block or after it; its folder is not.
    """
    path, taken = Path(out), UserError(f"--out {out}: the file is there already; give another name")
    if os.path.lexists(path):
        raise taken
    if not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}")
    raw, whole = (path.with_name(f".{path.name}.{os.getpid()}.{part}") for part in ("vectors", "partial"))
    try:
        with open(raw, "w+b") as file:
            new = NewIndex(file)
            yield new
            if not new.names:
                return
            new.write(whole)
        try:
            os.link(whole, path)  # unlike a renaming, it leaves a file alone that has appeared there
        except FileExistsError:
            raise taken from None
        except OSError:  # a file system without links
            whole.rename(path)
    finally:
        for left in (raw, whole):
            left.unlink(missing_ok=True)


class Index:
    """Vectors in a file.

    Attributes:
      vectors_NE: float32 of unit length, a memory map.
      names: [N] str, of what each is the vector of; a memory map.
      about: what `embed.identity` says of the space they lie in.

    Raises:
      UserError: a file that `mmjax embed` has not written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.vectors_NE, self.names, about = (mapped(path, name) for name in ("vectors", "names", "about"))
            self.about: dict[str, Any] = json.loads(about.item())
            known = self.vectors_NE.ndim == 2 and self.vectors_NE.dtype == np.float32
            known &= len(self.names) == len(self.vectors_NE) and isinstance(self.about, dict)
        except FileNotFoundError:
            raise UserError(f"--index {path}: there is no such file; mmjax embed writes one") from None
        except (zipfile.BadZipFile, KeyError, ValueError, AttributeError, struct.error, EOFError):
            known = False
        if not known:
            raise UserError(f"--index {path}: mmjax embed has not written this file, or it is damaged")

    def nearest(self, queries_QE: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """[Q, K] the rows of the vectors nearest to each query, nearest first and of equal ones the first, and their cosines.

        Every vector is looked at, `BLOCK` of them at once, so memory does not grow with the file.

        Args:
          queries_QE: float32 of unit length.
          top_k: K, at most N; 0 for N.
        """
        Q, N = len(queries_QE), len(self.vectors_NE)
        most = min(top_k or N, N)
        rows = [np.zeros(0, np.int64) for _ in range(Q)]
        cosines = [np.zeros(0, np.float32) for _ in range(Q)]
        for start in range(0, N, BLOCK):
            some_QN = queries_QE @ np.asarray(self.vectors_NE[start : start + BLOCK]).T
            for q, own in enumerate(some_QN):
                near = np.flatnonzero(own >= np.partition(own, -most)[-most]) if most < len(own) else np.arange(len(own))
                rows[q] = np.concatenate([rows[q], near + start])
                cosines[q] = np.concatenate([cosines[q], own[near]])
                order = np.argsort(-cosines[q], kind="stable")[:most]
                rows[q], cosines[q] = rows[q][order], cosines[q][order]
        return np.stack(rows), np.stack(cosines)


def mapped(path: str | Path, name: str) -> np.ndarray:
    """An array of a `.npz` file as a memory map, read-only.

    Raises:
      KeyError: no such array.
      ValueError: it is compressed, or holds Python objects.
    """
    with zipfile.ZipFile(path) as file:
        member = file.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{path}: {name} is compressed, so it cannot be mapped")
    with open(path, "rb") as opened:
        opened.seek(member.header_offset)
        after = struct.unpack("<HH", opened.read(LOCAL_HEADER)[-4:])  # how long its name is, and its extra field
        opened.seek(member.header_offset + LOCAL_HEADER + sum(after))
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(opened)
        offset = opened.tell()
    if dtype.hasobject:
        raise ValueError(f"{path}: {name} holds Python objects")
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
