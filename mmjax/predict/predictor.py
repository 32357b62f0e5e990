"""`mmjax.Predictor`: one object that answers for a run or a HuggingFace folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.errors import UserError
from mmjax.evaluate.zero_shot import class_vectors
from mmjax.models.forward import BoundForward
from mmjax.objectives.class_prompts import check_templates
from mmjax.predict import numbers, painting
from mmjax.predict.heads import check_pairs, check_read, class_names, classifying, reads, suits
from mmjax.predict.shares import shares
from mmjax.predict.spaces import Spaces
from mmjax.predict.tokens import TokenAnswers
from mmjax.predict.transcripts import Transcribing
from mmjax.predict.writer import Writer


class Predictor(Spaces, Writer, Transcribing, TokenAnswers):
    """Answers for a run's best checkpoint, or for a HuggingFace folder, on new images and texts.

    An image is a path, a PIL image or uint8 [H, W, 3]; a text a string; a sound or a video a path or the bytes of a file; one
    input or a list of them. Each is made ready as the
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

    # Of the last classes that were asked for: names, templates, vectors [C, E].
    _classes: tuple[tuple[str, ...], tuple[str, ...], np.ndarray] | None = None

    def classifies(self) -> bool:
        """Whether a head says the class of a whole input."""
        return len(self._heads()) == 1

    def heads_of(self, modality: str) -> list[str]:
        """The heads that say the class of a whole input of this modality alone."""
        return [head for head in self._heads() if reads(self.work, head) == {modality}]

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
        videos: Any = None,
    ) -> list[list[dict[str, Any]]]:
        """The likeliest classes of each input, and how likely each is.

        Args:
          images, texts, sounds, videos: what is classified, as many of each that the head reads; of a modality that the
            run's data says may be lacking (`Data.optional`) None, for all of them or in the list for some.
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
            given = {"image": images, "text": texts, "audio": sounds, "video": videos}
            check_read(self.work, name, given)
            check_pairs(self.work, texts, pairs)
            logits_NC = self._rows(("classify", name), lambda forward: forward.head(name), self._batch(given, pairs))
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
        inputs = {"image": images, "text": texts}
        given = {name for name, some in inputs.items() if some is not None}
        if not (heads := numbers.measuring(self.work, given)):
            raise UserError(f"{self.work.path}: no head says a number of {' and '.join(sorted(given))}; {self._can()}")
        check_pairs(self.work, texts, pairs)
        return numbers.found(self.work, heads, self._batch(inputs, pairs), self._rows)

    def reads(self, given: set[str]) -> bool:
        """Whether the head that classifies, or one that says numbers, reads just these modalities."""
        own = self._heads() if self.classifies() else []
        return bool(numbers.measuring(self.work, given)) or any(suits(self.work, reads(self.work, head), given) for head in own)

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
        pixels = list(self._batch({"image": images})["image"])
        return painting.paint(self.work, objective, pixels, numbers or range(len(pixels)), seed, self._rows)

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
