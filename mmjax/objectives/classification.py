"""Classification of one modality, or of several fused ones (an answer to a question about an image)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks, routes
from mmjax.objectives.losses import correct, counted, cross_entropy, pick, valid_rows


@dataclasses.dataclass(frozen=True)
class Classification:
    """Predict a class; a negative label does not count. The loss is summed over what is labelled.

    The head's `input` says what is classified: an encoder's tokens, or a fusion of all its modalities. Labels are one an
    example [B] for a pooling head, or as many as it gives logits: one a pixel [B, H, W], one a token [B, T].

    Attributes:
      head: a head of C classes.
      modality: what is classified, where that is to be said here too: it is held against the head's `input`. "" says nothing.
      fusion: the same, for a head that a fusion feeds.
      context: the other modalities of that fusion; () says nothing.
      loss: `cross_entropy`, or `focal` (Lin 2017, eq. 5), which makes examples that are already right count less.
      gamma: how much less; 0 is cross entropy.
      alpha: the focal loss's weight of each class; () for 1 everywhere (eq. 4).
      label_smoothing: the share of the target spread over all classes; cross entropy only.
      label: the batch key of the labels.
      class_weights: how much each class counts in the cross entropy, whose mean is then over the weights of the labels, as
        PyTorch's; () for 1 everywhere.

    Raises:
      UserError: settings that contradict each other; when called: a head that something else feeds, logits of other places than
        the labels', another number of weights than classes.
    """

    head: str = "classes"
    modality: str = ""
    fusion: str = ""
    context: tuple[str, ...] = ()
    loss: str = "cross_entropy"
    gamma: float = 2.0
    alpha: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    label: str = "label"
    class_weights: tuple[float, ...] = ()

    in_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.one_of("classification.loss", self.loss, ("cross_entropy", "focal"))
        checks.at_least("classification.gamma", self.gamma, 0)
        checks.smoothing("classification.label_smoothing", self.label_smoothing)
        if self.loss == "focal" and self.label_smoothing:
            raise UserError(f"classification.label_smoothing={self.label_smoothing}: the focal loss takes 0")
        if self.loss == "cross_entropy" and self.alpha:
            raise UserError(f"classification.alpha={self.alpha}: that is the focal loss's; cross entropy has class_weights")
        if self.loss == "focal" and self.class_weights:
            raise UserError(f"classification.class_weights={self.class_weights}: the focal loss has alpha instead")
        if self.class_weights and (min(self.class_weights) < 0 or max(self.class_weights) <= 0):
            raise UserError(f"classification.class_weights={self.class_weights}: use numbers from 0 up, one of them above")
        if self.alpha and (min(self.alpha) < 0 or max(self.alpha) <= 0):
            raise UserError(f"classification.alpha={self.alpha}: use numbers from 0 up, one of them above")
        if self.context and not self.fusion:
            raise UserError(
                f"classification.context={self.context}: name the fusion that joins it to modality={self.modality!r}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.label,)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        routes.check(forward, self.head, self.modality, self.fusion, self.context)
        labels = batch[self.label]
        if labels.ndim > 1:  # what lies over an image has moved with it
            labels = forward.view(self.label)
        logits = forward.head(self.head)
        check_places(self.head, logits, self.label, labels)
        counts = labels >= 0
        counts &= valid_rows(batch, labels.shape[0]).reshape(-1, *[1] * (labels.ndim - 1))
        accuracy = counted(correct(logits, labels), counts)
        if self.loss == "focal":
            losses = focal_loss(logits, labels, self.gamma, self.alpha)
            return Loss(*counted(losses, counts), {"accuracy": accuracy})
        if not self.class_weights:
            losses = cross_entropy(logits, labels, self.label_smoothing)
            return Loss(*counted(losses, counts), {"accuracy": accuracy})
        weights_C = _one_a_class("class_weights", self.class_weights, logits.shape[-1])
        total, _ = counted(cross_entropy(logits, labels, self.label_smoothing, weights_C), counts)
        weight, _ = counted(pick(jnp.broadcast_to(weights_C, logits.shape), labels), counts)
        return Loss(total, weight, {"accuracy": accuracy})


def check_places(head: str, logits: Array, label: str, labels: Array) -> None:
    """Raises UserError unless there is a label for each place that has logits."""
    if logits.shape[:-1] != labels.shape:
        there, own = ("x".join(map(str, shape[1:])) or "one an example" for shape in (logits.shape[:-1], labels.shape))
        raise UserError(f"head={head!r} gives logits for {there}, and the labels of {label!r} are {own}")


def _one_a_class(field: str, weights: tuple[float, ...], classes: int) -> Array:
    """[C] float32."""
    if len(weights) != classes:
        raise UserError(f"classification.{field} has {len(weights)} weights, the head has {classes} classes: give one a class")
    return jnp.array(weights, jnp.float32)


def focal_loss(logits_BC: Array, labels_B: Array, gamma: float, alpha: tuple[float, ...] = ()) -> Array:
    """-alpha_t (1 - p_t)^gamma log p_t, [..., C] and [...] int -> [...] float32 (Lin 2017, eq. 5).

    Raises:
      UserError: `alpha` is neither empty nor one weight a class.
    """
    log_p_B = -cross_entropy(logits_BC, labels_B)
    # A floor: at p = 1 the power's derivative is infinite for gamma < 1, and NaN once multiplied by log p = 0.
    miss_B = jnp.maximum(-jnp.expm1(log_p_B), 1e-12)
    losses_B = -(miss_B**gamma) * log_p_B
    if alpha:
        weights_BC = jnp.broadcast_to(_one_a_class("alpha", alpha, logits_BC.shape[-1]), logits_BC.shape)
        losses_B = jax.lax.stop_gradient(pick(weights_BC, labels_B)) * losses_B
    return losses_B
