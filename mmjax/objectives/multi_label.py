"""Any number of classes an example: each is there or not by itself."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks, mixing
from mmjax.objectives.losses import counted, valid_rows
from mmjax.objectives.mixing import MIXES

FLOOR = 1e-12  # of what is raised to a power below 1: at 0 its derivative is infinite, and NaN once multiplied by 0


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """Predict which classes an example has; what is not known of one (below 0, or NaN) counts nowhere.

    Labels are [B, C], 1 where an example has the class, 0 where not, as the column `Classes` makes them; logits are as many,
    and the sigmoid of each is how likely its class is. The loss is summed over known labels, and its mean is over them, as
    PyTorch's; the public code of the asymmetric loss sums instead, and so has rates of learning for that.

    Attributes:
      head: a head of C classes.
      label: the batch key of the labels.
      loss: `bce`, binary cross entropy; `focal` (Lin 2017, eq. 5), which makes labels that are already right count less; or
        `asymmetric` (Ridnik 2021, eq. 7), which does so more for classes that are not there than for those that are.
      gamma: how much less the focal loss counts them; 0 is cross entropy.
      alpha: the focal loss's weight of a class that is there, and 1 - alpha of one that is not; 0 for 1 both (eq. 4).
      gamma_positive: the asymmetric loss's, of classes that are there.
      gamma_negative: the same of those that are not.
      shift: so much is taken off the likelihood of a class that is not there (the paper's m): below it, it counts nothing.
      focus_gradient: whether the derivative goes through the power too, as the paper's (eq. 9) does; the training script that
        the authors published takes it for a constant. Asymmetric loss only.
      positive_weights: how much a class counts where it is there, in `bce` (PyTorch's `pos_weight`); () for 1 everywhere.
      class_weights: how much each class counts, there or not (PyTorch's `weight`): the mean stays one over labels; () for 1.
      label_smoothing: the share of the target spread over both outcomes; `bce` only.
      mix: as in `Classification`: labels are mixed by the same shares, and of a mixture a class is known that is known of both.
        Its metrics begin with `mixed_`, against the label of the larger share. None for off.

    Raises:
      UserError: settings that contradict each other; when called: another number of labels than logits, or of weights; what
        cannot be mixed.
    """

    head: str = "classes"
    label: str = "labels"
    loss: str = "bce"
    gamma: float = setting(least=0, default=2.0)
    alpha: float = setting(least=0, below=1, default=0.0)
    gamma_positive: float = setting(least=0, default=0.0)
    gamma_negative: float = setting(least=0, default=4.0)
    shift: float = setting(least=0, below=1, default=0.05)
    focus_gradient: bool = True
    positive_weights: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = setting(least=0, below=1, default=0.0)
    mix: Any = setting(MIXES, default=None)

    in_batch: ClassVar[bool] = False
    outcome: ClassVar[str] = "several"

    def __post_init__(self) -> None:
        checks.one_of("multi_label.loss", self.loss, ("bce", "focal", "asymmetric"))
        for field in ("gamma", "gamma_positive", "gamma_negative"):
            checks.at_least(f"multi_label.{field}", getattr(self, field), 0)
        for field in ("alpha", "shift", "label_smoothing"):
            checks.smoothing(f"multi_label.{field}", getattr(self, field))
        for field in ("positive_weights", "class_weights"):
            if getattr(self, field):
                checks.weights(f"multi_label.{field}", getattr(self, field))
        others = {"focal": ("alpha",), "bce": ("positive_weights", "label_smoothing")}
        for loss, fields in others.items():
            for field in fields:
                if self.loss != loss and getattr(self, field):
                    raise UserError(
                        f"multi_label.{field}={getattr(self, field)} with loss={self.loss!r}: {field} is of loss={loss!r} alone"
                    )

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.label,)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        logits, labels, known, names = self._seen(forward, batch, rng)
        losses = self._losses(logits, labels)
        if self.class_weights:
            losses *= self._a_class("class_weights", labels.shape[1])
        has, said = labels > 0.5, logits > 0
        metrics = {
            f"{names}accuracy": counted(has == said, known),
            f"{names}precision": counted(has, known & said),
            f"{names}recall": counted(said, known & has),
        }
        return Loss(*counted(losses, known), metrics)

    def _seen(self, forward: Forward, batch: Batch, rng: Array) -> tuple[Array, Array, Array, str]:
        """Logits, labels and what is known of them, as `known_labels`, mixed where they are; and how metrics begin."""
        valid_B1 = valid_rows(batch, batch[self.label].shape[0])[:, None]
        if self.mix is None or not forward.train:
            logits, labels, known = known_labels(self.head, forward.head(self.head), self.label, batch[self.label])
            return logits, labels, known & valid_B1, ""
        known_B = ((batch[self.label] >= 0) & valid_B1).any(axis=tuple(range(1, batch[self.label].ndim)))
        forward, share_B = mixing.mixed(self.mix, forward, self.head, known_B, rng)
        logits, labels, known = known_labels(self.head, forward.head(self.head), self.label, batch[self.label])
        known &= valid_B1
        share_B1 = share_B[:, None]
        both = known & (mixing.partner(known) | (share_B1 == 1.0))
        return logits, share_B1 * labels + (1.0 - share_B1) * mixing.partner(labels), both, "mixed_"

    def _losses(self, logits: Array, labels: Array) -> Array:
        """[B, C] float32"""
        if self.loss == "focal":
            there, not_there = asymmetric_parts(logits, self.gamma, self.gamma)
            alpha, rest = (self.alpha, 1 - self.alpha) if self.alpha else (1.0, 1.0)
            return alpha * labels * there + rest * (1 - labels) * not_there
        if self.loss == "asymmetric":
            gammas = self.gamma_positive, self.gamma_negative
            there, not_there = asymmetric_parts(logits, *gammas, self.shift, self.focus_gradient)
            return labels * there + (1 - labels) * not_there
        labels = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        there = -labels * jax.nn.log_sigmoid(logits)
        if self.positive_weights:
            there *= self._a_class("positive_weights", labels.shape[1])
        return there - (1 - labels) * jax.nn.log_sigmoid(-logits)

    def _a_class(self, field: str, classes: int) -> Array:
        """[1, C] float32"""
        weights = getattr(self, field)
        if len(weights) != classes:
            raise UserError(f"multi_label.{field} has {len(weights)} weights, the head has {classes} classes: give one a class")
        return jnp.array([weights], jnp.float32)


def known_labels(head: str, logits: Array, key: str, labels: Array) -> tuple[Array, Array, Array]:
    """Logits, labels, 0 where they are not known, and where they are: all [B, C], two float32 and a bool.

    Raises:
      UserError: another number of labels than logits.
    """
    if logits.ndim != 2 or logits.shape != labels.shape:
        there, own = ("x".join(map(str, shape[1:])) or "one an example" for shape in (logits.shape, labels.shape))
        raise UserError(
            f"head={head!r} gives logits for {there}, and the labels of {key!r} are {own}: several classes an example need one "
            "label a logit; the column Classes(names) makes them"
        )
    labels = labels.astype(jnp.float32)
    known = labels >= 0  # which NaN is not
    return logits.astype(jnp.float32), jnp.where(known, labels, 0.0), known


def asymmetric_parts(
    logits: Array, gamma_positive: float, gamma_negative: float, shift: float = 0.0, focus_gradient: bool = True
) -> tuple[Array, Array]:
    """The cost of a label that is there, -(1 - p)^g+ log p, and of one that is not, -q^g- log(1 - q): both as `logits`.

    p is their sigmoid and q = max(p - shift, 0) (Ridnik 2021, eq. 7; without a shift Lin 2017, eq. 4). All float32.
    """
    p, miss = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    log_no = jnp.log(jnp.minimum(miss + shift, 1.0)) if shift else jax.nn.log_sigmoid(-logits)
    focus, focus_no = jnp.maximum(miss, FLOOR) ** gamma_positive, jnp.maximum(p - shift, FLOOR) ** gamma_negative
    if not focus_gradient:
        focus, focus_no = jax.lax.stop_gradient(focus), jax.lax.stop_gradient(focus_no)
    return -focus * jax.nn.log_sigmoid(logits), -focus_no * log_no
