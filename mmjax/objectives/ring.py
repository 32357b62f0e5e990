"""The contrastive loss without its [N, N] logits: blocks of one modality travel round the devices, tile by tile.

Each device keeps its own rows of the first modality. The blocks of the second, one a device, go round a ring; each device
folds the block it holds into statistics of its own rows and of the block's, which travel along and are home after a full
circle. The derivative is written out: it goes round once more, computes every tile of logits again, and sends the block's
gradient along. So a device with b rows holds O(b (tile + E)) numbers, however many devices there are. A log-sum-exp that is
carried from tile to tile is that of the online softmax (Milakov & Gimelshein 2018, alg. 3); blocks go round as in ring
attention (Liu 2023, sec. 3).

Shape suffixes beside the legend: b rows of one device, R and C the rows and columns of a tile of logits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.core.types import Array
from mmjax.objectives.losses import EXCLUDED, same_group, similarity
from mmjax.parallel.mesh import BATCH, axis_size

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Ring:
    """What is fixed when the loss is traced.

    Attributes:
      kind: `softmax` or `sigmoid`.
      label_smoothing: as in `Contrastive`.
      tile: at most so many columns of logits are held at a time, for all rows of a device.
    """

    kind: str
    label_smoothing: float
    tile: int


class Saved(NamedTuple):
    """What the derivative of the softmax needs of each row, [R] float32: log-sum-exp, in two parts, and number of positives."""

    top: Array
    log_total: Array
    positives: Array


class Rows(NamedTuple):
    """Consecutive rows of one modality: embeddings [R, E], place in the global batch, group and validity [R]."""

    x: Array
    place: Array
    group: Array
    valid: Array
    saved: Saved | None = None


class Best(NamedTuple):
    """Each row's best scored partner so far, [R]: its score, its place (of equals, the first), and whether it is a positive."""

    score: Array
    place: Array
    hit: Array


Fold = Callable[[Rows, Rows, Any, Any], tuple[Any, Any]]


def ring_size() -> int:
    """Into how many blocks the current mesh splits a batch: the length of the ring, 1 without a mesh."""
    return math.prod(axis_size(axis) for axis in BATCH)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_loss(
    ring: Ring, a_NE: Array, b_NE: Array, scale: Array, bias: Array, group_N: Array, valid_N: Array
) -> tuple[Array, Array, Array]:
    """The contrastive loss of two modalities, equal to the plain one of `Contrastive`, and how often each finds its partner.

    Reverse-mode derivatives of the loss by both embeddings, the scale and the bias; the two numbers of hits have none.

    Args:
      a_NE, b_NE: [N, E] float32, N a multiple of `ring_size()`.
      scale, bias: [] float32; the softmax has no use for the bias.
      group_N: [N] int32, equal for examples that are each other's positives.
      valid_N: [N] bool.

    Returns:
      [] float32 each: the loss summed over valid rows; how many valid rows of a, and of b, score a positive best.
    """
    return _forward(ring, a_NE, b_NE, scale, bias, group_N, valid_N)[0]


def _forward(ring: Ring, a_NE: Array, b_NE: Array, scale: Array, bias: Array, group_N: Array, valid_N: Array) -> Any:
    split, whole = PartitionSpec(_axes()), PartitionSpec()
    index_N = jnp.arange(a_NE.shape[0], dtype=jnp.int32)
    a, b = Rows(a_NE, index_N, group_N, valid_N), Rows(b_NE, index_N, group_N, valid_N)
    values, saved_a, saved_b = _on_blocks(functools.partial(_statistics, ring), (whole, split, split))(a, b, scale, bias)
    return values, (a._replace(saved=saved_a), b._replace(saved=saved_b), scale, bias)


def _backward(ring: Ring, residuals: Any, cotangents: tuple[Array, Array, Array]) -> tuple[Array | None, ...]:
    split, whole = PartitionSpec(_axes()), PartitionSpec()
    gradients = _on_blocks(functools.partial(_gradients, ring), (split, split, whole, whole))(*residuals)
    return *(cotangents[0] * x for x in gradients), None, None


ring_loss.defvjp(_forward, _backward)


