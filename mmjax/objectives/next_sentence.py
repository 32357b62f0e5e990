"""Next sentence prediction (BERT)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import routes
from mmjax.objectives.losses import correct, counted, cross_entropy, valid_rows


@dataclasses.dataclass(frozen=True)
class NextSentencePrediction:
    """Does sentence B follow sentence A? (Devlin 2019, sec. 3.1). The loss is summed over examples.

    Attributes:
      head: a pooling head of two classes.
      text: the modality that holds both sentences, told apart by its segments.
      next: the batch key of the answer, [B] int32: 1 = it follows, 0 = it does not (HuggingFace has it the other way round),
        negative = unknown, which does not count.

    Raises:
      UserError: when called: a head that does not read the text, or of another number of classes.
    """

    head: str = "next_sentence"
    text: str = "text"
    next: str = "next"

    in_batch: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.text, f"{self.text}_mask", f"{self.text}_segments", self.next)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        routes.check(forward, self.head, self.text, "", ())
        labels_B = batch[self.next]
        counts_B = valid_rows(batch, labels_B.shape[0]) & (labels_B >= 0)
        logits_BC = forward.head(self.head, key="text")
        routes.check_classes(self.head, logits_BC, 2, "a sentence follows or not")
        accuracy = counted(correct(logits_BC, labels_B), counts_B)
        return Loss(*counted(cross_entropy(logits_BC, labels_B), counts_B), {"accuracy": accuracy})
