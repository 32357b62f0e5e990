"""Classification of one modality, or of several fused ones (an answer to a question about an image)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks, mixing, routes
from mmjax.objectives.losses import correct, counted, cross_entropy, pick, valid_rows
from mmjax.objectives.mixing import MIXES


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
      mix: `MixUp`, `CutMix` or `MixOrCut` (see `objectives.mixing`): two examples are made one when training, and the loss is
        their two losses by their shares, PyTorch's of soft labels. An example without a label is mixed with none. Its metrics
        are `mixed_accuracy`, against the label of the larger share, and `share`, the mean share of a row's own example. Other
        objectives see unmixed examples, so what is mixed is encoded for this one apart. One label an example; None for off.

    Raises:
      UserError: settings that contradict each other; when called: a head that something else feeds, logits of other places than
        the labels', another number of weights than classes, or what cannot be mixed.
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
    mix: Any = setting(MIXES, default=None)

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
        counts = labels >= 0
        counts &= valid_rows(batch, labels.shape[0]).reshape(-1, *[1] * (labels.ndim - 1))
        if self.mix is not None and forward.train:
            return self._mixed(forward, labels, counts, rng)
        logits = forward.head(self.head)
        check_places(self.head, logits, self.label, labels)
        losses, weights = self._losses(logits, labels)
        metrics = {"accuracy": counted(correct(logits, labels), counts)}
        return Loss(counted(losses, counts)[0], counted(weights, counts)[0], metrics)

    def _mixed(self, forward: Forward, labels_B: Array, counts_B: Array, rng: Array) -> Loss:
        if labels_B.ndim > 1:
            raise UserError(f"mix: labels of {self.label!r} are {labels_B.ndim - 1} dims an example; mix where each has one")
        seen, share_B = mixing.mixed(self.mix, forward, self.head, counts_B, rng)
        logits, others_B = seen.head(self.head), mixing.partner(labels_B)
        check_places(self.head, logits, self.label, labels_B)
        own, other = self._losses(logits, labels_B), self._losses(logits, others_B)
        losses_B, weights_B = (share_B * mine + (1.0 - share_B) * theirs for mine, theirs in zip(own, other, strict=True))
        metrics = {
            "mixed_accuracy": counted(correct(logits, jnp.where(share_B >= 0.5, labels_B, others_B)), counts_B),
            "share": counted(share_B, counts_B),
        }
        return Loss(counted(losses_B, counts_B)[0], counted(weights_B, counts_B)[0], metrics)

    def _losses(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        """The loss of each label and how much it counts in the mean: both of the labels' shape, float32."""
        even = jnp.ones(labels.shape, jnp.float32)
        if self.loss == "focal":
            return focal_loss(logits, labels, self.gamma, self.alpha), even
        if not self.class_weights:
            return cross_entropy(logits, labels, self.label_smoothing), even
        weights_C = _one_a_class("class_weights", self.class_weights, logits.shape[-1])
        losses = cross_entropy(logits, labels, self.label_smoothing, weights_C)
        return losses, pick(jnp.broadcast_to(weights_C, logits.shape), labels)


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
