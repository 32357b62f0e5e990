"""Which heads of a model answer, and what they read."""

from __future__ import annotations

from typing import Any

from mmjax.core.errors import UserError
from mmjax.models.forward import BoundForward
from mmjax.models.heads import TokenClassifier
from mmjax.predict.work import Work


def classifying(work: Work) -> list[str]:
    """The heads that say the class of a whole input."""
    named = [name for name in work.model.heads if name in work.classes or name == "classes"]
    return [name for name in named if not isinstance(work.model.heads[name], TokenClassifier)]


def tagging(work: Work) -> list[str]:
    """The heads that say a class for each token of a text alone."""
    named = [name for name in work.model.heads if name in work.classes or name == "token_classes"]
    return [name for name in named if isinstance(work.model.heads[name], TokenClassifier) and reads(work, name) == {"text"}]


def reads(work: Work, head: str) -> set[str]:
    """The modalities that a head reads."""
    forward, said = BoundForward(work.model, work.params, {}), work.model.heads[head].input
    return {one for name in ((said,) if isinstance(said, str) else said) for one in forward.modalities(name)}


def check_read(work: Work, head: str, images: Any, texts: Any) -> None:
    """Raises UserError where a head reads something else than what is given."""
    own = reads(work, head)
    given = {name for name, inputs in (("image", images), ("text", texts)) if inputs is not None}
    if given and own != given:
        tip = {"text": " (--question, of an image)", "image": ""}
        wanted = " and ".join(f"{'an' if one[0] in 'aeiou' else 'a'} {one}{tip.get(one, '')}" for one in sorted(own))
        raise UserError(f"heads.{head} reads {wanted}; it was given {' and '.join(sorted(given))}")


def class_names(work: Work, head: str, count: int) -> tuple[str, ...]:
    """The names of a head's classes; where nothing says them their numbers, as `transformers` writes those of its models."""
    bare = "LABEL_{}" if work.model.huggingface else "{}"
    return work.classes.get(head) or tuple(bare.format(i) for i in range(count))
