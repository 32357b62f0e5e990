"""Further tokens of a tokenizer that are never cut: markers of entities, for instance."""

from __future__ import annotations

from typing import Any

from mmjax.core.errors import UserError


def with_special(huggingface: Any, special: tuple[str, ...]) -> Any:
    """A `transformers` tokenizer with further tokens: those that its vocabulary has keep their ids, others come after it.

    Raises:
      UserError: one that stands twice, or is empty.
    """
    if isinstance(special, str) or len(set(special)) < len(special) or not all(special):
        raise UserError(f"tokenizer.special={special!r}: give a tuple of tokens, each once")
    if special:
        huggingface.add_tokens(list(special), special_tokens=True)
    return huggingface
