"""Your own images: a folder that holds one folder for each class."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data.images import read_image
from mmjax.data.sources.splits import ALIASES, SPLITS, check_fractions, check_split, fingerprint, hash_split
from mmjax.data.types import Record

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Folder:
    """Images in class folders: `path/cat/1.jpg`, or already split, `path/train/cat/1.jpg`.

    A path that holds a folder `train` with folders in it is taken as split, into `train`, `validation` (or `val`) and `test`;
    the classes are then those of all splits together. Otherwise each file's split is a hash of its path below `path`, so that
    each class is split by about the same shares, and adding a file moves no other. Hidden files and folders are passed over.

    Attributes:
      path: the folder.
      split: "train", "validation", "test" or "all".
      fractions: shares of train, validation and test, for a folder that is not split.
      extensions: which files are images, in lower case with the dot.
    """

    path: str = setting(everyday=True, path=True)
    split: str = "train"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    extensions: tuple[str, ...] = EXTENSIONS

    def build(self) -> FolderRecords:
        """Records of uint8 [H, W, 3], labelled; the label of a class is its place among the sorted names.

        Raises:
          UserError: no such folder, no images in it or in the split, an unknown split, or fractions that do not sum to 1.
        """
        check_split("Folder", self.split, (*SPLITS, "all"))
        check_fractions("Folder", self.fractions)
        root = Path(self.path)
        if not root.is_dir():
            raise UserError(f"Folder.path={self.path!r}: no such folder")
        found = list(self._split_on_disk(root) if _is_split(root) else self._split_by_hash(root))
        if not found:
            raise UserError(f"Folder.path={self.path!r}: no images in class folders (extensions {', '.join(self.extensions)})")
        classes = tuple(sorted({name for _, name, _ in found}))
        kept = [(file, name) for split, name, file in found if self.split in (split, "all")]
        if not kept:
            raise UserError(f"Folder.split={self.split!r}: none of the {len(found)} images in {self.path!r} are in it")
        rank = {name: label for label, name in enumerate(classes)}
        return FolderRecords(str(root), tuple(f for f, _ in kept), tuple(rank[name] for _, name in kept), classes)

    def _split_by_hash(self, root: Path) -> Iterator[tuple[str, str, str]]:
        """(split, class, path below root) of every image."""
        for name in _folders(root):
            for file in self._images(root, root / name):
                yield hash_split(file, self.fractions), name, file

    def _split_on_disk(self, root: Path) -> Iterator[tuple[str, str, str]]:
        for folder in _folders(root):
            split = ALIASES.get(folder, folder)
            if split in SPLITS:
                for name in _folders(root / folder):
                    for file in self._images(root, root / folder / name):
                        yield split, name, file

    def _images(self, root: Path, folder: Path) -> Iterator[str]:
        for parent, folders, files in os.walk(folder):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for file in sorted(files):
                if file.lower().endswith(tuple(self.extensions)) and not file.startswith("."):
                    yield (Path(parent) / file).relative_to(root).as_posix()


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """The images of one split, read when asked for.

    Attributes:
      root: the folder that `files` are relative to.
      files: one path an image, with forward slashes.
      labels: one class an image.
      classes: names in label order.
    """

    root: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Record:
        label = self.labels[index]
        image = read_image(os.path.join(self.root, self.files[index]))
        return {"image": image, "label": label, "group": label, "name": self.classes[label]}

    def texts(self) -> Iterator[str]:
        return iter(())

    def fingerprint(self) -> str:
        return fingerprint(part for file, label in zip(self.files, self.labels, strict=True) for part in (file, str(label)))


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _is_split(root: Path) -> bool:
    return (root / "train").is_dir() and bool(_folders(root / "train"))
