"""Records that are the same, or nearly: by what they hold, whatever they are called.

Near ones are found by a perceptual hash, the 64 lowest frequencies of a discrete cosine transform against their median, as
`phash` of the imagehash library has it (https://github.com/JohannesBuchner/imagehash: fifteen lines are not worth another
dependency). Flat images and small drawings have few frequencies, so their hashes collide: what the hash finds counts only where
the pixels agree too. Among scikit-learn's 1,797 digits 360 pairs of hashes are near, and the pixels of one of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from mmjax.core.errors import UnreachableError
from mmjax.data.clip import Clip
from mmjax.data.fields import strings_of
from mmjax.data.images import to_pil
from mmjax.data.reader import THREADS, spread
from mmjax.data.sound import Recording
from mmjax.data.types import BadRecordError, Record, Records

SIDE, LOW = 32, 8  # pixels of a side that are compared, and frequencies of it that are hashed
BITS = 6  # of 64 in which the hashes of near images differ at most
NEAR = 8.0  # of 255: mean difference of the pixels of near images at most, at SIDE x SIDE
BLOCK = 256  # hashes that are held against all others at once
MOST = 200_000  # pairs of near hashes whose pixels are compared
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Seen:
    """One record that was looked at.

    Attributes:
      data: the name of its set of data.
      index: its number there.
      digest: of its pixels, or of its texts and its sound and video, as files, where it has no image.
      name: of its class, "" for none.
      texts: its captions.
      small: uint8 [SIDE, SIDE, 3]; None without an image.
    """

    data: str
    index: int
    digest: bytes
    name: str
    texts: tuple[str, ...]
    small: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two near images. `difference`: of their pixels, mean, of 255; `across`: whether they are of two sets of data."""

    one: Seen
    other: Seen
    difference: float

    @property
    def across(self) -> bool:
        return self.one.data != self.other.data


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """What was found among the records that were looked at.

    Attributes:
      exact: groups of two or more that are equal; those of several sets of data first, then large ones.
      near: pairs of near images; those of two sets first, then by their difference.
      compared: pairs of near hashes whose pixels were compared.
      stopped: whether there were more than `MOST`, and the rest was not.
    """

    exact: tuple[tuple[Seen, ...], ...]
    near: tuple[Pair, ...]
    compared: int
    stopped: bool

    def across(self) -> tuple[int, int]:
        """How many groups and pairs are of several sets of data: leakage."""
        return sum(len({one.data for one in group}) > 1 for group in self.exact), sum(pair.across for pair in self.near)


def sample(data: str, records: Records, most: int) -> list[Seen]:
    """`most` evenly spaced records, or all where there are fewer, but for those that cannot be read or hold no image,
    text, sound or video."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda index: _see(data, records, index), spread(records, most))
        return [one for one in found if one is not None]


def duplicates(seen: Sequence[Seen]) -> Duplicates:
    """Equal and near records among those given, of one or several sets of data."""
    groups: dict[bytes, list[Seen]] = {}
    for one in seen:
        groups.setdefault(one.digest, []).append(one)
    exact = [tuple(group) for group in groups.values() if len(group) > 1]
    exact.sort(key=lambda group: (len({one.data for one in group}) < 2, -len(group)))
    # Of equal records one a set of data stands for all: a picture that is there a thousand times has one pair, not a thousand.
    alone = {(one.digest, one.data): one for one in reversed(seen) if one.small is not None}
    images = list(reversed(alone.values()))
    near, compared, stopped = _near(images)
    near.sort(key=lambda pair: (not pair.across, pair.difference))
    return Duplicates(tuple(exact), tuple(near), compared, stopped)


def hashes(small_NSS3: np.ndarray) -> np.ndarray:
    """uint64 [N] of uint8 [N, 32, 32, 3]: a bit for each of the 8 x 8 lowest frequencies, whether it is above their median."""
    grey_NSS = small_NSS3.astype(np.float32) @ LUMA
    step = np.pi / SIDE * (np.arange(SIDE) + 0.5)
    wave_LS = np.cos(np.arange(LOW)[:, None] * step).astype(np.float32)  # DCT-II
    low_NB = (wave_LS @ grey_NSS @ wave_LS.T).reshape(-1, LOW * LOW)
    low_NB = np.rint(low_NB)  # of a flat image they are nothing but the rounding of floats
    bits_NB = low_NB > np.median(low_NB, axis=1, keepdims=True)
    return np.packbits(bits_NB, axis=1).view(np.uint64)[:, 0]


def near_hashes(hash_N: np.ndarray, bits: int = BITS) -> Iterator[np.ndarray]:
    """int64 [M, 2], by blocks: every pair of places i < j whose hashes differ in at most so many bits."""
    for start in range(0, len(hash_N), BLOCK):
        block_B = hash_N[start : start + BLOCK]
        close_BN = np.bitwise_count(block_B[:, None] ^ hash_N[start:]) <= bits
        pair_M2 = np.argwhere(close_BN) + start
        yield pair_M2[pair_M2[:, 1] > pair_M2[:, 0]]


def _near(images: Sequence[Seen]) -> tuple[list[Pair], int, bool]:
    found: list[Pair] = []
    compared = 0
    if not images:
        return found, compared, False
    small_NSS3 = np.stack([one.small for one in images if one.small is not None])
    for pair_M2 in near_hashes(hashes(small_NSS3)):
        for start in range(0, len(pair_M2), BLOCK):
            some_M2 = pair_M2[start : start + BLOCK]
            if compared + len(some_M2) > MOST:
                return found, compared, True
            compared += len(some_M2)
            apart_M = np.abs(small_NSS3[some_M2[:, 0]].astype(np.int16) - small_NSS3[some_M2[:, 1]]).mean(axis=(1, 2, 3))
            for (i, j), apart in zip(some_M2.tolist(), apart_M.tolist(), strict=True):
                if apart <= NEAR and images[i].digest != images[j].digest:
                    found.append(Pair(images[i], images[j], apart))
    return found, compared, False


def _see(data: str, records: Records, index: int) -> Seen | None:
    try:
        record = records[index]
    except BadRecordError:
        return None
    texts = tuple(text for key in ("text", "text_pair", "words") for text in strings_of(record.get(key)))
    image = record.get("image")
    digest = hashlib.sha256()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
        digest.update(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes())
        small = np.asarray(to_pil(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return Seen(data, index, digest.digest(), _name(records, record), texts, small)
    files = [value for key in ("audio", "video") if isinstance(value := record.get(key), Recording | Clip)]
    for file in files:
        try:
            digest.update(hashlib.sha256(file.encoded()).digest())
        except (OSError, ValueError, UnreachableError):  # not there, or no file
            return None
    if not files and not texts:
        return None
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return Seen(data, index, digest.digest(), _name(records, record), texts)


def _name(records: Records, record: Record) -> str:
    label: Any = record.get("label")
    names = records.classes
    if isinstance(label, int | np.integer) and 0 <= label < len(names):
        return names[int(label)]
    return label if isinstance(label, str) else ""
