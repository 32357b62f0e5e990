"""What is said in sounds, from a head that gives a letter a frame (the objective `CTC`)."""

from __future__ import annotations

from typing import Any

from mmjax.core.errors import UserError
from mmjax.generate.ctc import text_of, transcribed
from mmjax.objectives.ctc import spoken
from mmjax.objectives.routes import check_classes
from mmjax.predict.heads import chosen
from mmjax.predict.running import Running


class Transcribing(Running):
    """The part of `Predictor` that asks heads which say a letter a frame."""

    def transcribes(self) -> bool:
        """Whether a head says a letter a frame of sound."""
        return len(self.work.letters) == 1

    def transcribe(self, sounds: Any, beams: int = 0, head: str = "") -> list[str]:
        """What is said in each sound, by a head that `CTC` has trained (a decoder that writes texts: `generate`).

        Args:
          sounds: paths, bytes of files, or `{"array": floats, "sampling_rate": Hz}`; one, or a list of them.
          beams: 1 for the likeliest letter of each frame; more for a prefix beam search; 0 for as the run's own `Transcripts`.
          head: the head; "" for the only one.

        Raises:
          UserError: no such head, a sound that cannot be read, beams below 0.
        """
        if not isinstance(beams, int) or isinstance(beams, bool) or beams < 0:
            raise UserError(f"beams={beams!r}: use a whole number from 0 up")
        name = chosen(self.work, list(self.work.letters), head, "say a letter a frame", self._can())
        own = self.work.letters[name]
        size, blank_id, many = own.tokenizer.vocab_size, own.tokenizer.pad_id, beams or own.beams

        def ask(forward: Any) -> Any:
            logits_BTV, frames_BT = spoken(forward, name)
            check_classes(name, logits_BTV, size, f"the tokenizer has {size} tokens")
            return transcribed(logits_BTV, frames_BT, blank_id, many)

        rows = self._rows(("transcribe", name, many), ask, self._batch({"audio": sounds}))
        return [text_of(own.tokenizer, ids[:length]) for ids, length in zip(rows.ids, rows.lengths, strict=True)]
