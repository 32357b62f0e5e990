"""Classification by prompts: towers, adapters or a learned context are trained, so that an example lies near its class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.class_prompts import by_name, check_templates, mean_vectors, prompts
from mmjax.objectives.losses import correct, counted, cross_entropy, valid_rows

Encode = Callable[[Sequence[str], str], tuple[Mapping[str, np.ndarray], Sequence[str]]]
KEY = "class_prompts"  # of the text tower's dropout


@dataclasses.dataclass(frozen=True)
class Prompted:
    """Cross entropy over the similarities of an example and its classes' prompts; a negative label does not count.

    The logits are s x . w_c: s the fusion's learned scale, x the example's embedding, w_c the normalised mean of the unit
    embeddings of the prompts of class c (Radford 2021, section 3.1.4), encoded in each step, so that whatever is trained of the
    text tower has a gradient. With both towers trained this is full fine-tuning that stays a zero-shot model (as WiSE-FT needs:
    Wortsman 2022); with a learned context in the text tower alone, and `templates=("{}.",)`, it is CoOp (Zhou 2022, eq. 3).

    Attributes:
      templates: prompts, each with `{}` where the class name goes.
      classes: class names; () takes those of the data. Names that the data has are matched by name, others by place.
      fusion: the fusion whose space is shared.
      modality: what is classified.
      text: the modality of the prompts.
      label: the batch key of the labels.
      label_smoothing: the share of the target spread over all classes.

    Raises:
      UserError: a template without `{}`, a smoothing out of range.
    """

    templates: tuple[str, ...] = ("a photo of a {}.",)
    classes: tuple[str, ...] = ()
    fusion: str = "dual"
    modality: str = "image"
    text: str = "text"
    label: str = "label"
    label_smoothing: float = 0.0

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_templates("prompted.templates", self.templates)
        checks.smoothing("prompted.label_smoothing", self.label_smoothing)
        if len(set(self.classes)) < len(self.classes):
            raise UserError(f"prompted.classes={self.classes}: name each class once")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.modality, self.label)

    def bound(self, own: tuple[str, ...], data: str, encode: Encode) -> BoundPrompted:
        """The objective with the token ids of its prompts.

        Args:
          own: the data's class names in the order of its labels; () where it does not say them.
          data: what the data is called.
          encode: texts and the modality that reads them -> batch keys and arrays [P, ...], and lines about what was lost.

        Raises:
          UserError: no class names, or some of the data's that `classes` lacks.
        """
        classes = self.classes or own
        if not classes:
            raise UserError(f"classes=(): data.{data} says no names of its {self.label!r}; give `classes`, or labelled data")
        if len(classes) < 2:
            raise UserError(f"classes={classes}: one class is always right; give two or more")
        if len(own) > len(classes):
            raise UserError(f"classes={classes}: data.{data} has {len(own)} classes")
        inputs, lost = encode(prompts(classes, self.templates), self.text)
        places = by_name(np.arange(len(own) or len(classes), dtype=np.int32), own, classes, data)
        return BoundPrompted(self, dict(inputs), classes, tuple(int(place) for place in places), tuple(lost))

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        raise UserError("Prompted has no token ids yet: the classes' prompts are encoded at set-up; call what `bound` gives")


@dataclasses.dataclass(frozen=True, eq=False)
class BoundPrompted:
    """`Prompted` with the ids of its prompts.

    Attributes:
      inputs: batch key -> [P, T], what the text tower reads.
      classes: C names.
      places: the data's label -> its place among the classes.
      notes: what the prompts lost on their way to ids.
    """

    spec: Prompted
    inputs: Mapping[str, np.ndarray]
    classes: tuple[str, ...]
    places: tuple[int, ...]
    notes: tuple[str, ...] = ()

    in_batch: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        return self.spec.needs

    @property
    def label(self) -> str:
        return self.spec.label

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        spec = self.spec
        label_B = batch[spec.label]
        if label_B.ndim != 1:
            raise UserError(f"label={spec.label!r} has shape {label_B.shape}: prompts classify an example, so one label each")
        image_BE = forward.embed(spec.modality, spec.fusion)
        logits_BC = forward.scalar(spec.fusion, "scale") * jnp.dot(image_BE, self.vectors(forward, batch).T)
        label_B = jnp.where(label_B < 0, label_B, jnp.asarray(self.places, jnp.int32)[jnp.maximum(label_B, 0)])
        counts_B = (label_B >= 0) & valid_rows(batch, label_B.shape[0])
        losses_B = cross_entropy(logits_BC, label_B, spec.label_smoothing)
        return Loss(*counted(losses_B, counts_B), {"accuracy": counted(correct(logits_BC, label_B), counts_B)})

    def vectors(self, forward: Forward, batch: Batch) -> Array:
        """[C, E] float32 of unit length."""
        inputs = {key: jnp.asarray(x) for key, x in self.inputs.items()}
        segments = f"{self.spec.text}_segments"
        if segments in batch:  # those of the batch's own texts are not the prompts'
            inputs[segments] = jnp.zeros_like(inputs[self.spec.text])
        prompt_PE = forward.embed(self.spec.text, self.spec.fusion, inputs, KEY)
        found: Array = mean_vectors(prompt_PE, len(self.classes))
        return found
