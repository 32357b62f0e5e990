"""Letters with the marks that are written on them: one letter to a reader, several characters of a text."""

from __future__ import annotations

import unicodedata

MARKS = ("Mn", "Mc", "Me")  # Unicode's general categories of what is written on the letter before it
JOINERS = "\u200c\u200d"


def is_mark(text: str, place: int) -> bool:
    """Whether the character there goes with the one before it (Unicode Standard Annex 29, its rule GB9 alone)."""
    if not 0 < place < len(text):
        return False
    return text[place] in JOINERS or unicodedata.category(text[place]) in MARKS


def letter_end(text: str, end: int) -> int:
    """The end of a part of a text, moved over the marks of its last letter."""
    while is_mark(text, end):
        end += 1
    return end
