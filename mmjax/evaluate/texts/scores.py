"""The metrics of texts by name: of a whole corpus, as an evaluator asks for them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from mmjax.core.errors import UserError, nearest
from mmjax.evaluate.texts import answers, captions, edits

Texts = Sequence[str]
References = Sequence[Sequence[str]]
logger = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Score:
    """Texts and the references of each -> metric name -> value.

    Attributes:
      package: what has to be installed for it; "" for nothing.
    """

    of: Callable[[Texts, References], dict[str, float]]
    package: str = ""

    def __call__(self, texts: Texts, references: References) -> dict[str, float]:
        return self.of(texts, references)

    def check(self) -> None:
        """Raises UserError where its package is not installed."""
        if self.package:
            edits.package(self.package)


def _bleu(texts: Texts, references: References) -> dict[str, float]:
    return {f"bleu{n}": score for n, score in enumerate(captions.bleu(texts, references), 1)}


def _mean(name: str, of: Callable[[Texts, References], list[float]]) -> Score:
    def mean(texts: Texts, references: References) -> dict[str, float]:
        return {name: sum(of(texts, references)) / len(texts)}

    return Score(mean)


def _error_rates(texts: Texts, references: References) -> dict[str, float]:
    if (many := max(map(len, references))) > 1:
        raise UserError(f"scores has 'error_rates', which have one reference a text, and there are up to {many}")
    word, character = edits.error_rates(texts, [own[0] for own in references])
    return {"word_error_rate": word, "character_error_rate": character}


def _signed(name: str, of: Callable[[Texts, References], tuple[float, str]]) -> Score:
    def score(texts: Texts, references: References) -> dict[str, float]:
        value, signature = of(texts, references)
        logger.info("%s: %s", name, signature)
        return {name: value}

    return Score(score, "sacrebleu")


SCORES = {
    "bleu": Score(_bleu),
    "rouge_l": _mean("rouge_l", captions.rouge_l),
    "cider_d": _mean("cider_d", captions.cider_d),
    "vqa_accuracy": _mean("vqa_accuracy", answers.vqa_accuracy),
    "exact_match": _mean("exact_match", answers.exact_match),
    "f1": _mean("f1", answers.f1),
    "error_rates": Score(_error_rates, "jiwer"),
    "sacrebleu": _signed("sacrebleu", edits.corpus_bleu),
    "chrf": _signed("chrf", edits.corpus_chrf),
}


def check_scores(names: Sequence[str]) -> None:
    """Raises `UserError` where there are none, or for one that is not in `SCORES`."""
    if not names:
        raise UserError(f"scores=(): name some of {', '.join(SCORES)}")
    for name in names:
        if name not in SCORES:
            raise UserError(f"scores has {name!r}{nearest(name, SCORES)}: there are {', '.join(SCORES)}")
