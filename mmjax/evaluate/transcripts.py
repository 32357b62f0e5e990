"""What a head of letters hears of each sound, held against what was said."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.data.strings import strings
from mmjax.evaluate.evaluation import Evaluation
from mmjax.evaluate.texts.scores import SCORES, check_scores
from mmjax.evaluate.written import check_references, show
from mmjax.generate.ctc import text_of, transcribed
from mmjax.objectives.ctc import spoken
from mmjax.objectives.routes import check_classes


@dataclasses.dataclass(frozen=True)
class Transcripts:
    """`word_error_rate` and `character_error_rate` of what the objective `CTC` has trained; see `texts.edits.error_rates`.

    References are letter for letter what people wrote: what the tokenizer folds (case) or does not know counts as an error.
    Examples without a reference do not count, empty ones do (silence). Beside the scores it gives `letters`, the mean length of
    a transcript, and `empty`, the share of transcripts of no letter.

    Attributes:
      head: the head, as that of `CTC`.
      text: the modality whose tokenizer the letters are of; its padding token is the blank.
      references: the batch key of what was said, a column of `Strings`.
      beams: 1 for the likeliest class of each frame; more for a prefix beam search (`generate.ctc`).
      scores: names of `evaluate.texts.scores.SCORES`.
      share_in_training: of the data, asked while training; see `Written`.
      samples: so many of the transcripts are logged, with their references.
      data: the dataset.

    Raises:
      UserError: an unknown score or one whose package is not installed, a head of other classes than the tokenizer has tokens,
        data without references.

    Usage:
      data = Data(..., columns={"audio": Audio(seconds=3.0), "references": Strings(of="text")})
      evaluate = {"transcripts": Transcripts()}
    """

    head: str = "ctc"
    text: str = "text"
    references: str = "references"
    beams: int = setting(least=1, default=1)
    scores: tuple[str, ...] = ("error_rates",)
    share_in_training: float = setting(above=0, most=1, default=1.0)
    samples: int = setting(least=0, default=3)
    data: str = "validation"

    def __post_init__(self) -> None:
        check_scores(self.scores)

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        for name in self.scores:
            SCORES[name].check()
        tokenizer = evaluation.tokenizer("transcripts", self.text)
        head, beams, blank_id, size = self.head, self.beams, tokenizer.pad_id, tokenizer.vocab_size
        references, text, data = self.references, self.text, self.data

        def hear(forward: Forward, batch: Batch) -> dict[str, Array]:
            check_references(batch, references, text, data)
            logits_BTV, frames_BT = spoken(forward, head)
            check_classes(head, logits_BTV, size, f"the tokenizer has {size} tokens")
            found = transcribed(logits_BTV, frames_BT, blank_id, beams)
            asked = {"index": batch["index"].astype(jnp.int32), "references": batch[references]}
            return {**asked, "ids": found.ids, "lengths": found.lengths, "scores": found.scores}

        rows = evaluation.rows("transcripts", data, params, hear, share=self.share_in_training)
        written = strings(rows["references"])
        kept = [n for n, own in enumerate(written) if own]
        if not kept:
            raise UserError(f"data={data!r} has no example with a text in {references!r}: scores need at least one")
        found: list[dict[str, Any]] = [
            {
                "index": int(rows["index"][n]),
                "text": text_of(tokenizer, rows["ids"][n][: rows["lengths"][n]]),
                "references": list(written[n]),
                "log_likelihood": float(rows["scores"][n]),
            }
            for n in kept
        ]
        evaluation.keep(found)
        show("transcripts", data, found[: self.samples])
        metrics: dict[str, float] = {}
        for name in self.scores:
            metrics |= SCORES[name]([one["text"] for one in found], [one["references"] for one in found])
        lengths_N = rows["lengths"][kept]
        return metrics | {"letters": float(lengths_N.mean()), "empty": float((lengths_N == 0).mean())}
