"""What stands where an objective should: a missing one, a word, a class."""

from __future__ import annotations

from typing import Any

from mmjax.core.errors import UserError, nearest
from mmjax.objectives import OBJECTIVES


def check_given(objective: Any, example: str = "") -> None:
    """Hold what a spec's field `objective` has against what it should have.

    Args:
      example: of what would be right, `Perplexity(CausalLM())` for instance.

    Raises:
      UserError: None, a text, a class instead of what it makes, or anything else that cannot be called.
    """
    like = f", for instance {example}" if example else ""
    if objective is None:
        raise UserError(f"objective is missing: give one{like}; there are {', '.join(OBJECTIVES)}")
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise UserError(f"objective={objective!r} is a text{nearest(objective, OBJECTIVES)}: give an objective{like}")
        raise UserError(f"objective={objective!r} is a text: give the objective itself, {OBJECTIVES[objective].__name__}(...)")
    if isinstance(objective, type):
        raise UserError(f"objective={objective.__name__} is a class: give what it makes, {objective.__name__}(...)")
    if not callable(objective):
        raise UserError(f"objective={objective!r}: give one of {', '.join(OBJECTIVES)}{like}")