def _statistics(ring: Ring, a: Rows, b: Rows, scale: Array, bias: Array) -> tuple[tuple[Array, ...], Any, Any]:
    """The values of `ring_loss` and what its derivative needs of one device's rows."""
    softmax = ring.kind == "softmax"

    def fold(rows: Rows, columns: Rows, row: Any, column: Any) -> tuple[Any, Any]:
        logits_RC, positive_RC, pair_RC = _tile(ring, rows, columns, scale, bias)
        (there, sums), (back, totals) = row, column
        best_there, best_back = _better(there, logits_RC, positive_RC, columns), _better(back, logits_RC.T, positive_RC.T, rows)
        if not softmax:
            loss_RC = _sigmoid_terms(logits_RC, positive_RC, ring.label_smoothing)
            return (best_there, {"loss": sums["loss"] + _sum_rows(loss_RC, pair_RC)}), (best_back, totals)
        totals = {"total": _online(totals["total"], back, best_back, logits_RC.T, rows)}
        sums = {
            "total": _online(sums["total"], there, best_there, logits_RC, columns),
            "chosen": sums["chosen"] + _sum_rows(logits_RC, positive_RC),
            "every": sums["every"] + _sum_rows(logits_RC, pair_RC),
            "positives": sums["positives"] + _sum_rows(jnp.ones_like(logits_RC), positive_RC),
        }
        return (best_there, sums), (best_back, totals)

    zero_b, valid_b = jnp.zeros(a.place.shape), a.valid
    none = Best(jnp.full_like(zero_b, EXCLUDED), jnp.full_like(a.place, jnp.iinfo(jnp.int32).max), jnp.zeros_like(valid_b))
    sums = dict.fromkeys(("total", "chosen", "every", "positives") if softmax else ("loss",), zero_b)
    totals = {"total": zero_b} if softmax else {}
    (there, sums), (back, totals) = _around(ring, fold, a, b, (none, sums), (none, totals))
    saved = []
    if softmax:
        saved = [_save(best, total_b, sums["positives"]) for best, total_b in ((there, sums["total"]), (back, totals["total"]))]
    loss_b = _softmax_loss(ring, sums, saved, _share(valid_b)) if softmax else sums["loss"]
    counts = [
        jnp.sum(jnp.where(valid_b, x, 0.0)) for x in (loss_b, there.hit.astype(jnp.float32), back.hit.astype(jnp.float32))
    ]
    return tuple(jax.lax.psum(counts, _axes())), *(saved or (None, None))


def _gradients(ring: Ring, a: Rows, b: Rows, scale: Array, bias: Array) -> tuple[Array, Array, Array, Array]:
    """The derivative of the summed loss by one device's rows of a and b, and by scale and bias."""
    share = _share(a.valid)

    def fold(rows: Rows, columns: Rows, row: Any, column_CE: Array) -> tuple[Any, Array]:
        logits_RC, positive_RC, pair_RC = _tile(ring, rows, columns, scale, bias)
        slope_RC = jnp.where(pair_RC, _slope(ring, logits_RC, positive_RC, rows, columns, share), 0.0)
        row_RE, bias_R = row
        row_RE = row_RE + _matmul(slope_RC, columns.x)
        return (row_RE, bias_R + jnp.sum(slope_RC, axis=1)), column_CE + _matmul(slope_RC.T, rows.x)

    start = (jnp.zeros_like(a.x), jnp.zeros(a.place.shape))
    (a_bE, bias_b), b_bE = _around(ring, fold, a, b, start, jnp.zeros_like(b.x))
    by_scale, by_bias = jax.lax.psum((jnp.sum(a_bE * a.x), jnp.sum(bias_b)), _axes())
    return scale * a_bE, scale * b_bE, by_scale, by_bias if ring.kind == "sigmoid" else jnp.zeros_like(bias)


