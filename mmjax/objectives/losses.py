"""The maths that objectives share: cross entropy, which rows pair up, and sums over what counts. All float32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError, nearest
from mmjax.core.types import Array, Batch

EXCLUDED = -1e30  # a logit that no softmax sees; finite, so that a row with nothing left stays free of NaN


def valid_rows(batch: Batch, size: int, *modalities: str) -> Array:
    """[B] bool: the rows that count, all of them when the batch has no `valid`; of them those that have all the modalities.

    What a row of the data may lack, `MODALITY_valid` says. An objective that names no modalities is given a batch whose rows
    are `valid` where they have what it reads (`objectives.lacking`).
    """
    found = [batch[key] for key in ("valid", *(f"{name}_valid" for name in modalities)) if key in batch]
    return functools.reduce(jnp.logical_and, found) if found else jnp.ones((size,), bool)


def counted(values: Array, mask: Array) -> tuple[Array, Array]:
    """Sum of `values` where `mask` is True, and how many those are: both [] float32."""
    total = jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))
    return total, jnp.sum(mask.astype(jnp.float32))


def pick(values: Array, labels: Array) -> Array:
    """values[..., labels], [..., C] and [...] -> [...].

    A masked sum rather than a gather: it fuses, and a C split over devices stays split.
    """
    classes = jax.lax.broadcasted_iota(labels.dtype, values.shape, values.ndim - 1)
    return jnp.sum(jnp.where(classes == labels[..., None], values, 0.0), axis=-1)


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0, weights: Array | None = None) -> Array:
    """-log softmax(logits)[labels], [..., C] and [...] int -> [...] float32.

    Smoothing takes `(1 - s)` of the label and `s` spread evenly over all C classes (Szegedy 2016, sec. 7), as torch does.
    With `weights` [C] each class's part of it is multiplied by its own; the mean is over the labels' weights.
    """
    logits = logits.astype(jnp.float32)
    if weights is not None:
        parts = (jax.nn.logsumexp(logits, axis=-1, keepdims=True) - logits) * jnp.broadcast_to(weights, logits.shape)
        return (1 - label_smoothing) * pick(parts, labels) + label_smoothing * jnp.mean(parts, axis=-1)
    target = pick(logits, labels)
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * jnp.mean(logits, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - target


def correct(logits: Array, labels: Array) -> Array:
    """Whether the largest logit is the label's, [..., C] and [...] int -> [...] bool."""
    return jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels


def groups(batch: Batch, key: str, size: int) -> Array:
    """[B] or [B, n] int32: equal for rows that are each other's positives; without `group`, each row is its own.

    Raises:
      UserError: another key than `group` that the batch does not have.
    """
    found = batch.get(key)
    if found is None and key != "group":
        raise UserError(f"group={key!r}: the batch has {', '.join(batch)}{nearest(key, batch)}")
    return jnp.arange(size) if found is None else found


def same_group(a: Array, b: Array) -> Array:
    """[R, C] bool: whether two rows are of one group, [R] and [C], or [R, n] and [C, n] that must agree in all."""
    same = a[:, None] == b[None, :]
    return same if a.ndim == 1 else same.all(axis=-1)


def positive_pairs(batch: Batch, valid_B: Array, key: str = "group") -> Array:
    """[B, B] bool: valid rows of an equal `batch[key]`; without it, each valid row with itself."""
    group = groups(batch, key, valid_B.shape[0])
    return same_group(group, group) & valid_pairs(valid_B)


def valid_pairs(valid_B: Array) -> Array:
    """[B, B] bool: both rows count."""
    return valid_B[:, None] & valid_B[None, :]


def similarity(a_BE: Array, b_BE: Array) -> Array:
    """[B, B] float32 inner products, at full precision: a learned scale of up to 100 would magnify a rounded one."""
    a_BE, b_BE = a_BE.astype(jnp.float32), b_BE.astype(jnp.float32)
    return jnp.matmul(a_BE, b_BE.T, precision=jax.lax.Precision.HIGHEST)


def retrieval_metrics(
    modalities: tuple[str, str], scores_BB: Array, positive_BB: Array, valid_B: Array
) -> dict[str, tuple[Array, Array]]:
    """In-batch accuracy both ways: is the best scored of the batch's valid rows a positive?"""
    first, second = modalities

    def accuracy(scores_BB: Array) -> tuple[Array, Array]:
        best_B = jnp.argmax(jnp.where(valid_B[None, :], scores_BB, EXCLUDED), axis=1)
        return counted(jnp.take_along_axis(positive_BB, best_B[:, None], axis=1)[:, 0], valid_B)

    return {
        f"{first}_to_{second}_accuracy": accuracy(scores_BB),
        f"{second}_to_{first}_accuracy": accuracy(scores_BB.T),
    }
