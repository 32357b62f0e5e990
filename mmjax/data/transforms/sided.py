"""Words of a text that a moved image makes false: what is on the left of an image is on the right of its mirror image."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data.types import Record

# English, German, French, Spanish, Chinese and Japanese, Korean; `*` stands for any ending.
SIDED = (
    *("left*", "right", "rightmost", "rightward*", "righthand*", "links", "linke*", "linkerhand", "rechts", "rechte*"),
    *("gauche*", "droite*", "izquierd*", "derech*", "左", "右", "왼쪽", "오른쪽"),
)
PLACED = (
    *SIDED,
    *("top", "topmost", "bottom", "above", "below", "upper*", "lower*", "under", "over", "beneath", "upside", "upright"),
    *("oben", "unten", "über", "unter", "obere*", "untere*", "haut", "bas", "dessus", "dessous", "sur", "sous"),
    *("arriba", "abajo", "encima", "debajo", "sobre", "上", "下", "위", "아래"),
)
WIDE = "\u2e80"  # from here on scripts that put no spaces between words, or join endings to them
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def says(record: Record, words: tuple[str, ...]) -> bool:
    """Whether any text of a record, its class's name included, has one of these words.

    A word stands by itself: other letters do not touch it, digits, hyphens and underscores may (`left-hand`, `left_arrow`, and
    `TurnLeft` as well). Capitals and forms of Unicode do not matter, and `*` at its end stands for any letters. Words of
    Chinese, Japanese and Korean count wherever they stand.
    """
    find = _pattern(words) if words else None
    return find is not None and any(
        find.search(HUMP.sub(" ", unicodedata.normalize("NFKC", text))) for value in record.values() for text in _texts(value)
    )


def check_words(field: str, words: tuple[str, ...]) -> None:
    """Raises `UserError` unless these are words: a lone string would be taken for its letters, and "" stands everywhere."""
    if isinstance(words, str) or not all(isinstance(word, str) and word.strip("* ") for word in words):
        raise UserError(f"{field}={words!r}: give a tuple of words, such as ('left', 'right'), or () for none")


def check_before(transforms: Sequence[Any]) -> None:
    """Raises `UserError` for a template that says what a transform before it has looked for among the texts."""
    for place, first in enumerate(transforms):
        words = (*getattr(first, "sided", ()), *getattr(first, "placed", ()))
        for later in transforms[place + 1 :]:
            for template in getattr(later, "templates", ()):
                if says({"template": template}, words):
                    who, writes = type(first).__name__, type(later).__name__
                    raise UserError(
                        f"transforms: {writes} writes {template!r} after {who} has looked whether a text says so: put {writes} "
                        f"before {who}"
                    )


@functools.lru_cache(maxsize=16)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    letter = r"[^\W\d_]"
    found = []
    for word in words:
        stem, ending = word.removesuffix("*"), f"{letter}*" if word.endswith("*") else ""
        whole = re.escape(stem) if max(stem) >= WIDE else f"(?<!{letter}){re.escape(stem)}{ending}(?!{letter})"
        found.append(whole)
    return re.compile("|".join(found), re.IGNORECASE)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
