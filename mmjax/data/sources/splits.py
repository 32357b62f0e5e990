"""What the sources share: splits that stay put when data is added, and fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from mmjax.core.errors import UserError
from mmjax.data.spelling import nearest

SPLITS = ("train", "validation", "test")
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}


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
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if point < fractions[0]:
        return "train"
    return "validation" if point < fractions[0] + fractions[1] else "test"


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """32 hexadecimal digits that change with any part, with their order and with where one ends."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:32]
