"""Distillation of a head's logits: the student says what the teacher says, labels or none."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks, routes, teaching
from mmjax.objectives.losses import counted, valid_rows


@dataclasses.dataclass(frozen=True)
class DistilLogits:
    """T^2 KL(teacher || student) of softened distributions (Hinton 2015, section 2), summed over rows, or over real tokens.

    It reads no label: rows without one count as all others.

    Attributes:
      teacher: one of the experiment's `teachers`.
      head: of logits [B, C], or [B, T, C] for each token.
      teacher_head: the teacher's; "" for one of the same name.
      temperature: T, by which both logits are divided.

    Raises:
      UserError: when called: the teacher gives other classes or other tokens; a head of one logit.
    """

    teacher: str = "teacher"
    head: str = "classes"
    teacher_head: str = ""
    temperature: float = 2.0

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.positive("distil_logits.temperature", self.temperature)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        logits, theirs = forward.head(self.head), teaching.asked(forward, self.teacher, self.teacher_head or self.head)
        teaching.check_shapes(f"model.heads.{self.head}", logits, self.teacher, theirs, "classes")
        if logits.shape[-1] < 2:
            raise UserError(
                f"model.heads.{self.head}.classes=1: one number is no distribution over classes; every student would agree"
            )
        counts = valid_rows(batch, logits.shape[0])
        if logits.ndim == 3:
            inputs = routes.named(forward.spec(f"heads.{self.head}").input)
            if len(inputs) > 1:
                raise UserError(f"model.heads.{self.head} reads {inputs}: which of their tokens are real is not known here")
            counts = counts[:, None] & forward.tokens(inputs[0]).mask
        losses = teaching.divergence(logits, theirs, self.temperature)
        return Loss(*counted(losses, counts), {"agreement": counted(teaching.agreement(logits, theirs), counts)})
