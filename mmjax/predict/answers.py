"""`mmjax predict`: one JSON object an input, in order, as soon as it is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data.images import read_image
from mmjax.data.sources.folder import EXTENSIONS
from mmjax.data.types import BadRecordError
from mmjax.predict.predictor import Predictor


def listed(inputs: Sequence[str]) -> list[str]:
    """Image files, those of folders in the order of their paths among them.

    Raises:
      UserError: a folder without images.
    """
    found: list[str] = []
    for one in inputs:
        if not Path(one).is_dir():
            found.append(one)
            continue
        own = sorted(str(p) for p in Path(one).rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if not own:
            raise UserError(f"{one}: no image in this folder ({', '.join(EXTENSIONS)})")
        found += own
    return found


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of each input.

    Attributes:
      classes: of zero-shot classification; () for those of the run's head.
      question: asked of each image; "" for none.
      top_k: so many classes; 0 for all.
      new_tokens: at most so many tokens of a text.
      decoder: which writes; "" for the only one.
    """

    classes: tuple[str, ...] = ()
    question: str = ""
    top_k: int = 5
    new_tokens: int = 32
    decoder: str = ""


def answers(ask: Predictor, images: Sequence[str], texts: Sequence[str], asked: Asked) -> Iterator[dict[str, Any]]:
    """What the run says of each input: classes where a head or a list names them, else a text where a decoder writes one.

    Args:
      images: paths; a file that is no image is an answer with an `error`.
      texts: where there are no images, what is classified or gone on with.

    Raises:
      UserError: a model that does neither.
    """
    return each(ask, images, texts, lambda kind, some: _said(ask, kind, some, asked))


def each(
    ask: Predictor, images: Sequence[str], texts: Sequence[str], said: Callable[[str, list[Any]], list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """What `said` gives of each input, some at a time, with the input's name; a file that is no image has an `error`.

    Args:
      said: (`image`, pixels) or (`text`, texts) -> an answer for each.
    """
    whole: list[Any] = list(images) or list(texts)
    kind = "image" if images else "text"
    for start in range(0, len(whole), ask.batch_size):
        some = whole[start : start + ask.batch_size]
        read, errors = _readable(ask, some) if images else (some, {})
        known = iter(said(kind, read) if read else ())
        for one in some:
            yield {kind: one, "error": errors[one]} if one in errors else {kind: one, **next(known)}


def _readable(ask: Predictor, paths: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
    """The pixels of those that can be read, and path -> why of the others."""
    read, errors = [], {}
    for path in paths:
        try:
            read.append(read_image(path))
        except BadRecordError as error:
            errors[path] = error.reason
    return read, errors


def _said(ask: Predictor, kind: str, some: list[Any], asked: Asked) -> list[dict[str, Any]]:
    questions = [asked.question] * len(some) if asked.question else None
    images, texts = (some, questions) if kind == "image" else (None, some)
    if asked.classes or ask.classifies():
        return [{"classes": row} for row in ask.classify(images, texts, asked.top_k, classes=asked.classes)]
    name = "answer" if asked.question or kind == "text" else "caption"
    return [{name: text} for text in ask.generate(texts, images, max_new_tokens=asked.new_tokens, decoder=asked.decoder)]
