"""Named entities in texts, from a head that says a tag for each token."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.data.schemes import OUTSIDE, PREFIXES, parted
from mmjax.predict.heads import class_names
from mmjax.predict.work import Work

logger = logging.getLogger("mmjax")


@dataclasses.dataclass
class Open:
    """An entity that may go on."""

    kind: str
    start: int
    end: int
    scores: list[float]
    ended: bool = False


def find(work: Work, head: str, texts: Sequence[str], rows: Callable[..., Any]) -> list[list[dict[str, Any]]]:
    """The entities of each text: see `Predictor.entities`.

    Args:
      rows: `Predictor._rows`.

    Raises:
      UserError: no tokenizer, or one that does not say where its tokens stand.
    """
    if work.tokenizer is None:
        raise UserError(f"{work.path}: there is no tokenizer in it, so it reads no text")
    found = work.tokenizer.encode_places(texts, work.length())
    if cut := int(found["truncated"].sum()):
        logger.warning("mmjax: %d of %d texts were cut to %d tokens", cut, len(texts), found["ids"].shape[1])
    batch = {"text": found["ids"], "text_mask": found["mask"]}
    logits_NTC = rows(("entities", head), lambda forward: forward.head(head), batch)
    shares_NTC = np.exp(logits_NTC - logits_NTC.max(-1, keepdims=True))
    shares_NTC /= shares_NTC.sum(-1, keepdims=True)
    names = class_names(work, head, logits_NTC.shape[-1])
    return [grouped(*one, names) for one in zip(texts, shares_NTC, found["places"], strict=True)]


def grouped(text: str, shares_TC: np.ndarray, places_T2: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The entities of a text: tokens side by side whose likeliest tags have one type are one entity, unless a tag begins one.

    That is `aggregation_strategy="simple"` of transformers' token-classification pipeline: each token's tag counts, also that
    of a later piece of a word. What that pipeline does not know: after `E-` or `S-` an entity is over, and `S-` begins one.

    Args:
      shares_TC: of the classes; `places_T2` of the tokens in the text, -1 of special ones.
      names: of the classes.
    """
    found: list[Open] = []
    for share_C, (start, end) in zip(shares_TC, places_T2.tolist(), strict=True):
        if start < 0:
            continue
        tag = names[int(share_C.argmax())]
        prefix, kind = parted(tag)
        prefix, kind = (prefix, kind) if kind and prefix in PREFIXES["iobes"] else ("I", tag)
        score = float(share_C.max())
        last = found[-1] if found else None
        if last is None or last.kind != kind or last.ended or prefix in ("B", "S"):
            found.append(last := Open(kind, start, end, []))
        last.end, last.ended = end, prefix in ("E", "S")
        last.scores.append(score)
    return [_told(one, text) for one in found if one.kind != OUTSIDE]


def _told(one: Open, text: str) -> dict[str, Any]:
    said = text[one.start : one.end]
    start = one.start + len(said) - len(said.lstrip())  # a token of byte-level BPE may hold the space before its word
    said = said.strip()
    return {"type": one.kind, "text": said, "start": start, "end": start + len(said), "score": float(np.mean(one.scores))}
