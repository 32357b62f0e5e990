"""Contrastive learning of two or three modalities: CLIP's softmax and SigLIP's sigmoid, with any number of positives."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks
from mmjax.objectives.losses import (
    EXCLUDED,
    counted,
    groups,
    positive_pairs,
    retrieval_metrics,
    similarity,
    valid_pairs,
    valid_rows,
)
from mmjax.objectives.ring import Ring, ring_loss, ring_size
from mmjax.parallel.mesh import constrain_batch

PLAIN_COPIES = 8  # at most so many of its logits the plain loss and its derivative hold on a device (benchmarks/contrastive.py)
PLAIN_BYTES = 2**29  # what they may take before `auto` goes round the ring


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Bring the modalities of an example together, and push other examples of the batch away.

    Examples of an equal `group` are positives of each other. The loss is summed over examples; that of three modalities is
    the mean over their three pairs. An example counts in each pair of which it has both.

    Attributes:
      kind: `softmax`, averaged over both directions (CLIP: Radford 2021, fig. 3) and over an example's positives (L_out of
        Khosla 2020, eq. 2); or `sigmoid`, over all pairs (SigLIP: Zhai 2023, eq. 1), which also uses the fusion's `bias`.
      modalities: the two or three.
      fusion: the fusion that holds their shared space, `scale` and `bias`.
      label_smoothing: the share of the target spread over the batch (softmax) or over the two outcomes (sigmoid).
      exchange: how a device meets the other devices' examples; the loss is the same. `plain` gathers them and holds its rows
        of logits, `ring` passes them round and never does (`objectives.ring`), at the price of computing the logits twice.
        `auto` takes the ring where 8 copies of [examples a device, examples in all] float32 logits reach 512 MiB: from a
        global batch of 131,072 at 128 examples a device, of 16,384 at 1,024. A batch that the devices do not divide is plain.
      tile: at most so many columns of logits are held at a time in the ring.
      group: the batch key whose equal values make examples each other's positives; where the data has none, each is its own.
    """

    kind: str = "softmax"
    modalities: tuple[str, ...] = ("image", "text")
    fusion: str = "dual"
    label_smoothing: float = 0.0
    exchange: str = "auto"
    tile: int = 1024
    group: str = "group"

    in_batch: ClassVar[bool] = True
    embeds_only: ClassVar[bool] = True
    by_modality: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("contrastive.kind", self.kind, ("softmax", "sigmoid"))
        names = self.modalities
        if isinstance(names, str) or len(names) not in (2, 3) or len(set(names)) < len(names):
            raise UserError(f"contrastive.modalities={names!r}: name two different modalities, or three: ('image', 'text')")
        checks.smoothing("contrastive.label_smoothing", self.label_smoothing)
        checks.one_of("contrastive.exchange", self.exchange, ("auto", "plain", "ring"))
        checks.at_least("contrastive.tile", self.tile, 1)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.modalities)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        pairs = list(itertools.combinations(self.modalities, 2))
        losses = [self._pair(forward, batch, pair) for pair in pairs]
        metrics = {name: value for loss in losses for name, value in loss.metrics.items()}
        total, count = (functools.reduce(jnp.add, own) for own in zip(*((one.sum, one.count) for one in losses), strict=True))
        return Loss(total / len(pairs), count / len(pairs), metrics)

    def _pair(self, forward: Forward, batch: Batch, pair: tuple[str, str]) -> Loss:
        a_BE, b_BE = (forward.embed(modality, self.fusion) for modality in pair)
        scale = forward.scalar(self.fusion, "scale")
        bias = forward.scalar(self.fusion, "bias") if self.kind == "sigmoid" else None
        compute = self._ring if self.goes_round(a_BE.shape[0]) else self._plain
        return compute(pair, a_BE, b_BE, scale, bias, batch)

    def goes_round(self, size: int) -> bool:
        """Whether a batch of `size` examples takes the ring on the current mesh."""
        devices = ring_size()
        if self.exchange == "plain" or size % devices:
            return False
        return self.exchange == "ring" or PLAIN_COPIES * 4 * size // devices * size >= PLAIN_BYTES

    def _plain(self, pair: tuple[str, str], a_BE: Array, b_BE: Array, scale: Array, bias: Array | None, batch: Batch) -> Loss:
        valid_B = valid_rows(batch, a_BE.shape[0], *pair)
        positive_BB = constrain_batch(positive_pairs(batch, valid_B, self.group))
        logits_BB = constrain_batch(scale * similarity(a_BE, b_BE))
        if bias is None:
            there_B = softmax_loss(logits_BB, positive_BB, valid_B, self.label_smoothing)
            back_B = softmax_loss(logits_BB.T, positive_BB, valid_B, self.label_smoothing)
            loss_B = 0.5 * (there_B + back_B)
        else:
            logits_BB = logits_BB + bias
            loss_B = sigmoid_loss(logits_BB, positive_BB, valid_B, self.label_smoothing)
        return Loss(*counted(loss_B, valid_B), retrieval_metrics(pair, logits_BB, positive_BB, valid_B))

    def _ring(self, pair: tuple[str, str], a_BE: Array, b_BE: Array, scale: Array, bias: Array | None, batch: Batch) -> Loss:
        ring, bias = Ring(self.kind, self.label_smoothing, self.tile), jnp.zeros_like(scale) if bias is None else bias
        valid_B = valid_rows(batch, a_BE.shape[0], *pair)
        group_B = groups(batch, self.group, a_BE.shape[0])
        a_BE, b_BE = a_BE.astype(jnp.float32), b_BE.astype(jnp.float32)
        total, there, back = ring_loss(ring, a_BE, b_BE, scale, bias, group_B, valid_B)
        count = jnp.sum(valid_B.astype(jnp.float32))
        first, second = pair
        metrics = {f"{first}_to_{second}_accuracy": (there, count), f"{second}_to_{first}_accuracy": (back, count)}
        return Loss(total, count, metrics)


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
