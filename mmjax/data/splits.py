"""What the sources share: splits that stay put when data is added, and fingerprints."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.once import warn_once
from mmjax.data.spelling import nearest

SPLITS = ("train", "validation", "test")
ALIASES = {
    **dict.fromkeys(("val", "valid", "dev", "eval", "evaluation"), "validation"),
    "training": "train",
    "testing": "test",
}


def split_of(name: str) -> str:
    """The split that a folder or a field names, whatever its case; another name as it is."""
    lower = name.lower()
    found = ALIASES.get(lower, lower)
    return found if found in SPLITS else name


SURE = 20  # keys expected of a class in a split: that chance puts none there happens to one class in 500 million
NAMED = 5  # classes
log = logging.getLogger(__name__)


def check_split(source: str, split: str, allowed: Sequence[str]) -> None:
    """Raise `UserError` unless `split` is one of `allowed`."""
    if split not in allowed:
        raise UserError(f"{source}.split={split!r} is not a split{nearest(split, allowed)}")


def check_fractions(source: str, fractions: Sequence[float]) -> None:
    """Raise `UserError` unless there are three shares, none negative, that sum to one."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"{source}.fractions={tuple(fractions)}: give three shares, train validation test, that sum to 1")


def hash_split(key: str, fractions: Sequence[float]) -> str:
    """The split of one example, from its own key alone: adding an example moves no other."""
    point = place_of(key) / 2**64
    if point < fractions[0]:
        return "train"
    return "validation" if point < fractions[0] + fractions[1] else "test"


def place_of(key: str) -> int:
    """Where a key lies among all keys: a number from 0 to 2^64 - 1 that it has on every machine, by a hash."""
    return int.from_bytes(_digest(key)[:8], "big")


def in_split(places_N: np.ndarray, split: str, fractions: Sequence[float]) -> np.ndarray:
    """Whether keys are in a split, bool [N], exactly as `hash_split` says; their places (`place_of`), uint64 [N]."""
    points_N = places_N.astype(np.float64) / 2**64  # rounded as the division of two whole numbers of Python is
    number_N = (points_N >= fractions[0]).astype(np.int8) + (points_N >= fractions[0] + fractions[1])
    # The second cut lies at the first or above it: what is past it is past both.
    return number_N == SPLITS.index(split)


def share_out(keys: Mapping[Any, Iterable[str]], fractions: Sequence[float]) -> dict[str, str]:
    """The split of each key, so that every class with keys enough is in every split whose share is not 0.

    A class so large that chance leaves it out of no split (the smallest share of it is `SURE` keys or more) is split by
    `hash_split`: adding a key moves no other. The keys of a smaller class are ranked by their hash and cut by the shares, at
    least one for each split: a new key takes its place in the ranking and may move a key or two across a cut, all of them at
    the most once, when the class becomes large. A class with fewer keys than there are splits is in the first of them.

    Args:
      keys: class -> its keys; a key is in one class alone.
    """
    found: dict[str, str] = {}
    shares = {split: share for split, share in zip(SPLITS, fractions, strict=True) if share > 0}
    for members in keys.values():
        ranked = sorted(members, key=lambda key: (_digest(key), key))
        if len(ranked) * min(shares.values()) >= SURE:
            found |= {key: hash_split(key, fractions) for key in ranked}
            continue
        place = 0
        for split, count in _counts(len(ranked), shares).items():
            found |= dict.fromkeys(ranked[place : place + count], split)
            place += count
    return found


def _counts(size: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many of a class go to each split: the shares, rounded so that they sum to `size`, at least one where it can be."""
    least = {split: int(rank < size) for rank, split in enumerate(shares)}
    counts = {split: max(least[split], int(size * share + 1e-9)) for split, share in shares.items()}
    while (missing := size - sum(counts.values())) != 0:
        # The split that is furthest below its share gets one more, the one that is furthest above it gives one up.
        step = 1 if missing > 0 else -1
        open_to = [split for split in shares if step > 0 or counts[split] > least[split]]
        counts[max(open_to, key=lambda split: step * (size * shares[split] - counts[split]))] += step
    return counts


def warn_of_absent(where: str, split: str, present: Iterable[Any], sizes: Mapping[Any, int]) -> None:
    """Say in the log which classes have nothing in a split. `sizes`: how many examples each class has in all splits."""
    here = set(present)
    absent = [name for name in sizes if name not in here]
    if absent:
        named = ", ".join(f"{name!r} ({sizes[name]} in all)" for name in absent[:NAMED])
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        warn_once(log, "%s: the split %s has nothing of %d class(es): %s%s", where, split, len(absent), named, more)


def check_images(source: str, window: Any, max_pixels: int) -> None:
    """Raise `UserError` unless `window` is None or two rising numbers and `max_pixels` a number from 1 up."""
    if window is not None and (len(window) != 2 or not window[0] < window[1]):
        raise UserError(f"{source}.window={window!r}: give (low, high), the values that become black and white, low < high")
    if max_pixels < 1:
        raise UserError(f"{source}.max_pixels={max_pixels}: give a whole number from 1 up")


def _digest(key: str) -> bytes:
    return hashlib.sha256(encoded(key)).digest()


def encoded(text: str) -> bytes:
    """UTF-8; the name of a file that is none as the bytes it has."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, as JSON may spell one
        return text.encode("utf-8", "surrogatepass")


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """32 hexadecimal digits that change with any part, with their order and with where one ends."""
    return fingerprint_of(map(framed, parts))


def framed(part: str | bytes) -> bytes:
    """A part with its length before it."""
    data = encoded(part) if isinstance(part, str) else part
    return len(data).to_bytes(8, "big") + data


def fingerprint_of(pieces: Iterable[bytes]) -> str:
    """The fingerprint of parts that are framed and put together already, in pieces of any length."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:32]
