"""Fields that only some of the examples have: which of them are read."""

from __future__ import annotations

import dataclasses
import logging

from mmjax.data.fields import KINDS, Fields
from mmjax.data.once import warn_once


def is_read(log: logging.Logger, spec: Fields, field: str, count: int, size: int, of: str = "", shown: str = "") -> bool:
    """Whether a field is read that `count` of `size` examples have, and say so where that is not all of them.

    One of a default name is, where half of them have it, and one that records may lack (`optional`) wherever any has it.

    Args:
      of: what the examples are of all, "the first " for instance.
      shown: the field as it is said, where that is otherwise.
    """
    names = {kind: getattr(spec, "pair_field" if kind == "text_pair" else f"{kind}_field", "") for kind in KINDS}
    optional = field in {names[kind] for kind in KINDS if kind in spec.optional}
    default = field in {f.default for f in dataclasses.fields(spec) if f.name.endswith("_field")}
    left_out = default and not optional and 2 * count < size
    if 0 < count < size:
        what = "it is left out" if left_out else "the others lack it" if optional else "the others are unreadable"
        warn_once(log, "%s: %d of %s%d examples have %r; %s", type(spec).__name__, count, of, size, shown or field, what)
    return count > 0 and not left_out
