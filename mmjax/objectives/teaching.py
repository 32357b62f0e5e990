"""What objectives share that ask a teacher: how far two distributions are apart, and what must be alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError, within
from mmjax.core.types import Array, Forward


def asked(forward: Forward, teacher: str, head: str) -> Array:
    """What a head of a teacher gives."""
    with within(f"teachers.{teacher}"):
        return forward.teacher(teacher).head(head)


def divergence(logits: Array, theirs: Array, temperature: float) -> Array:
    """T^2 KL(softmax(theirs / T) || softmax(logits / T)) over the last dim, [..., C] twice -> [...] float32.

    The factor keeps the gradient's size as T grows (Hinton 2015, section 2).
    """
    log_p, log_q = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature, axis=-1) for x in (theirs, logits))
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def agreement(logits: Array, theirs: Array) -> Array:
    """Whether the largest logit is the same one, [..., C] twice -> [...] bool."""
    return jnp.argmax(logits, axis=-1) == jnp.argmax(theirs, axis=-1)


def check_shapes(who: str, own: Array, teacher: str, theirs: Array, last: str) -> None:
    """Raises UserError unless a teacher gives what the student gives: as many rows and tokens, and as wide.

    Args:
      who: the student's part, `heads.classes` for instance; `last` what its last dim counts.
    """
    if own.ndim != theirs.ndim or own.shape[:-1] != theirs.shape[:-1]:
        shapes = ["x".join(map(str, x.shape[1:-1])) or "one" for x in (own, theirs)]
        raise UserError(
            f"{who} gives an example {shapes[0]} rows of {last}, and teachers.{teacher} {shapes[1]}: they must be alike"
        )
    if own.shape[-1] != theirs.shape[-1]:
        raise UserError(
            f"{who} has {own.shape[-1]} {last}, and teachers.{teacher} has {theirs.shape[-1]}: they must be the same ones"
        )
