"""Classification by prompts: the class whose description lies nearest to the example."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.objectives.class_prompts import by_name, check_templates, mean_vectors, prompts


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Accuracy of the nearest class embedding; top-5 accuracy as well when there are more than 5 classes.

    A class embedding is the normalised mean of the normalised embeddings of its prompts (CLIP, Radford 2021, section 3.1.4).
    Of classes with an equal score the first is taken. Records without a label (label < 0) do not count.

    Attributes:
      templates: prompts, each with `{}` where the class name goes.
      classes: class names by label; () takes the dataset's.
      fusion: the fusion whose space is shared.
      modality: what is classified.
      data: the dataset.
      label: the batch key of the labels.
      text: the modality of the prompts.

    Raises:
      UserError: a template without `{}`, no class names, data without labels, or a label that has no class name.
    """

    templates: tuple[str, ...] = ("a photo of a {}.",)
    classes: tuple[str, ...] = ()
    fusion: str = "dual"
    modality: str = "image"
    data: str = "validation"
    label: str = "label"
    text: str = "text"

    def __post_init__(self) -> None:
        check_templates("templates", self.templates)

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        def embed(forward: Forward, batch: Batch) -> tuple[Array, Array, Array]:
            return forward.embed(self.modality, self.fusion), batch[self.label], batch["index"]

        own = class_names(evaluation.dataset(self.data), self.label)
        classes = self.classes or own
        if not classes:
            raise UserError(f"classes=() and data={self.data!r} has no class names: give `classes`, or labelled data")
        rows = evaluation.rows("zero_shot", self.data, params, embed, needs=(self.label,))
        embedding_NE, label_N, index_N = (row_N[rows[1] >= 0] for row_N in rows)
        if len(label_N) == 0:
            raise UserError(f"data={self.data!r} has no labelled record (all labels < 0): accuracy needs at least one")
        label_N = by_name(label_N, own, self.classes, self.data)
        if label_N.max() >= len(classes):
            raise UserError(f"data={self.data!r} has label {label_N.max()}, but there are {len(classes)} class names")

        score_NC = embedding_NE @ self.class_embeddings(evaluation, params, classes).T
        rank_N = label_ranks(score_NC, label_N)
        evaluation.keep(
            {"index": int(index), "label": classes[label], "predicted": classes[scores.argmax()], "score": float(scores.max())}
            for index, label, scores in zip(index_N, label_N, score_NC, strict=True)
        )
        metrics = {"accuracy": float(np.mean(rank_N < 1))}
        if len(classes) > 5:
            metrics["top5_accuracy"] = float(np.mean(rank_N < 5))
        return metrics

    def class_embeddings(self, evaluation: Evaluation, params: Params, classes: tuple[str, ...]) -> np.ndarray:
        """[C, E] float32, of unit length."""

        def embed(forward: Forward, batch: Batch) -> Array:
            return forward.embed(self.text, self.fusion)

        return class_vectors(
            classes, self.templates, lambda prompts: evaluation.texts("zero_shot", params, prompts, embed, self.text)
        )


def class_vectors(classes: Sequence[str], templates: Sequence[str], embed: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """[C, E] float32, of unit length: of each class the mean over the templates' texts (Radford 2021, section 3.1.4).

    Args:
      embed: texts -> [N, E].
    """
    vectors: np.ndarray = mean_vectors(embed(prompts(classes, templates)), len(classes))
    return vectors


def label_ranks(score_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """[N] place of each label, 0 = best, as a stable sort by falling score gives it.

    A score that is not a number counts against the label, so that a diverged model cannot look good.
    """
    target_N1 = np.take_along_axis(score_NC, label_N[:, None], axis=1)
    earlier_NC = np.arange(score_NC.shape[1])[None] < label_N[:, None]
    return (~(score_NC <= target_N1)).sum(axis=1) + ((score_NC == target_N1) & earlier_NC).sum(axis=1)
