"""Metrics of texts: pure functions of lists of strings, no model and no arrays. Evaluators call them on what a model wrote."""

from mmjax.evaluate.texts.answers import exact_match, f1, vqa_accuracy
from mmjax.evaluate.texts.captions import bleu, cider_d, rouge_l
from mmjax.evaluate.texts.edits import corpus_bleu, corpus_chrf, error_rates
from mmjax.evaluate.texts.words import words

__all__ = [
    "bleu",
    "cider_d",
    "corpus_bleu",
    "corpus_chrf",
    "error_rates",
    "exact_match",
    "f1",
    "rouge_l",
    "vqa_accuracy",
    "words",
]
