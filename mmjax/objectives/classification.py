"""Classification of one modality, or of several fused ones (an answer to a question about an image)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import correct, counted, cross_entropy, pick, valid_rows


@dataclasses.dataclass(frozen=True)
class Classification:
    """Predict `batch["label"]`; a negative label does not count. The loss is summed over examples.

    Attributes:
      head: a pooling head of C classes.
      modality: what is classified.
      fusion: a fusion of `modality` and `context` to classify instead; "" for none.
      context: the other modalities given to that fusion.
      loss: `cross_entropy`, or `focal` (Lin 2017, eq. 5), which makes examples that are already right count less.
      gamma: how much less; 0 is cross entropy.
      alpha: the focal loss's weight of each class; () for 1 everywhere (eq. 4).
      label_smoothing: the share of the target spread over all classes; cross entropy only.
    """

    head: str = "classes"
    modality: str = "image"
    fusion: str = ""
    context: tuple[str, ...] = ()
    loss: str = "cross_entropy"
    gamma: float = 2.0
    alpha: tuple[float, ...] = ()
    label_smoothing: float = 0.0

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.one_of("classification.loss", self.loss, ("cross_entropy", "focal"))
        checks.at_least("classification.gamma", self.gamma, 0)
        checks.smoothing("classification.label_smoothing", self.label_smoothing)
        if self.loss == "focal" and self.label_smoothing:
            raise UserError(f"classification.label_smoothing={self.label_smoothing}: the focal loss takes 0")
        if self.loss == "cross_entropy" and self.alpha:
            raise UserError(f"classification.alpha={self.alpha}: only loss='focal' takes class weights")
        if self.context and not self.fusion:
            raise UserError(f"classification.context={self.context}: name the fusion that joins it to {self.modality!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.modality, *self.context, "label")

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        labels_B = batch["label"]
        counts_B = valid_rows(batch, labels_B.shape[0]) & (labels_B >= 0)
        parts = {modality: forward.encode(modality) for modality in (self.modality, *self.context)}
        key = "+".join(parts)
        tokens = forward.fuse(self.fusion, parts, key=key) if self.fusion else parts[self.modality]
        logits_BC = forward.head(self.head, tokens, key=f"{self.fusion}/{key}")
        if self.loss == "focal":
            losses_B = focal_loss(logits_BC, labels_B, self.gamma, self.alpha)
        else:
            losses_B = cross_entropy(logits_BC, labels_B, self.label_smoothing)
        return Loss(*counted(losses_B, counts_B), {"accuracy": counted(correct(logits_BC, labels_B), counts_B)})


def focal_loss(logits_BC: Array, labels_B: Array, gamma: float, alpha: tuple[float, ...] = ()) -> Array:
    """-alpha_t (1 - p_t)^gamma log p_t, [B, C] and [B] int -> [B] float32 (Lin 2017, eq. 5).

    Raises:
      UserError: `alpha` is neither empty nor one weight a class.
    """
    classes = logits_BC.shape[-1]
    if alpha and len(alpha) != classes:
        raise UserError(f"classification.alpha has {len(alpha)} weights, the head has {classes} classes: give one a class")
    log_p_B = -cross_entropy(logits_BC, labels_B)
    # A floor: at p = 1 the power's derivative is infinite for gamma < 1, and NaN once multiplied by log p = 0.
    miss_B = jnp.maximum(-jnp.expm1(log_p_B), 1e-12)
    losses_B = -(miss_B**gamma) * log_p_B
    if alpha:
        weights_BC = jnp.broadcast_to(jnp.array(alpha, jnp.float32)[None, :], logits_BC.shape)
        losses_B = jax.lax.stop_gradient(pick(weights_BC, labels_B)) * losses_B
    return losses_B
