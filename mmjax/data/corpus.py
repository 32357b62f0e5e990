"""The texts that a tokenizer learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmjax.data.spans import Span
from mmjax.data.tags import Tags
from mmjax.data.texts import column_texts
from mmjax.data.types import Records


def corpus(
    columns: Mapping[str, Any], transforms: Sequence[Any], tokenizer: str, opened: Callable[[], Records]
) -> Iterator[str]:
    """All that a tokenizer should be trained on, see `Data.texts`; the source is opened where it has any."""
    own = [key for key, spec in columns.items() if getattr(spec, "tokenizer", None) == tokenizer]
    if tokenizer and not own:
        return
    records = opened()
    for key in own if tokenizer else [key for key in own if key != "text"]:
        if isinstance(spec := columns[key], Tags):  # each with the space that is before it in a text
            yield from (f" {word}" for word in column_texts(records, spec.words))
        elif isinstance(spec, Span):
            for field in (spec.question, spec.context):
                yield from column_texts(records, field)
        else:
            yield from column_texts(records, key)
    if getattr(columns.get("text"), "tokenizer", "") == tokenizer:
        if not tokenizer:
            yield from records.texts()
        for transform in transforms:
            if hasattr(transform, "texts"):
                yield from transform.texts(records)
