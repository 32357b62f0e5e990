"""Distillation of two towers: how the teacher's examples of a batch resemble each other, the student's shall."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError, within
from mmjax.core.types import Array, Batch, Forward, Loss
from mmjax.objectives import checks, teaching
from mmjax.objectives.losses import EXCLUDED, counted, similarity, valid_rows
from mmjax.parallel.mesh import constrain_batch


@dataclasses.dataclass(frozen=True)
class DistilTowers:
    """Cross entropy of the student's affinities to the teacher's, each row over the batch, averaged over both directions.

    An affinity is the softmax of the scaled similarities of one example to the others' second modality; teacher and student
    each have a scale of their own. It is affinity mimicking (TinyCLIP: Wu 2023, section 3.1) and open_clip's
    `DistillClipLoss` without its contrastive term, which `Contrastive` is.

    Attributes:
      teacher: one of the experiment's `teachers`.
      modalities: the two.
      fusion: the fusion that holds their shared space.
      teacher_modalities: the teacher's names of the two; () for the same.
      teacher_fusion: its fusion; "" for the same.
      features: weight of the squared distance of an example's embeddings from the teacher's, the mean over both modalities
        (CLIP-KD: Yang 2024, eq. 4); their widths must then be equal. 0 leaves it out.
    """

    teacher: str = "teacher"
    modalities: tuple[str, str] = ("image", "text")
    fusion: str = "dual"
    teacher_modalities: tuple[str, ...] = ()
    teacher_fusion: str = ""
    features: float = 0.0

    in_batch: ClassVar[bool] = True
    embeds_only: ClassVar[bool] = True  # of the student; what the teacher gives is never computed in parts that differ

    def __post_init__(self) -> None:
        checks.two_modalities("distil_towers.modalities", self.modalities)
        checks.at_least("distil_towers.features", self.features, 0)
        if self.teacher_modalities:
            checks.two_modalities("distil_towers.teacher_modalities", self.teacher_modalities)

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.modalities)

    def __call__(self, forward: Forward, batch: Batch, rng: Array) -> Loss:
        own = [forward.embed(modality, self.fusion) for modality in self.modalities]
        fusion = self.teacher_fusion or self.fusion
        with within(f"teachers.{self.teacher}"):
            taught = forward.teacher(self.teacher)
            theirs = [taught.embed(modality, fusion) for modality in self.teacher_modalities or self.modalities]
            scale = taught.scalar(fusion, "scale")
        valid_B = valid_rows(batch, own[0].shape[0])
        logits_BB = constrain_batch(forward.scalar(self.fusion, "scale") * similarity(*own))
        theirs_BB = constrain_batch(scale * similarity(*theirs))
        there_B, back_B = (cross_affinity(x, y, valid_B) for x, y in ((logits_BB, theirs_BB), (logits_BB.T, theirs_BB.T)))
        losses_B = 0.5 * (there_B + back_B)
        metrics = {"affinity": counted(losses_B, valid_B)}
        metrics["agreement"] = counted(teaching.agreement(*(_seen(x, valid_B) for x in (logits_BB, theirs_BB))), valid_B)
        if self.features:
            apart_B = _apart(own, theirs, self.teacher)
            metrics["features"] = counted(apart_B, valid_B)
            losses_B = losses_B + self.features * apart_B
        return Loss(*counted(losses_B, valid_B), metrics)


def cross_affinity(logits_BB: Array, theirs_BB: Array, valid_B: Array) -> Array:
    """[B] float32: -sum_j softmax(theirs)_ij log softmax(logits)_ij over the columns that count."""
    target_BB = jax.nn.softmax(_seen(theirs_BB, valid_B), axis=1)
    log_p_BB = jax.nn.log_softmax(_seen(logits_BB, valid_B), axis=1)
    return -jnp.sum(jnp.where(valid_B[None, :], target_BB * log_p_BB, 0.0), axis=1)


def _seen(logits_BB: Array, valid_B: Array) -> Array:
    return jnp.where(valid_B[None, :], logits_BB, EXCLUDED)


def _apart(own: list[Array], theirs: list[Array], teacher: str) -> Array:
    """[B] float32: the mean over the two modalities of the squared distance."""
    for x, y in zip(own, theirs, strict=True):
        if x.shape != y.shape:
            raise UserError(f"features: the student's space is {x.shape[-1]} wide and that of teachers.{teacher} {y.shape[-1]}")
    distances = [jnp.sum(jnp.square(x - y), axis=-1) for x, y in zip(own, theirs, strict=True)]
    return 0.5 * (distances[0] + distances[1])
