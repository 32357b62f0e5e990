"""Distillation of a decoder of text: at each place of a text the student expects the words that the teacher expects."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmjax.core.errors import UserError, within
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks, teaching
from mmjax.objectives.causal_lm import asked_of
from mmjax.objectives.losses import counted


@dataclasses.dataclass(frozen=True)
class DistilText:
    """T^2 KL(teacher || student) of the next word, summed over the places where `CausalLM` predicts one (Kim & Rush 2016,
    section 3.1): a captioner's, or a language model's.

    Attributes:
      teacher: one of the experiment's `teachers`.
      decoder: the decoder that reads the text.
      teacher_decoder: the teacher's; "" for one of the same name. Each attends to the context that it names itself.
      temperature: T, by which both logits are divided.
      text: the modality that is read, which the decoder `writes`.

    Raises:
      UserError: when called: the teacher has another vocabulary, or reads other places.
    """

    teacher: str = "teacher"
    decoder: str = "caption"
    teacher_decoder: str = ""
    temperature: float = 1.0
    text: str = "text"

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.positive("distil_text.temperature", self.temperature)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.text, f"{self.text}_mask")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        if (writes := forward.spec(f"decoders.{self.decoder}").writes) != self.text:
            raise UserError(f"text={self.text!r}: model.decoders.{self.decoder}.writes={writes!r}")
        name = self.teacher_decoder or self.decoder
        own, other = forward.spec(f"decoders.{self.decoder}"), forward.teacher(self.teacher).spec(f"decoders.{name}")
        starts = [getattr(one, "start_token", None) for one in (own, other)]
        if (starts[0] is None) != (starts[1] is None):
            raise UserError(
                f"start_token={starts[0]} of decoders.{self.decoder} and {starts[1]} of the teacher's {name}: one predicts "
                "a text's first token and the other does not; give both one or neither"
            )
        logits_BTV = _read(forward, self.decoder)
        with within(f"teachers.{self.teacher}"):
            theirs_BTV = _read(forward.teacher(self.teacher), name)
        teaching.check_shapes(f"model.decoders.{self.decoder}", logits_BTV, self.teacher, theirs_BTV, "words")
        _, _, counts_BT = asked_of(forward.spec(f"decoders.{self.decoder}"), batch, self.text)
        losses_BT = teaching.divergence(logits_BTV, theirs_BTV, self.temperature)
        agreed_BT = teaching.agreement(logits_BTV, theirs_BTV)
        return Loss(*counted(losses_BT, counts_BT), {"agreement": counted(agreed_BT, counts_BT)})


def _read(forward: Forward, name: str) -> Array:
    """[B, T, V] float32: the logits of a decoder over the text of its batch, computed once with those of `CausalLM`."""
    decoder = forward.spec(f"decoders.{name}")
    text, names = decoder.writes, tuple(decoder.context)
    if text in names:
        raise UserError(f"model.decoders.{name}.context={names}: it would see the words of {text!r} that it is to predict")
    inputs, _, _ = asked_of(decoder, forward.batch, text)
    context = {part: forward.tokens(part) for part in names}
    return forward.decode(name, inputs, context or None, key="+".join((text, *names)))
