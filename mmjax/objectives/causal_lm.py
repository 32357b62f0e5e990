"""Causal language modelling, and captioning when there is a context to look at."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.packed import packed_places
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import correct, counted, cross_entropy, valid_rows


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Predict each real token of `text` after the first from those before it; the first as well, where the decoder has a
    `start_token`, which then stands before it (sequence to sequence). The loss is summed over predicted tokens.

    Attributes:
      decoder: the decoder that reads the text.
      context: the encoders and fusions it attends to: None for the decoder's own, fewer of them to leave some away, () for none
        (a plain language model).
      label_smoothing: the share of the target spread over the vocabulary.
      text: the modality that is read and predicted, which the decoder `writes`.

    Places of another modality's tokens in the text (`SplicedDecoder.place`) are no words, and are not predicted.

    Raises:
      UserError: when called: a context that the decoder does not have.
    """

    decoder: str = "caption"
    context: tuple[str, ...] | None = None
    label_smoothing: float = 0.0
    text: str = "text"

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.smoothing("causal_lm.label_smoothing", self.label_smoothing)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.text, f"{self.text}_mask")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        decoder = forward.spec(f"decoders.{self.decoder}")
        inputs, labels_BT, counts_BT = asked_of(decoder, batch, self.text)
        names = tuple(decoder.context) if self.context is None else self.context
        if unknown := [name for name in names if name not in decoder.context]:
            raise UserError(f"context={names}: model.decoders.{self.decoder}.context has no {unknown[0]!r}: {decoder.context}")
        if self.text in names:
            raise UserError(f"context={names}: it would see the words of {self.text!r} that it is to predict")
        context = {name: forward.tokens(name) for name in names}
        logits_BTV = forward.decode(self.decoder, inputs, context or None, key="+".join((self.text, *names)))
        losses_BT = cross_entropy(logits_BTV, labels_BT, self.label_smoothing)
        return Loss(*counted(losses_BT, counts_BT), {"accuracy": counted(correct(logits_BTV, labels_BT), counts_BT)})


def asked_of(decoder: Any, batch: Batch, text: str) -> tuple[dict[str, Array], Array, Array]:
    """What a decoder reads of a text, the id that each place is to predict, [B, T] int32, and which count, [B, T] bool."""
    inputs = read_text(batch, text)
    ids_BT, real_BT, lengths_BS = inputs[text], inputs[f"{text}_mask"], inputs.get(f"{text}_lengths")
    valid_B1 = valid_rows(batch, ids_BT.shape[0])[:, None]
    if (start := getattr(decoder, "start_token", None)) is not None:
        place_BT = jnp.arange(ids_BT.shape[1])[None] if lengths_BS is None else packed_places(lengths_BS, ids_BT.shape[1])[1]
        inputs[text] = jnp.where(place_BT == 0, jnp.asarray(start, ids_BT.dtype), jnp.roll(ids_BT, 1, axis=1))
        return inputs, ids_BT, real_BT & valid_B1
    labels_BT, counts_BT = next_tokens(ids_BT, real_BT & valid_B1, lengths_BS)
    if (place := getattr(decoder, "place", None)) is not None:
        counts_BT &= labels_BT != place
    return inputs, labels_BT, counts_BT


def read_text(batch: Batch, text: str) -> dict[str, Array]:
    """The ids of a text and their mask, and the lengths of the texts where a row holds several."""
    return {key: batch[key] for key in (text, f"{text}_mask", f"{text}_lengths") if key in batch}


def next_tokens(ids_BT: Array, real_BT: Array, lengths_BS: Array | None = None) -> tuple[Array, Array]:
    """Each position's next id, [B, T] int, and whether both are real, [B, T] bool, and of one text where a row has several.

    The labels are shifted, not the logits: a slice of [B, T, V] would be a copy of an odd length.
    """
    last_BT = jnp.arange(ids_BT.shape[1])[None, :] == ids_BT.shape[1] - 1
    if lengths_BS is not None:
        text_BT, _ = packed_places(lengths_BS, ids_BT.shape[1])
        last_BT |= text_BT != jnp.roll(text_BT, -1, axis=1)
    return jnp.roll(ids_BT, -1, axis=1), real_BT & jnp.roll(real_BT, -1, axis=1) & ~last_BT
