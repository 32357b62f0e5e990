"""Scikit-learn's handwritten digits: 1797 images of 8 x 8, no download; the embedded default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from mmjax.data.splits import SPLITS, check_split, fingerprint
from mmjax.data.types import Record

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class Digits:
    """One split of the digits, 64 / 16 / 20 and stratified; which digit is in which split is fixed for good.

    Attributes:
      split: "train", "validation" or "test".
    """

    split: str = "train"

    def build(self) -> DigitsRecords:
        """Records of uint8 [8, 8, 3]. Raises `UserError` for an unknown split."""
        check_split("Digits", self.split, SPLITS)
        # Imported here because it takes a second that a run on other data need not spend.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        loaded = load_digits()
        label_N = loaded.target.astype(np.int32)
        rest, test = train_test_split(np.arange(len(label_N)), test_size=0.2, random_state=0, stratify=label_N)
        train, validation = train_test_split(rest, test_size=0.2, random_state=0, stratify=label_N[rest])
        rows = np.sort({"train": train, "validation": validation, "test": test}[self.split])
        grey_N88 = np.rint(loaded.images[rows] * (255 / 16)).astype(np.uint8)
        rgb_N883 = np.repeat(grey_N88[..., None], 3, axis=-1)
        rgb_N883.setflags(write=False)
        return DigitsRecords(rgb_N883, label_N[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class DigitsRecords:
    """The digits of one split, in memory.

    Attributes:
      images: uint8 [N, 8, 8, 3], read-only.
      labels: int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = NAMES

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Record:
        label = int(self.labels[index])
        return {"image": self.images[index], "label": label, "group": label, "name": self.classes[label]}

    def texts(self) -> Iterator[str]:
        return iter(())

    def fingerprint(self) -> str:
        return fingerprint([self.images.tobytes(), self.labels.tobytes()])
