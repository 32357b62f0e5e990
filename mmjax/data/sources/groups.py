"""Which lines of a manifest are each other's positives, as numbers that never collide."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

Row = dict[str, Any]


def by_relation(rows: Sequence[Row]) -> list[int]:
    """A number for each row, equal for rows of one image or with a caption in common, and for what these hang together with.

    The number is that of a group's first row.
    """
    parents = list(range(len(rows)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    first: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows):
        text = row.get("text", ())
        keys = [("text", one) for one in ((text,) if isinstance(text, str) else text)]
        for key in [*keys, *([("image", row["image"])] if "image" in row else [])]:
            a, b = root(first.setdefault(key, number)), root(number)
            parents[max(a, b)] = min(a, b)
    return [root(row) for row in range(len(rows))]


def numbered(values: Sequence[Hashable]) -> list[int]:
    """Whole numbers that fit int32 as they are, where all of them are such; else numbers in the order of first appearance."""
    kept = [value for value in values if isinstance(value, int) and 0 <= value < 2**31]
    if len(kept) == len(values):
        return kept
    places: dict[Hashable, int] = {}
    return [places.setdefault(value, len(places)) for value in values]
