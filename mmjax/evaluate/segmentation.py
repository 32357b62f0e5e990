"""How well a class is found for every pixel, or any other place that has a label of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.objectives import routes
from mmjax.objectives.classification import check_places


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Mean intersection over union, accuracy of the places, and the IoU of each class, from one confusion matrix of the whole
    dataset (Everingham 2010, section 4.1). A negative label does not count, nor does a class that is nowhere.

    Attributes:
      head: a head that gives logits [B, ..., C].
      label: the batch key of the labels [B, ...].
      classes: names by label; () for the data's, else numbers.
      data: the dataset.

    Raises:
      UserError: logits of other places than the labels', other classes than the head's, or data without labels.
    """

    head: str = "segments"
    label: str = "image_map"
    classes: tuple[str, ...] = ()
    data: str = "validation"

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        own = class_names(evaluation.dataset(self.data), self.label)
        if self.classes and self.classes != own and set(self.classes) & set(own):
            raise UserError(
                f"classes={self.classes}: data.{self.data} calls the classes of {self.label!r} {own}, in this order"
            )
        names = self.classes or own
        confusion_CC = self.confusion(evaluation, params, names)
        seen = confusion_CC.sum()
        if not seen:
            raise UserError(f"data={self.data!r} has no labelled place in {self.label!r} (all below 0)")
        right_C = np.diag(confusion_CC)
        union_C = confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1) - right_C
        iou = {c: right_C[c] / union_C[c] for c in range(len(union_C)) if union_C[c]}
        metrics = {"mean_iou": np.mean(list(iou.values())), "accuracy": right_C.sum() / seen}
        metrics |= {f"iou/{names[c] if names else c}": value for c, value in iou.items()}
        return {name: float(value) for name, value in metrics.items()}

    def confusion(self, evaluation: Evaluation, params: Params, names: tuple[str, ...] = ()) -> np.ndarray:
        """[C, C] float64: how many places of each class (rows) were taken for each (columns)."""

        def count(forward: Forward, batch: Batch, rng: Array) -> Any:
            labels = batch[self.label]
            logits = forward.head(self.head)
            check_places(self.head, logits, self.label, labels)
            if names:
                routes.check_classes(self.head, logits, len(names), f"data.{self.data} has {len(names)} classes")
            size = logits.shape[-1]
            counts = (labels >= 0) & batch["valid"].reshape(-1, *[1] * (labels.ndim - 1))
            pair = jnp.clip(labels, 0, size - 1) * size + jnp.argmax(logits, axis=-1).astype(labels.dtype)
            # A label that no logit stands for must not be taken for the last class.
            beyond = jnp.sum((counts & (labels >= size)).astype(jnp.int32))
            found = jnp.zeros(size * size, jnp.int32).at[pair].add(counts.astype(jnp.int32))
            return found.reshape(size, size), beyond

        confusion_CC, beyond = evaluation.sums("segmentation", self.data, params, count, needs=(self.label,))
        if beyond:
            size = len(confusion_CC)
            raise UserError(
                f"data={self.data!r}: {int(beyond)} places of {self.label!r} have labels beyond the head's {size} classes"
            )
        return np.asarray(confusion_CC)
