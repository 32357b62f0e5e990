"""Your own images, sounds or videos: a folder that holds one folder for each class."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.data import splits
from mmjax.data.clip import VIDEOS, clip
from mmjax.data.files.walk import folders, images
from mmjax.data.images import MAX_PIXELS, printable, read_image
from mmjax.data.once import warn_once
from mmjax.data.sound import SOUNDS, recording
from mmjax.data.spelling import nearest
from mmjax.data.splits import SPLITS, split_of
from mmjax.data.types import Record

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
KINDS = {"images": EXTENSIONS, "sounds": SOUNDS, "videos": VIDEOS}
READ = {"sounds": ("audio", recording), "videos": ("video", clip)}  # by a column
LAYOUTS = ("auto", "classes", "splits")
Found = list[tuple[str, str, str]]  # (split, class, path below the root) of every image

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Folder:
    """Images, sounds or videos in class folders: `path/cat/1.jpg`, or already split, `path/train/cat/1.jpg`.

    A path that has images in no folders but `train`, `validation` (or `val`) and `test`, with folders in them, is taken as
    split; the classes are then those of all splits together. Otherwise each class is split by itself, by
    a hash of each file's path below `path`: by chance where it has many files, so that adding one moves no other, and where it
    has few (less than 200 with the default fractions) so that it is in every split; see `splits.share_out`. A class with too
    few files for that is said.

    A folder without an image is one of sounds (`path/dog/1.wav`), which the column `Audio` reads, and one without either is one
    of videos (`path/run/1.mp4`) for the column `Video`; what is said of images below is then of them.

    Hidden files and folders are passed over. Links to folders are followed, each folder once for a class.

    Attributes:
      path: the folder.
      split: "train", "validation", "test" or "all".
      fractions: shares of train, validation and test, for a folder that is not split.
      extensions: which files are taken, in lower case with the dot: of images, of sounds (`sound.SOUNDS`) or
        of videos (`clip.VIDEOS`).
      layout: "classes" or "splits", what the folders in `path` are; "auto" sees for itself, and refuses what may be either.
      window: (low, high), the values that become black and white in images of more than 8 bits; None for a scale that the file
        itself gives, see `levels.to_bytes`.
      max_pixels: an image of more pixels counts as unreadable.
    """

    path: str = setting(everyday=True, path=True)
    split: str = "train"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    extensions: tuple[str, ...] = EXTENSIONS
    layout: str = "auto"
    window: tuple[float, float] | None = None
    max_pixels: int = setting(least=1, default=MAX_PIXELS)

    def build(self) -> FolderRecords:
        """Records of uint8 [H, W, 3], or of sounds or videos; the label of a class is its place among the sorted names.

        Raises:
          UserError: no such folder, no such files in it or none in the split, an unknown split or layout, folders
            that may be splits or classes, extensions of several kinds, fractions that do not sum to 1, a window that is
            none.
        """
        splits.check_split("Folder", self.split, (*SPLITS, "all"))
        splits.check_fractions("Folder", self.fractions)
        splits.check_images("Folder", self.window, self.max_pixels)
        if self.layout not in LAYOUTS:
            raise UserError(f"Folder.layout={self.layout!r} is not a layout{nearest(self.layout, LAYOUTS)}")
        root = Path(self.path)
        if not root.is_dir():
            raise UserError(f"Folder.path={self.path!r}: no such folder")
        if len({_kind(extension) for extension in self.extensions}) > 1:
            raise UserError(f"Folder.extensions={self.extensions!r}: give those of images, of sounds or of videos, not both")
        if self.extensions == EXTENSIONS and (there := self._there(root)) != "images":
            return dataclasses.replace(self, extensions=KINDS[there]).build()
        on_disk = self.layout == "splits" or (self.layout == "auto" and self._is_split(root))
        found = self._split_on_disk(root) if on_disk else self._split_by_hash(root)
        if not found:
            kind = self._kind
            raise UserError(f"Folder.path={self.path!r}: no {kind} in class folders (extensions {', '.join(self.extensions)})")
        sizes = Counter(name for _, name, _ in found)
        classes = tuple(sorted(sizes))
        kept = [(file, name) for split, name, file in found if self.split in (split, "all")]
        if not kept:
            raise UserError(f"Folder.split={self.split!r}: none of the {len(found)} {self._kind} in {self.path!r} are in it")
        if not on_disk:
            splits.warn_of_absent(f"Folder.path={self.path!r}", self.split, (name for _, name in kept), sizes)
        rank = {name: label for label, name in enumerate(classes)}
        files, labels = tuple(f for f, _ in kept), tuple(rank[name] for _, name in kept)
        return FolderRecords(str(root), files, labels, classes, self.window, self.max_pixels, self._kind)

    @property
    def _kind(self) -> str:
        return next(map(_kind, self.extensions), "images")

    def _there(self, root: Path) -> str:
        """The first of the kinds that the folders hold a file of; images where there is none."""
        for kind, extensions in KINDS.items():
            if any(next(images(root, root / folder, extensions), None) is not None for folder in folders(root)):
                return kind
        return "images"

    def _split_by_hash(self, root: Path) -> Found:
        self._say_left_out(root)
        files = {name: self._images(root, root / name) for name in folders(root)}
        split = splits.share_out(files, self.fractions)
        return [(split[file], printable(name), file) for name in files for file in files[name]]

    def _split_on_disk(self, root: Path) -> Found:
        self._say_left_out(root)
        found: Found = []
        for folder in folders(root):
            split = split_of(folder)
            if split in SPLITS:
                self._say_left_out(root / folder)
                for name in folders(root / folder):
                    found += [(split, printable(name), file) for file in self._images(root, root / folder / name)]
        return found

    def _is_split(self, root: Path) -> bool:
        """Whether the folders are splits. Raises `UserError` where they may as well be classes."""
        here = folders(root)
        named = [folder for folder in here if split_of(folder) in SPLITS and folders(root / folder)]
        loose = any(self._loose(root / folder) for folder in named)
        others = [folder for folder in here if split_of(folder) not in SPLITS and self._holds_images(root, folder)]
        if not others:
            return "train" in named or (bool(named) and not loose)
        if "train" not in named or loose or len(named) == 1:
            return False
        both = f"{', '.join(map(repr, named))} look like splits, and {printable(others[0])!r} beside them has images too"
        raise UserError(f"Folder.path={self.path!r}: {both}; say layout='splits' or layout='classes'")

    def _images(self, root: Path, folder: Path) -> list[str]:
        found = list(images(root, folder, self.extensions))
        if not found:
            warn_once(log, "Folder.path=%r: no %s in %s: no class", self.path, self._kind, printable(folder.relative_to(root)))
        return found

    def _holds_images(self, root: Path, folder: str) -> bool:
        return next(images(root, root / folder, self.extensions), None) is not None

    def _loose(self, folder: Path) -> list[str]:
        """Images that lie in a folder itself."""
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir() and not entry.name.startswith("."))
        return [name for name in names if name.lower().endswith(tuple(self.extensions))]

    def _say_left_out(self, folder: Path) -> None:
        if loose := self._loose(folder):
            first = printable(folder / loose[0])
            warn_once(
                log, "Folder.path=%r: %d image(s) lie in no class folder and are left out: %s", self.path, len(loose), first
            )


def _kind(extension: str) -> str:
    return next((kind for kind in READ if extension in KINDS[kind]), "images")


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """The images of one split, read when asked for; or its sounds or videos, of which a column says what is read.

    Attributes:
      root: the folder that `files` are relative to.
      files: one path an image, with forward slashes.
      labels: one class an image.
      classes: names in label order.
      window, max_pixels: as the source has them.
      kind: `images`, `sounds` or `videos`.
    """

    root: str
    files: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    window: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    kind: str = "images"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Record:
        label = self.labels[index]
        if self.kind in READ:
            key, make = READ[self.kind]
            return {key: make(self.files[index], "", self.root), "label": label, "group": label, "name": self.classes[label]}
        image = read_image(os.path.join(self.root, self.files[index]), self.window, self.max_pixels)
        return {"image": image, "label": label, "group": label, "name": self.classes[label]}

    def encoded(self, index: int) -> bytes | None:
        """See `types.Records`."""
        return None if self.kind in READ else Path(self.root, self.files[index]).read_bytes()

    def described(self, index: int) -> tuple[str, int, tuple[str, ...]]:
        return self.files[index], self.labels[index], ()

    def texts(self) -> Iterator[str]:
        return iter(())

    def fingerprint(self) -> str:
        parts = zip(self.files, self.labels, strict=True)
        return splits.fingerprint(part for file, label in parts for part in (file, str(label)))
