"""Prompts of classes: the texts that stand for them, and the one vector a class that they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError


def check_templates(field: str, templates: Sequence[str]) -> None:
    """Raises UserError for no templates, or one without a place for the name of the class."""
    if not templates or isinstance(templates, str):
        raise UserError(f"{field}={templates!r}: give at least one, such as 'a photo of a {{}}.'")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"{field} has {template!r}, which lacks the {{}} where the class name goes")


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The texts, class by class: all templates of the first, then all of the second."""
    return [template.replace("{}", name) for name in classes for template in templates]


def mean_vectors(prompt_PE: Any, classes: int) -> Any:
    """[C, E] of unit length: of each class the mean of the unit embeddings of its prompts (Radford 2021, section 3.1.4).

    Args:
      prompt_PE: [P, E] of unit length, in the order of `prompts`; of numpy or JAX, as the result is.
    """
    mean_CE = prompt_PE.reshape(classes, -1, prompt_PE.shape[-1]).mean(axis=1)
    # The epsilon under the root keeps the gradient finite where prompts cancel each other.
    return mean_CE * ((mean_CE * mean_CE).sum(axis=1, keepdims=True) + 1e-12) ** -0.5


def by_name(label_N: np.ndarray, own: tuple[str, ...], classes: tuple[str, ...], data: str) -> np.ndarray:
    """Labels as places among `classes`, where those hold the data's own names; names of their own go by place.

    Raises:
      UserError: they hold some of the data's names and not all.
    """
    if not classes or not own or classes == own or not set(own) & set(classes):
        return label_N
    stranger = next((name for name in own if name not in classes), None)
    if stranger is not None:
        raise UserError(f"classes={classes}: data.{data} has the class {stranger!r}, which is not one of them")
    return np.array([classes.index(name) for name in own])[label_N]
