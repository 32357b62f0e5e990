"""The words every room shares: batches, tokens, losses, and what an objective sees of the model.

Shape suffixes, the one legend: B batch, T tokens, S tokens attended to, P patches, D model width, E shared embedding width,
H heads, K head width, F feed-forward width, V vocabulary, C classes, L layers, N examples in the global batch. `x_BTD` is an
array whose three dims are batch, tokens and model width.

A batch is a flat dict of arrays. A modality's raw input is stored under the modality's own name:

| key             | shape, dtype       | meaning                                                              |
|-----------------|--------------------|----------------------------------------------------------------------|
| `image`         | [B, H, W, 3] f32   | normalised pixels                                                    |
| `image_keep`    | [B, K] int32       | optional, which patches an encoder reads, in that order; all if absent |
| `image_mask`    | [B, H, W] bool     | optional, True = a real pixel, images at the top left of their frame |
| `text`          | [B, T] int32       | token ids, padded on the right                                       |
| `text_mask`     | [B, T] bool        | True = a real token                                                  |
| `text_segments` | [B, T] int32       | optional, sentence A = 0 and B = 1                                   |
| `label`         | [B] int32          | class                                                                |
| `next`          | [B] int32          | 1 = the second sentence follows the first, 0 = not, below 0 = ignored |
| `group`         | [B] int32          | examples with an equal group are each other's positives              |
| `index`         | [B] int32          | row in the global batch: the source of per-example randomness        |
| `valid`         | [B] bool           | False = padding of the last evaluation batch, must not count         |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax

Array = jax.Array
Batch = Mapping[str, Array]
Params = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A sequence of embeddings, what every encoder and fusion returns.

    Attributes:
      embeddings: [B, T, D], compute dtype.
      mask: [B, T] bool, True = a real token.
      positions: [B, T] int32 or None, the place of each token in its own sequence.
      segments: [B, T] int32 or None, which part a token came from (sentence A or B; a modality's rank after a fusion).
    """

    embeddings: Array
    mask: Array
    positions: Array | None = None
    segments: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss as a sum and a count, so that accumulation and sharding are exact: its value is `sum / count`.

    Attributes:
      sum: [] float32, summed over what is counted (examples, or tokens).
      count: [] float32, how many were counted; a batch that has none gives sum 0 and count 0, and its value is 0.
      metrics: name -> ([] float32 sum, [] float32 count), averaged in the same way.
    """

    sum: Array
    count: Array
    metrics: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)


class Forward(Protocol):
    """The bound model as an objective or an evaluator sees it. A computation asked for twice in a step runs once.

    `batch` is the batch it is bound to and `train` tells whether dropout and augmentation are on.
    """

    batch: Batch
    train: bool

    def encode(self, modality: str, inputs: Mapping[str, Array] | None = None, key: str = "") -> Tokens:
        """Run one encoder on the batch, or on `inputs` (batch keys that replace the batch's own).

        Here and below, a result is remembered by its inputs and its `key`, which also names its dropout.
        """
        ...

    def view(self, modality: str) -> Array:
        """The batch's input of a modality as its encoder sees it: augmented when training, in its own dtype."""
        ...

    def embed(self, modality: str, fusion: str = "dual", inputs: Mapping[str, Array] | None = None, key: str = "") -> Array:
        """[B, E] float32, of unit length: a modality in the space that the fusion `fusion` shares between modalities."""
        ...

    def fuse(self, fusion: str, tokens: Mapping[str, Tokens], key: str) -> Tokens:
        """Fuse several `Tokens`, by modality name, into one."""
        ...

    def decode(
        self, decoder: str, inputs: Mapping[str, Array], context: Mapping[str, Tokens] | None = None, key: str = ""
    ) -> Array:
        """[B, T, V] float32 logits of the next token, given `text` and `text_mask` in `inputs` and a context to attend to.

        A decoder of pixels is given an `image` of the size to paint, and gives [B, P, pixels of a patch] float32.
        """
        ...

    def head(self, head: str, tokens: Tokens, key: str) -> Array:
        """Logits of one task, float32: [B, C] from a pooling head, [B, T, V] from a token head."""
        ...

    def scalar(self, fusion: str, name: str) -> Array:
        """[] float32: a learned scalar of a fusion; `dual` has `scale` (already exponentiated) and `bias`."""
        ...


class Objective(Protocol):
    """A frozen dataclass called with the forward, the batch and its own random key.

    Three class attributes, all optional: `needs` lists the batch keys it reads, so that a missing one is a clear error before
    anything is compiled; `in_batch` is True when the examples of a batch are each other's negatives, so that accumulation would
    change the loss and is refused; unless `embeds_only` is True as well: of the forward it then reads the embeddings of its
    `modalities` in its `fusion`, and scalars, and nothing else, and is given those of the whole batch.
    """

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss: ...
