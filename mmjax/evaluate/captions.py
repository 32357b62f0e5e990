"""Captions that a decoder writes, held against people's."""

from __future__ import annotations

import dataclasses

from mmjax.evaluate.written import Written


@dataclasses.dataclass(frozen=True)
class Captions(Written):
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of what a decoder writes of each example; see `evaluate.texts.captions`.

    `scores` may name others: "sacrebleu" and "chrf" for translations, "error_rates" for transcripts. The attributes and what is
    raised are those of `Written`.

    Usage:
      data = Data(Manifest("captions.jsonl", "validation"), ..., columns={"references": Strings(of="text")})
      evaluate = {"captions": Captions(settings=Settings(max_new_tokens=30), share_in_training=0.1)}
    """
