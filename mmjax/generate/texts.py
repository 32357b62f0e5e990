"""What was written."""

from __future__ import annotations

import dataclasses

import jax

from mmjax.core.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Texts:
    """R rows: of each prompt its `num_return_sequences`, the best first where beams wrote them.

    Attributes:
      ids: [R, N] int32, N = max_new_tokens; padding after a text's end.
      lengths: [R] int32, tokens of each text, its end among them.
      scores: [R] float32, the sum of the log-likelihoods of its tokens, as they were taken; of beams that sum over
        length ** length_penalty.
    """

    ids: Array
    lengths: Array
    scores: Array
