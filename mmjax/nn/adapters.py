"""What adapters do to a linear layer or a table, by the leaves that lie beside its kernel.

`adapt` puts them there; the module that owns the kernel uses what it finds, so that neither its fields nor its initialisation
know of any. Of a kernel [in..., out...] (dims as `nn.linear.Linear` has them; a stack's leaves begin with the layers):

    lora_a [in..., r], lora_b [r, out...], lora_scale []    y = x W + scale (x A) B: Hu 2022, eq. 3
    lora_a0, lora_b0, as these                              what they began with, taken away again (PiSSA: Meng 2024, eq. 3)
    lora_dropout []                                         rate at which x is dropped before A, when training
    dora_magnitude [out...]                                 each column of W + scale A B gets this length: Liu 2024, eq. 5
    ia3_in [in...], ia3_out [out...]                        factors of x, and of y with its bias: Liu 2022, section 3.3

Two change no product, and are used by whoever holds the layer or the table (`nn.virtual`):

    prompt_tokens [n, D], prompt_place [after + 1]          tokens among those that a tower reads, after so many of its own
    prompt_room [n, D], prompt_layers [n, D]                zeros there instead, and what takes their place in every layer of a
                                                            stack, beside its kernel of queries: Jia 2022, eq. 5
    prefix_keys, prefix_values [n, *out]                    beside the kernel of keys, what is attended to before all

Five lie beside the last kernel of a branch of a layer, and act after it: `bottleneck_down` and its kin (`nn.bottleneck`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.types import Array

CONSTANTS = (
    "lora_scale",
    "lora_dropout",
    "lora_a0",
    "lora_b0",
    "prompt_place",
    "prompt_room",
    "bottleneck_kind",
)  # never trained
BOTTLENECK = ("bottleneck_down", "bottleneck_down_bias", "bottleneck_up", "bottleneck_up_bias")
BESIDE = ("prompt_tokens", "prompt_layers", "prefix_keys", "prefix_values", *BOTTLENECK)  # which no kernel could hold
TRAINED = ("lora_a", "lora_b", "dora_magnitude", "ia3_in", "ia3_out", *BESIDE)
LEAVES = (*TRAINED, *CONSTANTS)


def scaled_input(module: nn.Module, x: Array, axes: int) -> Array:
    """x times `ia3_in`, over its last `axes` dims."""
    return _scaled(x, leaf_of(module, "ia3_in"), axes)


def scaled_output(module: nn.Module, y: Array, dims: int) -> Array:
    """y times `ia3_out`, over its last `dims` dims."""
    return _scaled(y, leaf_of(module, "ia3_out"), dims)


def low_rank(module: nn.Module, x: Array, y: Array, kernel: Array, axes: int, multiply: Callable[..., Array]) -> Array:
    """y, which is x W without its bias, as LoRA and DoRA change it.

    Args:
      multiply: (x, kernel, axes) -> their product in the dtype of y.
    """
    factors = _factors(module)
    if factors is None:
        return y
    a, b, scale = factors
    dropped = _dropped(module, x)
    z = x if dropped is None else dropped
    inner = multiply(z, a.astype(x.dtype), axes).astype(jnp.float32) * scale  # not rounded to bfloat16
    delta = multiply(inner.astype(x.dtype), b.astype(x.dtype), 1)
    magnitude = leaf_of(module, "dora_magnitude")
    if magnitude is None:
        return y + delta
    length = column_lengths(kernel.astype(jnp.float32), a, b, scale)
    # The length counts as a constant in the derivative (Liu 2024, section 4.3).
    factor = (magnitude / jax.lax.stop_gradient(length)).astype(y.dtype)[(None,) * (y.ndim - magnitude.ndim)]
    if dropped is None:
        return factor * (y + delta)
    return y + (factor - 1) * multiply(z, kernel.astype(x.dtype), axes) + factor * delta  # y itself is of what is not dropped


def column_lengths(kernel: Array, a: Array, b: Array, scale: Array) -> Array:
    """[out...] float32: the length of each column of kernel + scale A B."""
    axes = a.ndim - 1
    whole = kernel + scale * jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), 1)
    return jnp.sqrt(jnp.sum(jnp.square(whole), tuple(range(axes))))


def added_rows(module: nn.Module, ids: Array, dtype: Any) -> Array | None:
    """[..., D]: what LoRA adds to the rows `ids` of a table; None without."""
    factors = _factors(module)
    if factors is None:
        return None
    a, b, scale = factors
    return jnp.dot(jnp.take(a, ids, axis=0) * scale, b).astype(dtype)


def added_table(module: nn.Module) -> Array | None:
    """[rows, D] float32: what LoRA adds to a whole table; None without."""
    factors = _factors(module)
    return None if factors is None else jnp.dot(factors[0] * factors[2], factors[1])


def joined_factors(a: Any, b: Any, a0: Any, b0: Any, stacked: int = 0) -> tuple[Any, Any]:
    """A and B of twice the rank: with what they began with taken away. Of host arrays host arrays; `stacked`: 1 with layers."""
    if a0 is None:
        return a, b
    numbers = np if isinstance(a, np.ndarray) else jnp
    return numbers.concatenate([a, a0], -1), numbers.concatenate([b, -b0], stacked)


def _factors(module: nn.Module) -> tuple[Array, Array, Array] | None:
    a, b, scale, a0, b0 = (leaf_of(module, f"lora_{name}") for name in ("a", "b", "scale", "a0", "b0"))
    if a is None or scale is None:
        return None
    return *joined_factors(a, b, a0, b0), scale


def _dropped(module: nn.Module, x: Array) -> Array | None:
    """x as dropout leaves it; None where none is on."""
    rate = leaf_of(module, "lora_dropout")
    if rate is None or not module.has_rng("dropout"):
        return None
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate).astype(x.dtype), jnp.zeros_like(x))


def _scaled(x: Array, factor: Array | None, dims: int) -> Array:
    if factor is None:
        return x
    assert factor.ndim == dims and math.prod(factor.shape) == math.prod(x.shape[x.ndim - dims :])
    return x * factor.astype(x.dtype)[(None,) * (x.ndim - dims)]


def leaf_of(module: nn.Module, name: str) -> Array | None:
    """A parameter that lies in a module's own scope; None where there is none."""
    return module.get_variable("params", name) if module.has_variable("params", name) else None
