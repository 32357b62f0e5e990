"""Image-text matching: does this text belong to this image? Negatives are drawn from the batch, hard ones by preference."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.random import example_uniform
from mmjax.core.types import Array, Batch, Forward, Loss, Tokens
from mmjax.objectives import checks, routes
from mmjax.objectives.losses import correct, counted, cross_entropy, positive_pairs, similarity, valid_pairs, valid_rows


@dataclasses.dataclass(frozen=True)
class Matching:
    """Tell true pairs from false ones (ALBEF: Li 2021, sec. 3.2, eq. 4).

    Each example gives three pairs, fused in one call: its own; its first modality with another example's second; and another
    example's first modality with its second. A negative never has an equal `group`; an example that finds none counts nowhere.
    The loss is summed over pairs. Class 1 of the head means "they match".

    Attributes:
      fusion: the fusion that sees both modalities.
      head: a pooling head of two classes.
      modalities: the two, in the order the fusion gets them.
      negatives: `hard` draws them in proportion to the softmax of the contrastive similarity, through which no gradient
        flows; `random` draws them evenly.
      scores_from: the fusion whose embeddings and `scale` give that similarity; "" when the model has none (then `random`).
      group: the batch key whose equal values make examples each other's positives.

    Raises:
      UserError: when called: a head that another fusion feeds, or of another number of classes.
    """

    fusion: str = "cross"
    head: str = "match"
    modalities: tuple[str, str] = ("text", "image")
    negatives: str = "hard"
    scores_from: str = "dual"
    group: str = "group"

    in_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("matching.negatives", self.negatives, ("hard", "random"))
        checks.two_modalities("matching.modalities", self.modalities)

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.modalities, "index")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        routes.check(forward, self.head, first := self.modalities[0], self.fusion, (second := self.modalities[1],))
        a, b = forward.encode(first), forward.encode(second)
        valid_B = valid_rows(batch, a.mask.shape[0])
        allowed_BB = valid_pairs(valid_B) & ~positive_pairs(batch, valid_B, self.group)
        scores_BB = self._scores(forward, allowed_BB)
        first_key, second_key = jax.random.split(rng)
        second_B = sample_negatives(second_key, batch["index"], scores_BB, allowed_BB)
        first_B = sample_negatives(first_key, batch["index"], scores_BB.T, allowed_BB)

        own_B = jnp.arange(valid_B.shape[0])
        pairs = {
            first: take_rows(a, jnp.concatenate([own_B, own_B, first_B])),
            second: take_rows(b, jnp.concatenate([own_B, second_B, own_B])),
        }
        key = "/".join(("matching", self.head, first, second, self.negatives, self.scores_from))
        logits = forward.head(self.head, forward.fuse(self.fusion, pairs, key=key), key=key)
        routes.check_classes(self.head, logits, 2, "a pair matches or not")
        labels = jnp.repeat(jnp.array([1, 0, 0]), own_B.shape[0])
        counts = jnp.tile(jnp.any(allowed_BB, axis=1), 3)
        return Loss(*counted(cross_entropy(logits, labels), counts), {"accuracy": counted(correct(logits, labels), counts)})

    def _scores(self, forward: Forward, allowed_BB: Array) -> Array:
        if self.negatives == "random" or not self.scores_from:
            return jnp.zeros(allowed_BB.shape, jnp.float32)
        a_BE, b_BE = (jax.lax.stop_gradient(forward.embed(m, self.scores_from)) for m in self.modalities)
        return jax.lax.stop_gradient(forward.scalar(self.scores_from, "scale")) * similarity(a_BE, b_BE)


def sample_negatives(key: Array, index_B: Array, scores_BB: Array, allowed_BB: Array) -> Array:
    """[B] int32: for each row a column drawn from softmax(scores) over its allowed columns (by Gumbel-max); 0 where none is."""
    size = index_B.shape[0]
    draw_BB = jnp.maximum(example_uniform(key, index_B, (size,)), jnp.finfo(jnp.float32).tiny)
    gumbel_BB = -jnp.log(-jnp.log(draw_BB))
    return jnp.argmax(jnp.where(allowed_BB, scores_BB + gumbel_BB, -jnp.inf), axis=1)


def take_rows(tokens: Tokens, rows: Array) -> Tokens:
    """The examples `rows` of already encoded tokens, [B, ...] -> [len(rows), ...]."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), tokens)
