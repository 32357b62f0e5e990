"""`mmjax.Predictor`: one object that answers for a run or a HuggingFace folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.evaluate.zero_shot import class_vectors
from mmjax.generate import settings_of
from mmjax.models.decoders import writes_texts
from mmjax.models.forward import BoundForward
from mmjax.objectives.class_prompts import check_templates
from mmjax.predict import made, numbers, openings, painting, writing
from mmjax.predict.heads import check_pairs, check_read, class_names, classifying, reads
from mmjax.predict.inputs import as_list, as_prompts, as_texts
from mmjax.predict.shares import shares
from mmjax.predict.tokens import TokenAnswers
from mmjax.predict.work import Work, open_work

logger = logging.getLogger("mmjax")


class Predictor(TokenAnswers):
    """Answers for a run's best checkpoint, or for a HuggingFace folder, on new images and texts.

    An image is a path, a PIL image or uint8 [H, W, 3]; a text a string; one input or a list of them. Each is made ready as the
    run's evaluation makes its own.

    Usage:
      ask = mmjax.Predictor("runs/pets")
      ask.classify(["one.jpg", "two.png"], top_k=3)  # [[{"label": "cat", "score": 0.93}, ...], ...]
      mmjax.Predictor("path/to/blip").generate(images="one.jpg", max_new_tokens=30)

    Args:
      path: of a run or a HuggingFace folder; or one that is open.
      batch_size: inputs that are computed at once.

    Raises:
      UserError: as `mmjax.load`.
    """

    def __init__(self, path: str | Path | Work, batch_size: int = 32) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r}: use a whole number from 1 up")
        self.work, self.batch_size = path if isinstance(path, Work) else open_work(path), batch_size
        self._given: Any = self.work.params  # what programs are given
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._told = False
        self._classes: tuple[tuple[str, ...], tuple[str, ...], np.ndarray] | None = None  # names, templates, vectors [C, E]

    @property
    def model(self) -> Any:
        """The model."""
        return self.work.model

    def classifies(self) -> bool:
        """Whether a head says the class of a whole input."""
        return len(self._heads()) == 1

    def classify(
        self,
        images: Any = None,
        texts: Any = None,
        top_k: int = 5,
        head: str = "",
        classes: Sequence[str] = (),
        template: str | Sequence[str] = (),
        threshold: float | None = None,
        pairs: Any = None,
        sounds: Any = None,
    ) -> list[list[dict[str, Any]]]:
        """The likeliest classes of each input, and how likely each is.

        Args:
          images, texts, sounds: what is classified, as many of each that the head reads.
          top_k: so many classes; 0 for all.
          head: the head; "" for the only one that classifies whole inputs.
          classes: of images, without a head: that one whose text is nearest (Radford 2021, section 3.1).
          template: makes the text of a class, `a photo of a {}.` for instance; of several the mean of their vectors, as
            `ZeroShot` has it; () for those of the run's own `ZeroShot`, or the name alone.
          threshold: of a head of several labels at once (`MultiLabel`, or `problem_type="multi_label_classification"`), each
            likely or not by itself: those at least so likely, of an input perhaps none; None for the likeliest.
          pairs: the second texts, as many, of a model that reads two at once.

        Raises:
          UserError: no such head, inputs that it does not read, or a threshold where the classes exclude each other.
        """
        if isinstance(classes, str):
            raise UserError(f"classes={classes!r}: give a list of names")
        if not isinstance(top_k, int) or top_k < 0:
            raise UserError(f"top_k={top_k!r}: use a whole number from 0 up")
        if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
            raise UserError(f"threshold={threshold!r}: use a number from 0 to 1")
        if classes:
            logits_NC, names, outcome = self._nearest(images, tuple(classes), template), tuple(classes), "one"
        else:
            name = self._head(head)
            check_read(self.work, name, images, texts, sounds)
            check_pairs(self.work, texts, pairs)
            batch = self._batch(images, texts, pairs, sounds)
            logits_NC = self._rows(("classify", name), lambda forward: forward.head(name), batch)
            outcome = self.work.outcome(name)
            names = class_names(self.work, name, logits_NC.shape[-1] + (outcome == "ordered"))
        if threshold is not None and outcome != "several":
            raise UserError(f"threshold={threshold}: the classes of {self.work.path} exclude each other; use top_k")
        shares_NC, order_NC = shares(logits_NC, outcome)
        return [
            [{"label": names[i], "score": float(row[i])} for i in order if threshold is None or row[i] >= threshold]
            for row, order in zip(shares_NC, order_NC[:, : top_k or None], strict=True)
        ]

    def numbers(self, images: Any = None, texts: Any = None, pairs: Any = None) -> list[dict[str, float | list[float]]]:
        """Of each input head -> the number that it says (`Regression`, in the unit of the data) or its score (`Ranking`): of
        all such heads that read what is given. Raises `UserError` where there is none."""
        given = {name for name, inputs in (("image", images), ("text", texts)) if inputs is not None}
        if not (heads := numbers.measuring(self.work, given)):
            raise UserError(f"{self.work.path}: no head says a number of {' and '.join(sorted(given))}; {self._can()}")
        check_pairs(self.work, texts, pairs)
        return numbers.found(self.work, heads, self._batch(images, texts, pairs), self._rows)

    def reads(self, given: set[str]) -> bool:
        """Whether the head that classifies, or one that says numbers, reads just these modalities."""
        own = self._heads() if self.classifies() else []
        return bool(numbers.measuring(self.work, given)) or any(reads(self.work, head) == given for head in own)

    def _nearest(self, images: Any, classes: tuple[str, ...], template: str | Sequence[str]) -> np.ndarray:
        """[N, C]: cosines times the learned scale."""
        templates = ((template,) if isinstance(template, str) else tuple(template)) or self.work.templates or ("{}",)
        check_templates("template", templates)
        fusion = self.space("image")
        if self._classes is None or self._classes[:2] != (classes, templates):  # once for all pictures that are asked about
            self._classes = (classes, templates, class_vectors(classes, templates, self.embed_text))
        scale = BoundForward(self.work.model, self.work.params, {}).scalar(fusion, "scale")
        logits: np.ndarray = float(scale) * (self.embed_image(images) @ self._classes[2].T)
        return logits

    def embed_image(self, images: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that images share with texts."""
        return self._embed("image", self._batch(images, None))

    def embed_text(self, texts: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that texts share with images."""
        return self._embed("text", self._batch(None, texts))

    def embed_audio(self, sounds: Any) -> np.ndarray:
        """[N, E] float32 of unit length, in the space that sounds share with others."""
        return self._embed("audio", self._batch(None, None, sounds=sounds))

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """[images, texts] float32: the cosines of all pairs."""
        return self.embed_image(images) @ self.embed_text(texts).T

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
        **settings: Any,
    ) -> Any:
        """A text after each prompt, without the prompt: a caption of an image, an answer to a question about one, what is said
        in a sound.

        With `num_return_sequences` above 1 a list of texts of each prompt, of beams the best first.

        Args:
          prompts: texts that are gone on with, or questions where the decoder reads the text by an encoder; None for none.
          images, sounds: as many, where the decoder looks at them, or listens.
          logits_processor: a traceable function `(logits [R, V] float32, generate.Written) -> logits`, after all settings' own.
          decoder: which writes; "" for the only one that writes texts.
          details: give `predict.writing.Written` for each text: `text`, `ids`, `ended` (False where `max_new_tokens` cut it),
            and `score`: its log-likelihood, which beams divide by its length to the power of `length_penalty`.
          stream: give an iterator over the pieces of the one text of the one prompt, each as soon as it is written.
          numbers: of the prompts, on which what is drawn depends beside the seed; None for 0, 1, 2, ...
          language, task: of a model of several languages (Whisper): "en", and `transcribe` or `translate`; "" for the language
            that each sound is heard to be in, and to transcribe it.
          settings: of `mmjax.generate.Settings`, by the names that `transformers` gives them; the others are those of the run's
            own evaluator of that decoder (`Captions`, `Answers`), or else of the generation_config.json that came with the
            weights. An end is the tokenizer's own where nothing says another, and `max_new_tokens` 20, or what there is room
            for.

        Raises:
          UserError: a model that writes no text, a prompt longer than it reads, an unknown setting.
        """
        beside = _given(image=images, audio=sounds)
        name, texts = self._decoder(decoder), as_prompts(prompts)
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

    def shares(self, modality: str) -> bool:
        """Whether a modality has a space that it shares with others."""
        return any(modality in getattr(fusion, "pool", {}) for fusion in self.work.model.fusions.values())

    def check_answers(self, decoder: str = "") -> None:
        """Raises UserError where a decoder does not answer questions."""
        name = self._decoder(decoder)
        if not self.work.answers(name):
            raise UserError(
                f"{self.work.path}: decoders.{name} was given no questions when it was trained, it would go on with yours as "
                "with a text of its own; for that, give generate a prompt from Python"
            )

    def paints(self) -> bool:
        """Whether it paints what is hidden of a picture."""
        return painting.objective_of(self.work) is not None

    def paint(
        self, images: Any, mask_ratio: float | None = None, seed: int = 0, numbers: Sequence[int] | None = None
    ) -> list[painting.Painted]:
        """Hide patches of each picture and let a masked autoencoder paint them.

        Args:
          mask_ratio: the share that is hidden; None: as it was trained.
          seed: of what is hidden, which depends on the `numbers` of the pictures too; None for 0, 1, 2, ...

        Raises:
          UserError: a model that paints no pictures.
        """
        objective = painting.objective_of(self.work)
        if objective is None:
            raise UserError(f"{self.work.path}: it paints no pictures; {self._can()}")
        if mask_ratio is not None:
            objective = dataclasses.replace(objective, mask_ratio=mask_ratio)
        pixels = list(self._batch(images, None)["image"])
        return painting.paint(self.work, objective, pixels, numbers or range(len(pixels)), seed, self._rows)

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
        if work.unwritten and not self._told:
            self._told = True
            left = ", ".join(f"{name}={value!r}" for name, value in work.unwritten.items())
            logger.warning("mmjax: %s: its generation_config.json asks for what is not done here: %s", work.path, left)
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

    def _embed(self, modality: str, batch: dict[str, np.ndarray]) -> np.ndarray:
        fusion = self.space(modality)
        rows: np.ndarray = self._rows(("embed", modality), lambda forward: forward.embed(modality, fusion), batch)
        return rows

    def space(self, modality: str) -> str:
        """The fusion that holds the space which a modality shares with others. Raises `UserError` where there is none."""
        found = [name for name, fusion in self.work.model.fusions.items() if modality in getattr(fusion, "pool", {})]
        if not found:
            raise UserError(f"{self.work.path}: {modality} has no space that it shares with another modality; {self._can()}")
        return found[0]

    def _heads(self) -> list[str]:
        return classifying(self.work)

    def _head(self, asked: str) -> str:
        heads = self._heads()
        if asked and asked not in self.work.model.heads:
            raise UserError(f"head={asked!r}: the heads are {', '.join(self.work.model.heads) or 'none'}")
        if not asked and len(heads) != 1:
            which = f"say which head: {', '.join(heads)}" if heads else "no head classifies; name the classes"
            raise UserError(f"{self.work.path}: {which}; {self._can()}")
        return asked or heads[0]

    def _decoder(self, asked: str) -> str:
        found = [name for name, part in self.work.model.decoders.items() if writes_texts(part)]
        if asked and asked not in found:
            raise UserError(f"decoder={asked!r}: the decoders that write texts are {', '.join(found) or 'none'}")
        if not found:
            raise UserError(f"{self.work.path}: no decoder writes texts; {self._can()}")
        if not asked and len(found) > 1:
            raise UserError(f"{self.work.path}: say which decoder writes: {', '.join(found)}")
        return asked or found[0]

    def _can(self) -> str:
        """What the model has, for whoever asks for something else."""
        m = self.work.model
        return "the model has " + ", ".join(
            f"{room} {', '.join(parts)}" for room in ("encoders", "fusions", "decoders", "heads") if (parts := getattr(m, room))
        )

    def _batch(self, images: Any, texts: Any, pairs: Any = None, sounds: Any = None) -> dict[str, np.ndarray]:
        """What encoders read, one row an input."""
        return made.batch(self.work, images, texts, pairs, sounds)

    def _beside(self, given: Mapping[str, list[Any]], texts: Any) -> dict[str, np.ndarray]:
        """What encoders read of the inputs of each modality, and of texts."""
        return self._batch(given.get("image"), texts, None, given.get("audio"))

    def _program(self, key: Any, run: Callable[..., Any], donated: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The compiled function of a key; made when first asked for."""
        if key not in self._compiled:
            self._compiled[key] = jax.jit(run, donate_argnums=donated)
        return self._compiled[key]

    def _rows(self, key: Any, ask: Callable[..., Any], batch: dict[str, np.ndarray], bound: bool = True) -> Any:
        """What `ask` gives of the forward (or of parameters and a batch), some rows at a time: a tree of numpy [N, ...]."""
        work, size = self.work, self.batch_size
        run = (lambda params, rows: ask(BoundForward(work.model, params, rows))) if bound else ask
        program = self._program(key, run)
        count, given = len(next(iter(batch.values()))), []
        for start in range(0, count, size):
            rows = {name: x[start : start + size] for name, x in batch.items()}
            real = len(next(iter(rows.values())))
            # Filled up to a power of two, so that batches which lack some rows need few programs.
            full = size if start else min(size, 1 << (real - 1).bit_length())
            rows = {name: np.concatenate([x, np.repeat(x[-1:], full - real, 0)]) for name, x in rows.items()}
            out = program(self._given, {name: jnp.asarray(x) for name, x in rows.items()})
            given.append(jax.tree.map(lambda x, real=real: np.asarray(x)[:real], out))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *given)


def _given(**inputs: Any) -> dict[str, list[Any]]:
    """Modality -> a list of what is given of it, of those that are."""
    return {name: own for name, some in inputs.items() if (own := as_list(some)) is not None}
