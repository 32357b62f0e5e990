"""Which heads of a model answer, and what they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.core.errors import UserError
from mmjax.models.forward import BoundForward
from mmjax.models.heads import TokenClassifier
from mmjax.predict.inputs import as_list, as_texts
from mmjax.predict.work import Work


def classifying(work: Work) -> list[str]:
    """The heads that say the class of a whole input."""
    named = [name for name in work.model.heads if (name in work.classes or name == "classes") and name not in work.measured]
    return [name for name in named if not isinstance(work.model.heads[name], TokenClassifier)]


def tagging(work: Work) -> list[str]:
    """The heads that say a class for each token of a text alone."""
    named = [name for name in work.model.heads if name in work.classes or name == "token_classes"]
    return [name for name in named if isinstance(work.model.heads[name], TokenClassifier) and reads(work, name) == {"text"}]


def extracting(work: Work) -> list[str]:
    """The heads that say of each token of a text alone whether it begins or ends an answer."""
    named = {**dict.fromkeys(work.spans), **dict.fromkeys(name for name in work.model.heads if name == "spans")}
    return [name for name in named if name in work.model.heads and reads(work, name) == {"text"}]


def chosen(work: Work, heads: list[str], asked: str, do: str, can: str) -> str:
    """The head that is asked for, or the only one. Raises `UserError` where it is none of `heads`, which do something."""
    if asked not in heads if asked else len(heads) != 1:
        said = f"head={asked!r}: " if asked else ""
        raise UserError(f"{work.path}: {said}heads that {do} are {', '.join(heads) or 'none'}; {can}")
    return asked or heads[0]


def reads(work: Work, head: str) -> set[str]:
    """The modalities that a head reads."""
    forward, said = BoundForward(work.model, work.params, {}), work.model.heads[head].input
    return {one for name in ((said,) if isinstance(said, str) else said) for one in forward.modalities(name)}


def suits(work: Work, read: set[str], given: set[str]) -> bool:
    """Whether these modalities are what is read, or as much of it as an input needs to have."""
    return bool(given) and given <= read and read - given <= {*work.optional}


def check_read(work: Work, head: str, inputs: Mapping[str, Any]) -> None:
    """Raises UserError where a head reads something else than what is given of each modality; None is nothing."""
    own = reads(work, head)
    given = {name for name, some in inputs.items() if some is not None}
    if given and not suits(work, own, given):
        tip = {"text": " (--question, of an image)", "image": ""}
        wanted = " and ".join(f"{'an' if one[0] in 'aeiou' else 'a'} {one}{tip.get(one, '')}" for one in sorted(own))
        raise UserError(f"heads.{head} reads {wanted}; it was given {' and '.join(sorted(given))}")


def check_pairs(work: Work, texts: Any, pairs: Any) -> None:
    """Raises UserError where second texts are missing, are not as many, or are more than a run was trained on."""
    first, second = [one for one in as_list(texts) or () if one is not None], as_texts(pairs)
    if second is not None and len(first) != len(second):
        raise UserError(f"{len(first)} texts and {len(second)} pairs: give as many of both")
    if second is None and work.pairs and first:
        raise UserError(f"{work.path} was trained on two texts at once: give the second (--pair, or 'text_pair' in a manifest)")
    if second is not None and work.pairs is False:
        raise UserError(f"{work.path} was trained on one text at a time: leave the second out")


def class_names(work: Work, head: str, count: int) -> tuple[str, ...]:
    """The names of a head's classes; where nothing says them their numbers, as `transformers` writes those of its models."""
    bare = "LABEL_{}" if work.model.huggingface else "{}"
    return work.classes.get(head) or tuple(bare.format(i) for i in range(count))
