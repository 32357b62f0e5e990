"""Tux Paint's stamps: pictures cut out of their background, captions in many languages, most of them spoken aloud."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.data import splits
from mmjax.data.files.walk import folders, images
from mmjax.data.images import MAX_PIXELS, printable, read_image
from mmjax.data.once import warn_once
from mmjax.data.spelling import nearest
from mmjax.data.splits import SPLITS
from mmjax.data.types import Record

INSTALLED = "usr/share/tuxpaint/stamps"
PACKAGE = "tuxpaint-stamps-default"  # Debian's, and Ubuntu's
PICTURE, SOUNDS = ".png", (".ogg", ".wav")
FIRST = "en"  # the language of a description's first line, and of a sound that names none

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stamps:
    """The stamps of Debian's package `tuxpaint-stamps-default`, or of a folder laid out like it.

    A stamp is `ANIMALS/BIRDS/owl.png`; beside it are `owl.txt`, whose first line is the caption in English and whose others are
    `fr.utf8=...`, and `owl_desc.ogg`, `owl_desc_fr.ogg`, these captions spoken. Its class is the folder. Pictures stand over
    white, as all that have transparency. Each class is split by itself, by a hash of the picture's path; see
    `splits.share_out`. Pictures without a caption in the language (a stamp's mirror image is one) are left out and counted, and
    so are drawings in SVG, which are not read.

    Attributes:
      path: of the stamps, or of the folder that the package was unpacked into.
      split: "train", "validation", "test" or "all".
      language: of captions and of what is spoken: "en", "fr", "pt_BR".
      spoken: keep only stamps whose caption is spoken in that language.
      level: how many folders name a class: 1 for "animals", 2 for "animals/birds" where there are as many.
      fractions: shares of train, validation and test.
      max_pixels: an image of more pixels counts as unreadable.
    """

    path: str = setting(everyday=True, path=True, default=f"/{INSTALLED}")
    split: str = "train"
    language: str = FIRST
    spoken: bool = False
    level: int = setting(least=1, default=1)
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    max_pixels: int = setting(least=1, default=MAX_PIXELS)

    def build(self) -> StampRecords:
        """Records of `image` uint8 [H, W, 3], `text`, `speech` (a path, "" where it is not spoken), `label` and `name`.

        Raises:
          UserError: no such folder, no stamps in it, none with a caption in the language, or none in the split; an unknown
            split, fractions that do not sum to 1.
        """
        splits.check_split("Stamps", self.split, (*SPLITS, "all"))
        splits.check_fractions("Stamps", self.fractions)
        check_ranges(self, "Stamps.")
        root = self._root()
        whole = [stamp for folder in folders(root) for stamp in _stamps(root, folder)]
        if not whole:
            raise UserError(f"Stamps.path={self.path!r}: no stamps in its folders; {_tip()}")
        kept = self._kept(whole)
        sizes = Counter(self._class(stamp) for stamp in kept)
        of_class = {name: [stamp.file for stamp in kept if self._class(stamp) == name] for name in sizes}
        split = splits.share_out(of_class, self.fractions)
        own = [stamp for stamp in kept if self.split in (split[stamp.file], "all")]
        if not own:
            raise UserError(f"Stamps.split={self.split!r}: none of the {len(kept)} stamps in {self.path!r} are in it")
        if self.split != "all":
            splits.warn_of_absent(f"Stamps.path={self.path!r}", self.split, map(self._class, own), sizes)
        classes = tuple(sorted(sizes))
        labels = tuple(classes.index(self._class(stamp)) for stamp in own)
        return StampRecords(str(root), tuple(own), labels, classes, self.language, self.max_pixels)

    def _root(self) -> Path:
        given = Path(self.path)
        if not given.is_dir():
            raise UserError(f"Stamps.path={self.path!r}: no such folder; {_tip()}")
        inside = given / INSTALLED
        return inside if inside.is_dir() else given

    def _kept(self, whole: list[Stamp]) -> list[Stamp]:
        """Those with a caption in the language, and spoken where that is asked for."""
        captioned = [stamp for stamp in whole if self.language in stamp.captions]
        kept = [stamp for stamp in captioned if self.language in stamp.speech or not self.spoken]
        if not kept:
            having = sorted({name for stamp in whole for name in (stamp.speech if self.spoken else stamp.captions)})
            what = "spoken captions" if self.spoken else "captions"
            near = nearest(self.language, having)
            raise UserError(f"Stamps.language={self.language!r}: {what} are in {', '.join(having) or 'no language'}{near}")
        if silent := len(whole) - len(captioned):
            warn_once(
                log, "Stamps.path=%r: %d picture(s) without a caption in %r are left out", self.path, silent, self.language
            )
        return kept

    def _class(self, stamp: Stamp) -> str:
        return "/".join(PurePosixPath(stamp.file).parent.parts[: self.level])


@dataclasses.dataclass(frozen=True)
class Stamp:
    """One stamp.

    Attributes:
      file: path of the picture below the root, with forward slashes.
      captions: language -> the caption.
      speech: language -> path below the root of the caption as it is spoken.
    """

    file: str
    captions: dict[str, str]
    speech: dict[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class StampRecords:
    """The stamps of one split; pictures are read when asked for.

    Attributes:
      root: the folder that paths are relative to.
      stamps: with their captions and what is spoken in all languages.
      labels: one class a stamp.
      classes: names in label order.
      language: that of the records' texts.
      max_pixels: as the source has it.
    """

    root: str
    stamps: tuple[Stamp, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    language: str = FIRST
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.stamps)

    def __getitem__(self, index: int, /) -> Record:
        stamp, label = self.stamps[index], self.labels[index]
        speech = stamp.speech.get(self.language, "")
        return {
            "image": read_image(os.path.join(self.root, stamp.file), None, self.max_pixels),
            "text": stamp.captions[self.language],
            "speech": os.path.join(self.root, speech) if speech else "",
            "label": label,
            "name": self.classes[label],
        }

    def encoded(self, index: int) -> bytes:
        """See `types.Records`."""
        return Path(self.root, self.stamps[index].file).read_bytes()

    def described(self, index: int) -> tuple[str, int, tuple[str, ...]]:
        stamp = self.stamps[index]
        return stamp.file, self.labels[index], (stamp.captions[self.language],)

    def texts(self) -> Iterator[str]:
        for stamp in self.stamps:
            yield stamp.captions[self.language]

    def fingerprint(self) -> str:
        told = zip(self.stamps, self.labels, strict=True)
        rows = (f"{s.file}\n{s.captions[self.language]}\n{s.speech.get(self.language, '')}\n{label}" for s, label in told)
        return splits.fingerprint([*self.classes, "", *rows])


def _stamps(root: Path, folder: str) -> Iterator[Stamp]:
    """The stamps in one folder and below it; one that has no caption that can be read has none in any language."""
    drawings = 0
    beside: dict[str, list[str]] = {}  # folder -> its sounds
    for file in images(root, root / folder, (PICTURE, ".svg")):
        at, name = os.path.split(file)
        stem, suffix = os.path.splitext(name)
        if suffix.lower() != PICTURE:
            drawings += not (root / at / f"{stem}{PICTURE}").exists()
            continue
        if at not in beside:
            beside[at] = sorted(entry for entry in os.listdir(root / at) if entry.lower().endswith(SOUNDS))
        speech = {language: f"{at}/{sound}" for language, sound in _spoken(stem, beside[at])}
        yield Stamp(file, _captions(root / at / f"{stem}.txt"), speech)
    if drawings:
        warn_once(log, "Stamps: %d drawing(s) in %s are SVG, which is not read, and are left out", drawings, printable(folder))


def _captions(path: Path) -> dict[str, str]:
    """Language -> caption, from a description; {} where there is none, or it is no UTF-8."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        warn_once(log, "Stamps: %s is no UTF-8 (%s); its stamp has no caption", printable(path), error.reason)
        return {}
    found = {FIRST: lines[0]} if lines and lines[0] else {}
    for line in lines[1:]:
        language, known, caption = line.partition(".utf8=")
        if known and caption.strip():
            found.setdefault(language, caption.strip())
    return found


def _spoken(stem: str, sounds: list[str]) -> Iterator[tuple[str, str]]:
    """(language, file) of the captions of a stamp that are spoken: `NAME_desc.ogg`, `NAME_desc_fr.ogg`."""
    for sound in sounds:
        rest = os.path.splitext(sound)[0].removeprefix(f"{stem}_desc")
        if sound.startswith(f"{stem}_desc") and (not rest or rest.startswith("_")):
            yield _language(rest.removeprefix("_")), sound


def _language(code: str) -> str:
    """A language as descriptions name it: `zh_tw` is `zh_TW`."""
    name, _, country = code.partition("_")
    return f"{name}_{country.upper()}" if country else name or FIRST


def _tip() -> str:
    unpack = f"apt-get download {PACKAGE}; dpkg -x FILE FOLDER"
    return f"install Debian's package {PACKAGE} (apt-get install {PACKAGE}), or unpack it ({unpack}) and give that folder"
