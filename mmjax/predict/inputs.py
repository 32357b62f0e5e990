"""What may be given where inputs are wanted: one or a list of them, each of its kind."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.core.errors import UserError


def as_list(inputs: Any) -> list[Any] | None:
    """One input as a list of one. Raises `UserError` where there is none in it."""
    if inputs is None:
        return None
    if isinstance(inputs, list | tuple) and not inputs:
        raise UserError("nothing is given: a list of no inputs")
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def as_texts(inputs: Any) -> list[str] | None:
    """The same of texts."""
    found = as_list(inputs)
    for one in found or ():
        if not isinstance(one, str):
            raise UserError(f"a text is a string; found {type(one).__name__} {one!r}"[:100])
        try:
            one.encode()
        except UnicodeEncodeError:
            said = one.encode("utf-8", "backslashreplace").decode()
            raise UserError(f"a text holds what is no character: {said[:40]!r}") from None
    return found


def as_prompts(inputs: Any) -> list[Any] | None:
    """The same of texts, or of the token ids of each."""
    found = as_list(inputs)
    for one in found or ():
        ids = isinstance(one, list | tuple) and one and all(isinstance(token, int | np.integer) for token in one)
        if not ids:
            as_texts([one])
    return found
