"""Of which word of its text a token is: words as the tokenizer parts them, or as Chinese is segmented."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmjax.core.errors import UserError

Spans = list[tuple[int, int]]  # first character of each word, and the one after its last


def jieba(text: str) -> Spans:
    """Words of Chinese by jieba's dictionary and model. Raises `UserError` where it is not installed."""
    try:
        import rjieba  # type: ignore[import-not-found]
    except ImportError:
        raise UserError("words='jieba' needs the package rjieba: pip install 'mmjax[chinese]'") from None
    return [(start, end) for word, start, end in rjieba.tokenize(text, "default") if word.strip()]


SEGMENTERS: dict[str, Callable[[str], Spans]] = {"jieba": jieba}
WORDS = ("tokenizer", *SEGMENTERS)


def word_numbers(text: str, places_T2: np.ndarray, segment: Callable[[str], Spans]) -> np.ndarray:
    """[T] int32: the number of the word that each token begins in, -1 where it is in none.

    Args:
      places_T2: the characters of each token, from and to; -1 for special tokens and padding.
      segment: finds the words of a text.
    """
    number_of = np.full(len(text) + 1, -1, np.int32)
    for number, (start, end) in enumerate(segment(text)):
        number_of[start:end] = number
    first_T = places_T2[:, 0]
    return np.where((first_T >= 0) & (places_T2[:, 1] > first_T), number_of[np.clip(first_T, 0, len(text))], -1).astype(
        np.int32
    )
