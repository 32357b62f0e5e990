"""Next sentence prediction (BERT)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives.losses import correct, counted, cross_entropy, valid_rows


@dataclasses.dataclass(frozen=True)
class NextSentencePrediction:
    """Does sentence B follow sentence A? (Devlin 2019, sec. 3.1). The loss is summed over examples.

    `batch["next"]` is [B] int32: 1 = it follows, 0 = it does not (HuggingFace has it the other way round), negative = unknown,
    which does not count.

    Attributes:
      head: a pooling head of two classes.
    """

    head: str = "next_sentence"

    needs: ClassVar[tuple[str, ...]] = ("text", "text_mask", "text_segments", "next")
    in_batch: ClassVar[bool] = False

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        labels_B = batch["next"]
        counts_B = valid_rows(batch, labels_B.shape[0]) & (labels_B >= 0)
        logits_BC = forward.head(self.head, forward.encode("text"), key="text")
        accuracy = counted(correct(logits_BC, labels_B), counts_B)
        return Loss(*counted(cross_entropy(logits_BC, labels_B), counts_B), {"accuracy": accuracy})
