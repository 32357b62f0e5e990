"""Text to token ids. A new tokenizer is a frozen dataclass with `train(texts) -> Tokenizer`, a line in the table, a test."""

from collections.abc import Callable
from typing import Any

from mmjax.data.tokenizers.learned import BPE, Characters, WordPiece, Words
from mmjax.data.tokenizers.tokenizer import Pretrained, Tokenizer

TOKENIZERS: dict[str, Callable[..., Any]] = {
    "wordpiece": WordPiece,
    "bpe": BPE,
    "characters": Characters,
    "words": Words,
    "pretrained": Pretrained,
}

__all__ = ["BPE", "TOKENIZERS", "Characters", "Pretrained", "Tokenizer", "WordPiece", "Words"]
