"""What a `Predictor` writes: captions, answers, transcripts, conversations."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.core.errors import UserError
from mmjax.generate import settings_of
from mmjax.models.decoders import writes_texts
from mmjax.models.forward import BoundForward
from mmjax.predict import openings, windows, writing
from mmjax.predict.inputs import as_list, as_prompts, as_texts
from mmjax.predict.running import Running

logger = logging.getLogger("mmjax")


class Writer(Running):
    """The part of `Predictor` that asks decoders of texts."""

    _told = False  # of what a generation_config.json asks for and is not done

    def generate(
        self,
        prompts: Any = None,
        images: Any = None,
        logits_processor: Any = None,
        decoder: str = "",
        details: bool = False,
        stream: bool = False,
        numbers: Sequence[int] | None = None,
        sounds: Any = None,
        language: str = "",
        task: str = "",
        videos: Any = None,
        timestamps: bool | None = None,
        **settings: Any,
    ) -> Any:
        """A text after each prompt, without the prompt: a caption of an image or a video, an answer to a question about one,
        what is said in a sound.

        With `num_return_sequences` above 1 a list of texts of each prompt, of beams the best first.

        Args:
          prompts: texts that are gone on with, or questions where the decoder reads the text by an encoder; None for none.
          images, sounds, videos: as many, where the decoder looks at them, listens, or watches.
          logits_processor: a traceable function `(logits [R, V] float32, generate.Written) -> logits`, after all settings' own.
          decoder: which writes; "" for the only one that writes texts.
          details: give `predict.writing.Written` for each text: `text`, `ids`, `ended` (False where `max_new_tokens` cut it),
            and `score`: its log-likelihood, which beams divide by its length to the power of `length_penalty`.
          stream: give an iterator over the pieces of the one text of the one prompt, each as soon as it is written.
          numbers: of the prompts, on which what is drawn depends beside the seed; None for 0, 1, 2, ...
          language, task: of a model of several languages (Whisper): "en", and `transcribe` or `translate`; "" for the language
            that each sound is heard to be in, and to transcribe it.
          timestamps: of sounds, whether times are written: `details` then has `segments`. What a Whisper hears at once is a
            window; a longer sound is gone through by its times in any case, and the settings of `sequential.Manner` say how.
          settings: of `mmjax.generate.Settings`, by the names that `transformers` gives them; the others are those of the run's
            own evaluator of that decoder (`Captions`, `Answers`), or else of the generation_config.json that came with the
            weights. An end is the tokenizer's own where nothing says another, and `max_new_tokens` 20, or what there is room
            for.

        Raises:
          UserError: a model that writes no text, a prompt longer than it reads, an unknown setting.
        """
        beside = _given(image=images, audio=sounds, video=videos)
        name, texts = self._decoder(decoder), as_prompts(prompts)
        if texts is None and set(beside) == {"audio"}:
            spoken = windows.Spoken(language, task, timestamps)
            own = (logits_processor, stream, numbers, settings)
            found, beside["audio"], settings = windows.transcripts(self, name, beside["audio"], spoken, *own)
            if found is not None:
                return found if details else [one.text for one in found]
        elif timestamps:
            raise UserError("timestamps=True: times are of sounds, and without a prompt")
        begun, beside = openings.begun(self.work, name, texts, beside, language, task, self._beside, self._rows)
        texts = texts if begun is None else begun
        return self._go_on(name, texts, beside, logits_processor, details, stream, settings, numbers)

    def chat(self, messages: Any, details: bool = False, stream: bool = False, **settings: Any) -> Any:
        """What the model says next in a conversation, put into words by the tokenizer's own template.

        Args:
          messages: `[{"role": "user", "content": "hello"}, ...]`, or a list of such conversations.
          details, stream, settings: as `generate` takes them.

        Raises:
          UserError: a tokenizer without a template; as `generate`.
        """
        rows = writing.conversations(self.work, messages)
        found = self._go_on(self._decoder(""), rows, {}, None, details, stream, settings)
        return found[0] if isinstance(messages[0], dict) and not stream else found

    def score(self, prompts: Any, continuations: Any, images: Any = None, decoder: str = "") -> list[dict[str, Any]]:
        """How likely each continuation is after its prompt, its end left out. Of each: `log_likelihood`, the sum over its
        `tokens`, and `greedy`, whether each of those was the likeliest one. Prompt and continuation are read as one text, and
        what counts are the tokens from the first that the prompt alone has not.

        Args:
          prompts, continuations: texts, as many of both; `images`: as many, where the decoder looks at them.
          decoder: which writes; "" for the only one that writes texts.

        Raises:
          UserError: a decoder that reads the prompt by an encoder is given it as `generate` is, and its text is the
            continuation alone; else as `generate`; a continuation of no tokens.
        """
        work, name, beside = self.work, self._decoder(decoder), _given(image=images)
        texts, after = as_texts(prompts), as_texts(continuations)
        if texts is None or after is None or len(texts) != len(after):
            raise UserError(f"{len(texts or [])} prompts and {len(after or [])} continuations: give as many of both")
        return writing.scored(work, name, texts, after, beside, self._beside, self._rows)

    def writes(self) -> bool:
        """Whether a decoder writes texts."""
        return any(writes_texts(part) for part in self.work.model.decoders.values())

    def written(self, decoder: str = "") -> str:
        """The modality that a decoder writes; "" for the only one that writes texts."""
        return str(self.work.model.decoders[self._decoder(decoder)].writes)

    def reads_texts(self, decoder: str = "") -> bool:
        """Whether what a decoder attends to is made of texts, among others."""
        forward = BoundForward(self.work.model, self.work.params, {})
        return any("text" in forward.modalities(one) for one in self.work.model.decoders[self._decoder(decoder)].context)

    def check_answers(self, decoder: str = "") -> None:
        """Raises UserError where a decoder does not answer questions."""
        name = self._decoder(decoder)
        if not self.work.answers(name):
            raise UserError(
                f"{self.work.path}: decoders.{name} was given no questions when it was trained, it would go on with yours as "
                "with a text of its own; for that, give generate a prompt from Python"
            )

    def tell_unwritten(self) -> None:
        """Say once what generation_config.json asks for and is not done."""
        if self.work.unwritten and not self._told:
            self._told = True
            left = ", ".join(f"{name}={value!r}" for name, value in self.work.unwritten.items())
            logger.warning("mmjax: %s: its generation_config.json asks for what is not done here: %s", self.work.path, left)

    def _go_on(
        self,
        name: str,
        prompts: Any,
        beside: Mapping[str, list[Any]],
        processor: Any,
        details: bool,
        stream: bool,
        given: dict[str, Any],
        numbers: Sequence[int] | None = None,
    ) -> Any:
        """See `generate`."""
        work = self.work
        self.tell_unwritten()
        settings_of(given)  # complaints are about what was asked for first
        known = work.settings(name)
        s = settings_of({**known, **{name: value for name, value in given.items() if value is not None}})
        said = any(own.get("max_new_tokens") is not None for own in (known, given))
        ready = writing.ready(work, name, prompts, beside, s.max_new_tokens if said else 1, self._beside)
        if not said:  # nobody has: as many as there is room for, then
            longest = max(map(len, ready.prompts))
            new = work.new_tokens(longest) or s.max_new_tokens
            s = dataclasses.replace(s, max_new_tokens=min(new, ready.room - longest))
        if numbers is not None and len(numbers) != len(ready.prompts):
            raise UserError(f"{len(ready.prompts)} prompts and {len(numbers)} numbers: give one each")
        if stream:
            if details or len(ready.prompts) > 1 or s.num_return_sequences > 1:
                asked = f"{len(ready.prompts)} prompts, {s.num_return_sequences} texts each, details={details}"
                raise UserError(f"stream=True: {asked}; stream the one text of one prompt, without details")
            return writing.streamed(ready, s, processor, self._program)
        found = writing.written(ready, s, processor, numbers or range(len(ready.prompts)), self._rows)
        several = found if details else [[one.text for one in own] for own in found]
        return several if s.num_return_sequences > 1 else [own[0] for own in several]

    def _decoder(self, asked: str) -> str:
        found = [name for name, part in self.work.model.decoders.items() if writes_texts(part)]
        if asked and asked not in found:
            raise UserError(f"decoder={asked!r}: the decoders that write texts are {', '.join(found) or 'none'}")
        if not found:
            raise UserError(f"{self.work.path}: no decoder writes texts; {self._can()}")
        if not asked and len(found) > 1:
            raise UserError(f"{self.work.path}: say which decoder writes: {', '.join(found)}")
        return asked or found[0]


def _given(**inputs: Any) -> dict[str, list[Any]]:
    """Modality -> a list of what is given of it, of those that are."""
    return {name: own for name, some in inputs.items() if (own := as_list(some)) is not None}
