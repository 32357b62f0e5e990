"""A product of two arrays: what its numbers are added up in, and the products of its derivative."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from mmjax.core.types import Array
from mmjax.parallel.mesh import platform

Dims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]

CPUINFO = Path("/proc/cpuinfo")
NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}  # what Linux calls the instructions that multiply bfloat16, the last one on Arm


def product(a: Array, b: Array, dims: Dims, dtype: Any = None) -> Array:
    """`jax.lax.dot_general(a, b, dims)`: products of numbers of one dtype, summed in float32, as `dtype` (None: their own).

    In float32 it is that function itself. Of narrower numbers, the derivative's products take the cotangent in their dtype too,
    as all hardware wants it, also where the result is float32. What else is done for bfloat16 is done on the CPU, see `_sums`.

    Nothing is kept or computed for the derivative by an argument that is not differentiated. `b` may be kept narrower than `a`
    (`nn.narrow`); it is widened here, and again for the derivative.
    """
    dtype = jnp.dtype(dtype or a.dtype)
    if a.dtype != b.dtype:
        return _by_kept(a, b, dims, dtype)
    if a.dtype == jnp.float32 or (dtype == a.dtype and not (platform() == "cpu" and multiplies_bfloat16())):
        return jax.lax.dot_general(a, b, dims, preferred_element_type=dtype)
    return _narrow(a, b, dims, dtype)


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the cores of this machine multiply bfloat16; False where the system does not say."""
    try:
        words = set(CPUINFO.read_text().split())
    except OSError:
        return False
    return bool(words & NATIVE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _narrow(a: Array, b: Array, dims: Dims, dtype: Any) -> Array:
    return _sums(a, b, dims, dtype)


def _forward(a: Any, b: Any, dims: Dims, dtype: Any) -> tuple[Array, tuple[Array | None, Array | None]]:
    saved = (a.value if b.perturbed else None, b.value if a.perturbed else None)
    return _sums(a.value, b.value, dims, dtype), saved


def _backward(dims: Dims, dtype: Any, saved: tuple[Array | None, Array | None], g: Any) -> tuple[Array | None, Array | None]:
    a, b = saved
    if isinstance(g, SymbolicZero):
        return None, None
    (in_a, in_b), (each_a, each_b) = dims
    by_a = None if b is None else _transposed(g.astype(b.dtype), b, dims, first=True)
    by_b = None if a is None else _transposed(g.astype(a.dtype), a, ((in_b, in_a), (each_b, each_a)), first=False)
    return by_a, by_b


_narrow.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_kept(a: Array, b: Array, dims: Dims, dtype: Any) -> Array:
    assert b.dtype.itemsize < a.dtype.itemsize, (a.dtype, b.dtype)
    return product(a, b.astype(a.dtype), dims, dtype)


def _forward_by_kept(a: Any, b: Any, dims: Dims, dtype: Any) -> tuple[Array, tuple[Any, ...]]:
    # The narrow one is kept: a loop would otherwise keep the wide kernels of all its layers for the derivative.
    saved = (a.value if b.perturbed else None, b.value, jnp.zeros((), a.value.dtype))
    return _by_kept(a.value, b.value, dims, dtype), saved


def _backward_by_kept(dims: Dims, dtype: Any, saved: tuple[Any, ...], g: Any) -> tuple[Array | None, Array | None]:
    a, b, like = saved
    by_a, by_b = _backward(dims, dtype, (a, b.astype(like.dtype)), g)
    return by_a, None if by_b is None else by_b.astype(b.dtype)


_by_kept.defvjp(_forward_by_kept, _backward_by_kept, symbolic_zeros=True)


def _sums(a: Array, b: Array, dims: Dims, dtype: Any) -> Array:
    """The product itself, of narrow numbers.

    XLA's CPU library multiplies bfloat16 only where the result is float32 (2.6x on an AMD Zen 5) and the first argument is
    summed over its last dim; whatever else it is given it converts to float32 first. So both are arranged for where the cores
    have instructions for that, and where they have none (0.7x of the conversion on a Zen 3) the conversion is left to it.
    """
    if platform() != "cpu":
        return jax.lax.dot_general(a, b, dims, preferred_element_type=dtype)
    if not multiplies_bfloat16():
        return jax.lax.dot_general(a.astype(jnp.float32), b.astype(jnp.float32), dims).astype(dtype)
    (summed_a, summed_b), (each_a, each_b) = dims
    own_a, own_b = (_others(x, *used) for x, used in ((a, (summed_a, each_a)), (b, (summed_b, each_b))))
    each = tuple(a.shape[d] for d in each_a)
    # XLA would fold the transposition into the product, which the library then cannot take (and of other dims than two, which
    # XLA makes two of later than it asks what the library can take, it ends the program).
    rows = jax.lax.optimization_barrier(_laid_out(a, each_a, own_a, summed_a))
    flipped = summed_b[-1] == b.ndim - 1
    columns = _laid_out(b, each_b, own_b, summed_b) if flipped else _laid_out(b, each_b, summed_b, own_b)
    batch = tuple(range(len(each)))
    contracted = ((len(each) + 1,), (len(each) + (1 if flipped else 0),))
    y = jax.lax.dot_general(rows, columns, (contracted, (batch, batch)), preferred_element_type=jnp.float32)
    return y.astype(dtype).reshape(*each, *(a.shape[d] for d in own_a), *(b.shape[d] for d in own_b))


def _others(x: Array, *used: tuple[int, ...]) -> tuple[int, ...]:
    """The dims of x that are none of these."""
    return tuple(d for d in range(x.ndim) if not any(d in dims for dims in used))


def _laid_out(x: Array, each: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...]) -> Array:
    """x with dims `each` as they are, then one for all of `first` and one for all of `second`."""
    order = (*each, *first, *second)
    x = x if order == tuple(range(x.ndim)) else x.transpose(order)
    sizes = x.shape[len(each) :]
    return x.reshape(*x.shape[: len(each)], int(np.prod(sizes[: len(first)])), int(np.prod(sizes[len(first) :])))


def _transposed(g: Array, other: Array, dims: Dims, first: bool) -> Array:
    """The cotangent of one argument, from the result's and the other argument; `dims` name the wanted argument's first.

    The result's dims are the batch's, the first argument's and the second's; `first`: the wanted one is the first.
    """
    (summed, summed_other), (each, each_other) = dims
    own_other = _others(other, summed_other, each_other)
    own_count = g.ndim - len(each) - len(own_other)
    start = len(each) + (own_count if first else 0)
    contracted = (tuple(range(start, start + len(own_other))), own_other)
    x = product(g, other, (contracted, (tuple(range(len(each))), each_other)))
    # What comes out: the batch's dims, the wanted argument's own, and those it was summed over, in the order of the other's.
    own = [d for d in range(len(each) + own_count + len(summed)) if d not in (*summed, *each)]
    there = (*each, *own, *(summed[i] for i in np.argsort(summed_other)))
    return x.transpose(tuple(np.argsort(there).tolist()))
