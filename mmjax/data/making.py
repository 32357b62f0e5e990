"""Columns that make a text of other keys of a record: which they are, and which text is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.data.spans import Span
from mmjax.data.tags import Tags

MAKERS = (Tags, Span)


def text_spec(columns: Mapping[str, Any], key: str) -> Any:
    """What says how a text gets its tokens: the column of that key, or the one that makes it; None for neither."""
    made = (spec for spec in columns.values() if isinstance(spec, MAKERS) and spec.of == key)
    return columns.get(key) or next(made, None)
