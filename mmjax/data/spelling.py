"""The end of a message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, options: Iterable[str]) -> str:
    """'; did you mean "b"? (one of "a", "b")', or ' (one of "a", "b")' where nothing is near."""
    options = list(options)
    close = difflib.get_close_matches(name, options, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess} (one of {', '.join(map(repr, options))})"
