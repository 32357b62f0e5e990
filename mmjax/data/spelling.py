"""The end of a message about an unknown name, with all the names there are."""

from __future__ import annotations

from collections.abc import Iterable

from mmjax.core.errors import nearest as near


def nearest(name: str, options: Iterable[str]) -> str:
    """ " (did you mean 'b'?): one of 'a', 'b'", or ": one of 'a', 'b'" where nothing is near."""
    options = list(options)
    return f"{near(name, options)}: one of {', '.join(map(repr, options))}"
