"""Attention of short sequences as one TPU kernel: the [T, S] weights never leave the chip, forward or backward.

A flash kernel tiles long sequences; at the few hundred tokens of an image it pads 196 to 256 and gains nothing. Here a program
holds whole examples: q, k, v and the output as [T, D] with all heads side by side, so that nothing is padded in memory either
(a trailing dim of 64 would be, to 128), and the backward pass recomputes the weights from q and k instead of reading them.

Heads narrower than the 128 lanes of a register share a group of them: a head's part of q is kept and the rest zeroed, and the
product over the whole group is then the product over the head. The matrix unit is 128 wide, so this costs it nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.core.types import Array

LANES = 128
ROWS = 256  # tokens of one program: short sequences come several to a program
VMEM_BYTES = 64 * 2**20  # of 128 MiB (64 on a v7x core); the default bound of 16 is too small for a backward pass at T = 512
LONGEST = 512  # tokens; beyond it the float32 weights of one head no longer fit beside everything else


def fits(heads: int, head_width: int, tokens: int, attended: int) -> bool:
    """Whether the kernel takes these shapes."""
    whole = head_width % LANES == 0 or (LANES % head_width == 0 and heads * head_width % LANES == 0)
    return whole and tokens <= LONGEST and attended <= LONGEST


Segments = tuple[Array, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def fused_attention(
    q_BTD: Array,
    k_BSD: Array,
    v_BSD: Array,
    mask_BS: Array,
    segments: Segments | None,
    heads: int,
    causal: bool,
    interpret: bool = False,
) -> Array:
    """[B, T, D] in the dtype of q: softmax(q k' / sqrt(K)) v for each of `heads` heads (Vaswani 2017, eq. 1).

    Products take operands in the dtype of q and add up in float32; the softmax is float32. A query that may attend to nothing
    attends evenly.

    Args:
      q_BTD, k_BSD, v_BSD: all heads side by side, D = heads x K; shapes as `fits` allows.
      mask_BS: bool, True = may be attended to.
      segments: ids [B, T] and [B, S] int32, from -1 to below 2^23: a query sees only keys of its own id. None for one of all.
      causal: query t sees keys up to t + S - T.
      interpret: run the kernel as plain JAX, for tests on a machine without a TPU.
    """
    return _call(_forward, 1, (q_BTD, k_BSD, v_BSD), _seers(mask_BS, segments), heads, causal, interpret)[0]


def _fused_fwd(q: Array, k: Array, v: Array, mask: Array, segments: Any, *rest: Any) -> tuple[Array, Any]:
    return fused_attention(q, k, v, mask, segments, *rest), (q, k, v, mask, segments)


def _fused_bwd(heads: int, causal: bool, interpret: bool, saved: Any, do_BTD: Array) -> tuple[Any, ...]:
    q, k, v, mask, segments = saved
    dq, dk, dv = _call(_backward, 3, (q, k, v, do_BTD), _seers(mask, segments), heads, causal, interpret)
    return dq, dk, dv, None, None


fused_attention.defvjp(_fused_fwd, _fused_bwd)


def flops(batch: int, heads: int, head_width: int, tokens: int, attended: int) -> tuple[int, int]:
    """FLOPs of the products of a forward and of a backward call; the latter recomputes the weights."""
    product = 2 * batch * heads * tokens * attended * head_width
    return 2 * product, 5 * product


def _seers(mask_BS: Array, segments: Segments | None) -> tuple[Array, ...]:
    """What says which keys a query sees, float32: the mask [B, 1, S], or of segments a [B, 2, T] and b [B, 2, S], where it sees
    those with a' b = 0.

    A product of two rows is an outer difference, for which a kernel need not turn a row into a column.
    """
    if segments is None:
        return (mask_BS.astype(jnp.float32)[:, None, :],)
    ids_BT, ids_BS = segments[0].astype(jnp.float32), jnp.where(mask_BS, segments[1], -2).astype(jnp.float32)
    return jnp.stack([ids_BT, jnp.ones_like(ids_BT)], axis=1), jnp.stack([jnp.ones_like(ids_BS), -ids_BS], axis=1)


def _call(
    kernel: Any, outputs: int, arrays: tuple[Array, ...], seers: tuple[Array, ...], heads: int, causal: bool, interpret: bool
) -> list[Array]:
    """Run a kernel over the examples. Outputs have the shapes of the first arrays."""
    batch, tokens, width = arrays[0].shape
    attended = arrays[1].shape[1]
    together = max(n for n in range(1, max(1, ROWS // max(tokens, attended)) + 1) if batch % n == 0)

    def block(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((together, *x.shape[1:]), lambda i: (i,) + (0,) * (x.ndim - 1))

    def run(*refs: Any) -> None:
        settings: dict[str, Any] = {"heads": heads, "head_width": width // heads, "causal": causal}
        kernel(refs[: len(seers)], *refs[len(seers) :], **settings)

    forward, backward = flops(batch, heads, width // heads, tokens, attended)
    moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *arrays[:outputs]))
    cost = pl.CostEstimate(
        flops=forward if outputs == 1 else backward, bytes_accessed=moved, transcendentals=batch * heads * tokens * attended
    )
    return pl.pallas_call(
        run,
        grid=(batch // together,),
        in_specs=[block(x) for x in (*seers, *arrays)],
        out_specs=[block(x) for x in arrays[:outputs]],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[:outputs]],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=cost,
        interpret=interpret,
        name=f"fused_attention{kernel.__name__}",
    )(*seers, *arrays)


def _forward(seers: Any, q: Any, k: Any, v: Any, out: Any, *, heads: int, head_width: int, causal: bool) -> None:
    for example in range(q.shape[0]):
        seen_TS = _seen([x[example] for x in seers], q.shape[1], causal)
        for lanes, members in _groups(heads, head_width):
            q_TG, k_SG, v_SG = (x[example, :, lanes] for x in (q, k, v))
            mixed_TG = jnp.zeros(q_TG.shape, jnp.float32)
            for own in members:
                weights_TS = _weights(_keep(q_TG, own), k_SG, seen_TS, head_width)
                one_TG = _dot(weights_TS.astype(v_SG.dtype), v_SG, (1, 0))
                mixed_TG = one_TG if own is None else mixed_TG + _keep(one_TG, own)
            out[example, :, lanes] = mixed_TG.astype(out.dtype)


def _backward(
    seers: Any, q: Any, k: Any, v: Any, do: Any, dq: Any, dk: Any, dv: Any, *, heads: int, head_width: int, causal: bool
) -> None:
    for example in range(q.shape[0]):
        seen_TS = _seen([x[example] for x in seers], q.shape[1], causal)
        for lanes, members in _groups(heads, head_width):
            q_TG, k_SG, v_SG, do_TG = (x[example, :, lanes] for x in (q, k, v, do))
            dq_TG = jnp.zeros(q_TG.shape, jnp.float32)
            dk_SG, dv_SG = jnp.zeros(k_SG.shape, jnp.float32), jnp.zeros(k_SG.shape, jnp.float32)
            for own in members:
                qh_TG, doh_TG = _keep(q_TG, own), _keep(do_TG, own)
                p_TS = _weights(qh_TG, k_SG, seen_TS, head_width)
                dp_TS = _dot(doh_TG, v_SG, (1, 1))
                ds_TS = p_TS * (dp_TS - jnp.sum(p_TS * dp_TS, axis=1, keepdims=True)) * head_width**-0.5
                # A query that sees nothing has even weights, which depend on no logit.
                ds_TS = jnp.where(seen_TS, ds_TS, 0.0).astype(q_TG.dtype)
                dq_TG += _keep(_dot(ds_TS, k_SG, (1, 0)), own)
                dk_SG += _dot(ds_TS, qh_TG, (0, 0))  # qh and doh are zero outside the head's lanes, so these are too
                dv_SG += _dot(p_TS.astype(do_TG.dtype), doh_TG, (0, 0))
            dq[example, :, lanes] = dq_TG.astype(dq.dtype)
            dk[example, :, lanes] = dk_SG.astype(dk.dtype)
            dv[example, :, lanes] = dv_SG.astype(dv.dtype)


def _groups(heads: int, head_width: int) -> list[tuple[slice, list[Any]]]:
    """Aligned ranges of lanes, each with the heads in it: their own lanes within the range, None where one has it alone."""
    if head_width % LANES == 0:
        return [(slice(h * head_width, (h + 1) * head_width), [None]) for h in range(heads)]
    members: list[Any] = [(i * head_width, (i + 1) * head_width) for i in range(LANES // head_width)]
    return [(slice(start, start + LANES), members) for start in range(0, heads * head_width, LANES)]


def _keep(x: Array, own: tuple[int, int] | None) -> Array:
    """x with all lanes but a head's own set to zero."""
    if own is None:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    kept = jnp.where((lane >= own[0]) & (lane < own[1]), x.astype(jnp.float32), 0.0)  # a v5e selects in 32 bits only
    return kept.astype(x.dtype)


def _seen(seers: list[Array], tokens: int, causal: bool) -> Array:
    """[T, S] bool: which keys each query may attend to; see `_seers`."""
    shape = (tokens, seers[-1].shape[1])
    seen_TS = jnp.broadcast_to(seers[-1], shape) > 0.0 if len(seers) == 1 else jnp.abs(_dot(seers[0], seers[1], (0, 0))) < 0.5
    if causal:
        t, s = (jax.lax.broadcasted_iota(jnp.int32, shape, dim) for dim in (0, 1))
        seen_TS = seen_TS & (s <= t + (shape[1] - shape[0]))
    return seen_TS


def _weights(q_TG: Array, k_SG: Array, seen_TS: Array, head_width: int) -> Array:
    """[T, S] float32 softmax weights of one head."""
    logits = jnp.where(seen_TS, _dot(q_TG, k_SG, (1, 1)) * head_width**-0.5, float(jnp.finfo(jnp.float32).min))
    e = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    return e / jnp.sum(e, axis=1, keepdims=True)


def _dot(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
    """A product of two matrices that adds up in float32; float32 operands are not rounded first."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