def _around(ring: Ring, fold: Fold, rows: Rows, columns: Rows, row: Any, column: Any) -> tuple[Any, Any]:
    """Fold every tile of every device's columns into the state of this device's rows and into the columns' own state.

    Returns both states, each on the device that it belongs to.
    """
    size, length = ring_size(), columns.place.shape[0]
    count = -(-length // ring.tile)
    width = -(-length // count)

    def tiles(x: Array) -> Array:
        # What is padded is not valid, so it counts nowhere.
        padded = jnp.pad(x, [(0, count * width - length), *[(0, 0)] * (x.ndim - 1)])
        return padded.reshape(count, width, *x.shape[1:])

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        row, columns, column = carry
        row, column = jax.lax.scan(lambda row, tile: fold(rows, tile[0], row, tile[1]), row, (columns, column))
        if size > 1:
            onward = [(i, (i + 1) % size) for i in range(size)]
            columns, column = jax.tree.map(lambda x: jax.lax.ppermute(x, _axes(), onward), (columns, column))
        return (row, columns, column), None

    start = (row, *jax.tree.map(tiles, (columns, column)))
    row, _, column = jax.lax.scan(turn, start, None, length=size)[0]
    return row, jax.tree.map(lambda x: x.reshape(count * width, *x.shape[2:])[:length], column)


def _tile(ring: Ring, rows: Rows, columns: Rows, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """[R, C] each: logits, which pairs are positives, and which count at all."""
    logits_RC = scale * similarity(rows.x, columns.x)
    pair_RC = rows.valid[:, None] & columns.valid[None, :]
    positive_RC = same_group(rows.group, columns.group) & pair_RC
    return logits_RC + bias if ring.kind == "sigmoid" else logits_RC, positive_RC, pair_RC


def _slope(ring: Ring, logits_RC: Array, positive_RC: Array, rows: Rows, columns: Rows, share: Array) -> Array:
    """[R, C]: the derivative of the loss by each logit of a pair that counts."""
    smooth = ring.label_smoothing
    if rows.saved is None or columns.saved is None:
        return jax.nn.sigmoid(logits_RC) - jnp.where(positive_RC, 1 - smooth / 2, smooth / 2)
    p_row_RC = jnp.exp(logits_RC - rows.saved.top[:, None] - rows.saved.log_total[:, None])
    p_column_RC = jnp.exp(logits_RC - columns.saved.top[None, :] - columns.saved.log_total[None, :])
    target_RC = jnp.where(positive_RC, (1 - smooth) / jnp.maximum(rows.saved.positives, 1.0)[:, None], 0.0)
    return 0.5 * (p_row_RC + p_column_RC) - target_RC - smooth * share


def _sigmoid_terms(logits_RC: Array, positive_RC: Array, smooth: float) -> Array:
    yes_RC = jnp.where(positive_RC, 1 - smooth / 2, smooth / 2)
    return -(yes_RC * jax.nn.log_sigmoid(logits_RC) + (1 - yes_RC) * jax.nn.log_sigmoid(-logits_RC))


def _better(best: Best, scores_RC: Array, positive_RC: Array, columns: Rows) -> Best:
    """The best of what was found so far and of these columns."""
    scores_RC = jnp.where(columns.valid[None, :], scores_RC, EXCLUDED)
    at_R = jnp.argmax(scores_RC, axis=1).astype(jnp.int32)
    chosen_RC = jax.lax.broadcasted_iota(jnp.int32, scores_RC.shape, 1) == at_R[:, None]
    new = Best(jnp.max(scores_RC, axis=1), columns.place[0] + at_R, jnp.any(chosen_RC & positive_RC, axis=1))
    takes_R = (new.score > best.score) | ((new.score == best.score) & (new.place < best.place))
    return Best(*(jnp.where(takes_R, x, old) for x, old in zip(new, best, strict=True)))


def _online(total_R: Array, before: Best, now: Best, logits_RC: Array, columns: Rows) -> Array:
    """The sum of exp(logit - best score), carried over to a new best score, with these columns added."""
    return total_R * jnp.exp(before.score - now.score) + _sum_rows(
        jnp.exp(logits_RC - now.score[:, None]), columns.valid[None, :]
    )


def _save(best: Best, total_b: Array, positives_b: Array) -> Saved:
    # A row that saw no valid column has a total of 0, and counts nowhere.
    return Saved(best.score, jnp.log(jnp.where(total_b > 0, total_b, 1.0)), positives_b)


def _softmax_loss(ring: Ring, sums: dict[str, Array], saved: list[Saved], share: Array) -> Array:
    """[b]: the mean of both directions' cross entropies.

    A row's targets are not a column's, but summed over the batch their products with the logits are the same; so the row's
    stand for both. They come off the largest logit first, which is exact where a row is nearly certain.
    """
    target_b = (1 - ring.label_smoothing) * sums["chosen"] / jnp.maximum(sums["positives"], 1.0)
    target_b = target_b + ring.label_smoothing * share * sums["every"]
    there_b, back_b = (x.log_total + (x.top - target_b) for x in saved)
    return 0.5 * (there_b + back_b)


def _share(valid_b: Array) -> Array:
    """[] float32: one over the number of valid rows in the global batch."""
    return 1 / jnp.maximum(jax.lax.psum(jnp.sum(valid_b.astype(jnp.float32)), _axes()), 1.0)


def _sum_rows(values_RC: Array, mask_RC: Array) -> Array:
    return jnp.sum(jnp.where(mask_RC, values_RC, 0.0), axis=1)


def _axes() -> tuple[str, ...]:
    return tuple(axis for axis in BATCH if axis_size(axis) > 1)


def _on_blocks(compute: Callable[..., Any], out: Any) -> Callable[..., Any]:
    """`compute(a, b, scale, bias)` on each device's rows of a and b."""
    if not _axes():
        return compute
    split, whole = PartitionSpec(_axes()), PartitionSpec()
    return jax.shard_map(compute, in_specs=(split, split, whole, whole), out_specs=out, check_vma=False)
