"""JSON as every reader takes it: the words NaN and Infinity, which Python would write, are none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.core.errors import UserError

UNSEEN = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


def read(file: Path) -> Any:
    """What a file holds.

    Raises:
      UserError: it is not JSON. OSError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{file}: not JSON ({error})") from None


def plain(value: Any) -> Any:
    """The same value with what JSON cannot hold made plain: an infinite number or NaN is None, a scalar array a number."""
    if isinstance(value, Mapping):
        return {str(name): plain(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, (np.generic, np.ndarray)) or hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def line(value: Any) -> str:
    """One line of JSON. Finite floats are written so that reading them back gives the same bits."""
    return json.dumps(plain(value), allow_nan=False)


def readable(value: Any) -> str:
    """The same with letters of all languages as they are: for people, and for files in UTF-8. What parts lines, moves a
    cursor or is half a character stays written as JSON's \\uXXXX."""
    return UNSEEN.sub(lambda found: _escaped(found[0]), json.dumps(plain(value), allow_nan=False, ensure_ascii=False))


def lines(values: Iterable[Any]) -> str:
    """JSON lines in `readable`'s letters, each ended."""
    return "".join(f"{readable(value)}\n" for value in values)


def fitting(text: str, encoding: str | None) -> str:
    """A text in which each character that an encoding has not stands as JSON's \\uXXXX: of a line of JSON, the same line."""
    own = encoding or "utf-8"
    if text.encode(own, "ignore").decode(own, "ignore") == text:
        return text
    return "".join(one if one.encode(own, "ignore") else _escaped(one) for one in text)


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def pages(value: Any) -> str:
    """JSON for people, a field a line, with its last line ended."""
    return json.dumps(plain(value), allow_nan=False, indent=1) + "\n"
