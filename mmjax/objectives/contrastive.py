"""Contrastive learning of two modalities: CLIP's softmax and SigLIP's sigmoid, with any number of positives an example."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import EXCLUDED, counted, positive_pairs, retrieval_metrics, similarity, valid_pairs, valid_rows


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Bring the two modalities of an example together, and push other examples of the batch away.

    Examples of an equal `group` are positives of each other. The loss is summed over examples.

    Attributes:
      kind: `softmax`, averaged over both directions (CLIP: Radford 2021, fig. 3) and over an example's positives (L_out of
        Khosla 2020, eq. 2); or `sigmoid`, over all pairs (SigLIP: Zhai 2023, eq. 1), which also uses the fusion's `bias`.
      modalities: the two.
      fusion: the fusion that holds their shared space, `scale` and `bias`.
      label_smoothing: the share of the target spread over the batch (softmax) or over the two outcomes (sigmoid).
    """

    kind: str = "softmax"
    modalities: tuple[str, str] = ("image", "text")
    fusion: str = "dual"
    label_smoothing: float = 0.0

    in_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("contrastive.kind", self.kind, ("softmax", "sigmoid"))
        checks.two_modalities("contrastive.modalities", self.modalities)
        checks.smoothing("contrastive.label_smoothing", self.label_smoothing)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.modalities)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        a_BE, b_BE = (forward.embed(modality, self.fusion) for modality in self.modalities)
        valid_B = valid_rows(batch, a_BE.shape[0])
        positive_BB = positive_pairs(batch, valid_B)
        logits_BB = forward.scalar(self.fusion, "scale") * similarity(a_BE, b_BE)
        if self.kind == "softmax":
            there_B = softmax_loss(logits_BB, positive_BB, valid_B, self.label_smoothing)
            back_B = softmax_loss(logits_BB.T, positive_BB, valid_B, self.label_smoothing)
            loss_B = 0.5 * (there_B + back_B)
        else:
            logits_BB = logits_BB + forward.scalar(self.fusion, "bias")
            loss_B = sigmoid_loss(logits_BB, positive_BB, valid_B, self.label_smoothing)
        return Loss(*counted(loss_B, valid_B), retrieval_metrics(self.modalities, logits_BB, positive_BB, valid_B))


def softmax_loss(logits_BB: Array, positive_BB: Array, valid_B: Array, label_smoothing: float = 0.0) -> Array:
    """[B] float32: cross entropy of each row against an even share for each of its positives (Khosla 2020, eq. 2)."""
    log_p_BB = jax.nn.log_softmax(jnp.where(valid_B[None, :], logits_BB, EXCLUDED), axis=1)
    target_BB = _even_share(positive_BB)
    if label_smoothing:
        target_BB = (1 - label_smoothing) * target_BB + label_smoothing * _even_share(valid_pairs(valid_B))
    return -jnp.sum(jnp.where(target_BB > 0, target_BB * log_p_BB, 0.0), axis=1)


def sigmoid_loss(logits_BB: Array, positive_BB: Array, valid_B: Array, label_smoothing: float = 0.0) -> Array:
    """[B] float32: each row's sum of -log sigmoid(z l) over the batch, z = 1 for a positive, else -1 (Zhai 2023, eq. 1)."""
    yes_BB = jnp.where(positive_BB, 1 - label_smoothing / 2, label_smoothing / 2)
    log_p_BB = yes_BB * jax.nn.log_sigmoid(logits_BB) + (1 - yes_BB) * jax.nn.log_sigmoid(-logits_BB)
    return -jnp.sum(jnp.where(valid_pairs(valid_B), log_p_BB, 0.0), axis=1)


def _even_share(mask_BB: Array) -> Array:
    share_BB = mask_BB.astype(jnp.float32)
    return share_BB / jnp.maximum(jnp.sum(share_BB, axis=1, keepdims=True), 1.0)
