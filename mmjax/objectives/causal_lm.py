"""Causal language modelling, and captioning when there is a context to look at."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import correct, counted, cross_entropy, valid_rows


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Predict each real token of `text` after the first from those before it. The loss is summed over predicted tokens.

    Attributes:
      decoder: the decoder that reads the text.
      context: the modalities it attends to; () for a plain language model.
      label_smoothing: the share of the target spread over the vocabulary.
    """

    decoder: str = "caption"
    context: tuple[str, ...] = ("image",)
    label_smoothing: float = 0.0

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.smoothing("causal_lm.label_smoothing", self.label_smoothing)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text", "text_mask", *self.context)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        ids_BT, real_BT = batch["text"], batch["text_mask"]
        context = {modality: forward.encode(modality) for modality in self.context}
        inputs = {"text": ids_BT, "text_mask": real_BT}
        logits_BTV = forward.decode(self.decoder, inputs, context or None, key="+".join(("text", *self.context)))
        labels_BT, counts_BT = next_tokens(ids_BT, real_BT & valid_rows(batch, ids_BT.shape[0])[:, None])
        losses_BT = cross_entropy(logits_BTV, labels_BT, self.label_smoothing)
        return Loss(*counted(losses_BT, counts_BT), {"accuracy": counted(correct(logits_BTV, labels_BT), counts_BT)})


def next_tokens(ids_BT: Array, real_BT: Array) -> tuple[Array, Array]:
    """Each position's next id, [B, T] int, and whether both are real, [B, T] bool.

    The labels are shifted, not the logits: a slice of [B, T, V] would be a copy of an odd length.
    """
    last_BT = jnp.arange(ids_BT.shape[1])[None, :] == ids_BT.shape[1] - 1
    return jnp.roll(ids_BT, -1, axis=1), real_BT & jnp.roll(real_BT, -1, axis=1) & ~last_BT
