"""Tip-Adapter: classification by prompts and by likeness to a few labelled examples, without training."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Params
from mmjax.evaluate.evaluation import Evaluation, class_names
from mmjax.evaluate.zero_shot import ZeroShot, label_ranks
from mmjax.models.cached import cached_logits
from mmjax.objectives.class_prompts import by_name


@dataclasses.dataclass(frozen=True)
class TipAdapter(ZeroShot):
    """Accuracy with s f W^T + alpha exp(-beta (1 - f F^T)) L for logits (Zhang 2022, eq. 5; see `models.cached`).

    f is the example's embedding, W the class vectors of `ZeroShot`, F the embeddings of the labelled records of `cache`, each
    read once as evaluation reads it (the paper averages ten random crops), and L their classes. s is the fusion's own scale,
    which CLIP has learned to be 100, the paper's constant.

    With `search`, alpha and beta are those of a grid that are right most often on other data, the smallest of equals: the
    paper's search on the validation data. Searching on what is reported would be no measurement, and is refused.

    It gives `accuracy`, with more than 5 classes `top5_accuracy`, and the `alpha` and `beta` that were used. The other
    attributes and what is raised are those of `ZeroShot`.

    Attributes:
      cache: the data whose records are remembered: a few of each class.
      alpha: how much the examples count beside the prompts.
      beta: how sharply they are told apart.
      search: the data on which alpha and beta are searched; "" for the two above.
      grid: how many values each of alpha and beta has in the search, evenly spaced from 0.1 below `most`.
      most: where these end; the paper's are 3 and 7, of 20 and 200 values.
    """

    cache: str = "train"
    alpha: float = setting(least=0, below=math.inf, default=1.0)
    beta: float = setting(above=0, below=math.inf, default=5.5)
    search: str = ""
    grid: tuple[int, int] = setting(least=1, default=(20, 200))
    most: tuple[float, float] = setting(above=0.1, below=math.inf, default=(3.0, 7.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "TipAdapter.")

    @property
    def reads(self) -> tuple[str, ...]:
        """The data beside `data` that it reads."""
        return (self.cache, self.search) if self.search else (self.cache,)

    def __call__(self, evaluation: Evaluation, params: Params) -> dict[str, float]:
        if self.data in self.reads:
            field = "cache" if self.data == self.cache else "search"
            raise UserError(f"{field}={self.data!r} is the data that is reported: name other data, or it measures nothing")
        classes = self.classes or class_names(evaluation.dataset(self.data), self.label)
        if not classes:
            raise UserError(f"classes=() and data={self.data!r} has no class names: give `classes`, or labelled data")
        keys_NE, key_label_N, scale, _ = self._embedded(evaluation, params, self.cache, classes)
        vectors_CE = self.class_embeddings(evaluation, params, classes)
        alpha, beta = self.alpha, self.beta
        if self.search:
            x_NE, label_N, _, _ = self._embedded(evaluation, params, self.search, classes)
            alpha, beta = self._searched(x_NE, label_N, (keys_NE, key_label_N, vectors_CE, scale))
        x_NE, label_N, _, index_N = self._embedded(evaluation, params, self.data, classes)
        f, keys, label, vectors = map(jnp.asarray, (x_NE, keys_NE, key_label_N, vectors_CE))
        logits_NC = np.asarray(cached_logits(f, keys, label, vectors, scale, alpha, beta))
        rank_N = label_ranks(logits_NC, label_N)
        evaluation.keep(
            {"index": int(index), "label": classes[label], "predicted": classes[row.argmax()], "score": float(row.max())}
            for index, label, row in zip(index_N, label_N, logits_NC, strict=True)
        )
        metrics = {"accuracy": float(np.mean(rank_N < 1)), "alpha": float(alpha), "beta": float(beta)}
        if len(classes) > 5:
            metrics["top5_accuracy"] = float(np.mean(rank_N < 5))
        return metrics

    def _embedded(
        self, evaluation: Evaluation, params: Params, data: str, classes: tuple[str, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.float32, np.ndarray]:
        """Of the labelled records of some data: embeddings [N, E], places among the classes [N], the scale, their index [N]."""
        fusion, modality, label = self.fusion, self.modality, self.label

        def embed(forward: Forward, batch: Batch) -> tuple[Array, ...]:
            scale_B = jnp.broadcast_to(forward.scalar(fusion, "scale"), batch[label].shape)
            return forward.embed(modality, fusion), batch[label], scale_B, batch["index"]

        rows = evaluation.rows("tip_adapter", data, params, embed, needs=(label,))
        x_NE, label_N, scale_N, index_N = (row_N[rows[1] >= 0] for row_N in rows)
        if len(label_N) == 0:
            raise UserError(f"data={data!r} has no labelled record (all labels < 0)")
        own = class_names(evaluation.dataset(data), label)
        label_N = by_name(label_N, own, classes, data)
        if label_N.max() >= len(classes):
            raise UserError(f"data={data!r} has label {label_N.max()}, but there are {len(classes)} class names")
        return x_NE, label_N.astype(np.int32), scale_N[0], index_N

    def _searched(
        self, x_NE: np.ndarray, label_N: np.ndarray, known: tuple[np.ndarray, np.ndarray, np.ndarray, np.float32]
    ) -> tuple[float, float]:
        """(alpha, beta) that are right most often."""
        keys_KE, key_label_K, vectors_CE, scale = known
        own_NC, affinity_NK = scale * (x_NE @ vectors_CE.T), x_NE @ keys_KE.T
        hot_KC = np.eye(len(vectors_CE), dtype=np.float32)[key_label_K]
        alphas, betas = (
            [0.1 + i * (most - 0.1) / count for i in range(count)] for count, most in zip(self.grid, self.most, strict=True)
        )
        best = (-1.0, self.alpha, self.beta)
        for beta in betas:
            likeness_NC = np.exp(-beta * (1.0 - affinity_NK)) @ hot_KC
            for alpha in alphas:
                right = float(np.mean(label_ranks(own_NC + alpha * likeness_NC, label_N) < 1))
                best = (right, alpha, beta) if right > best[0] else best
        return best[1], best[2]
