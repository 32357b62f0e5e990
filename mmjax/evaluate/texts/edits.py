"""Word and character error rates, BLEU and chrF, by the packages that published figures come from."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

from mmjax.core.errors import UserError
from mmjax.evaluate.texts.captions import check


def package(name: str) -> ModuleType:
    """A package that only these metrics need. Raises `UserError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed, which this metric is computed by: pip install 'mmjax[texts]'") from error


def error_rates(texts: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """(word error rate, character error rate) of the whole corpus: edits by words and characters of the references.

    As `jiwer` computes them: letters, case and punctuation count as they are written, spaces around a text and runs of them do
    not for words. Above 1 where more is inserted than there is; where all references are empty, the number of insertions.

    Raises:
      UserError: `jiwer` is not installed.
    """
    check(texts, [[one] for one in references])
    jiwer = package("jiwer")
    return float(jiwer.wer(list(references), list(texts))), float(jiwer.cer(list(references), list(texts)))


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """(BLEU from 0 to 100, its signature) of the whole corpus, with `sacrebleu`'s defaults: tokens `13a`, smoothing `exp`.

    Texts may have different numbers of references.

    Raises:
      UserError: `sacrebleu` is not installed.
    """
    return _corpus(package("sacrebleu.metrics").BLEU(), texts, references)


def corpus_chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """(chrF2 from 0 to 100, its signature) of the whole corpus (Popovic 2015), with `sacrebleu`'s defaults.

    Raises:
      UserError: `sacrebleu` is not installed.
    """
    return _corpus(package("sacrebleu.metrics").CHRF(), texts, references)


def _corpus(metric: object, texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    check(texts, references)
    most = max(map(len, references))
    streams = [[own[n] if n < len(own) else None for own in references] for n in range(most)]
    score = metric.corpus_score(list(texts), streams).score  # type: ignore[attr-defined]
    return float(score), str(metric.get_signature())  # type: ignore[attr-defined]
