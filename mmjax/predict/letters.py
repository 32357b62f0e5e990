"""The heads of a run that say a letter a frame of sound, and what their letters are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mmjax.data import Tokenizer
from mmjax.data.making import text_spec
from mmjax.evaluate import Transcripts
from mmjax.objectives import CTC
from mmjax.train.experiment import Experiment

HEAD = "ctc"  # of a model that came from HuggingFace


@dataclasses.dataclass(frozen=True)
class Letters:
    """Of a head that was trained by `CTC`.

    Attributes:
      tokenizer: whose tokens its classes are.
      beams: with so many the run's own `Transcripts` searches.
    """

    tokenizer: Tokenizer
    beams: int = 1


def letters_of(e: Experiment, tokenizers: Mapping[str, Tokenizer]) -> dict[str, Letters]:
    """Head -> what its classes are, of the heads that a task trains on letters; where nothing is trained, of a model that came
    with its weights, `HEAD`."""
    found: dict[str, Letters] = {}
    if not e.tasks and HEAD in e.model.heads and (tokenizer := tokenizers.get("")) is not None:
        found[HEAD] = Letters(tokenizer)
    for task in e.tasks.values():
        if isinstance(objective := task.objective, CTC):
            columns = e.data[task.data].columns if task.data in e.data else {}
            tokenizer = tokenizers.get(getattr(text_spec(columns, objective.text), "tokenizer", ""))
            own = (one.beams for one in e.evaluate.values() if isinstance(one, Transcripts) and one.head == objective.head)
            if tokenizer is not None:
                found.setdefault(objective.head, Letters(tokenizer, next(own, 1)))
    return found
