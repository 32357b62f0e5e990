"""Kernels kept narrower than what is computed with them: whole numbers of 8 bits, and a scale for each output beside them.

`train` keeps a frozen base so (`Experiment.frozen_dtype`); `Linear` uses the scale where it finds one.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

SCALE = "kernel_scale"  # [out...] float32, beside a kernel [in..., out...] int8; a stack's begin with the layers
MOST = 127  # -128 is not used, so that the numbers are symmetric


def quantised(kernel: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """(int8 numbers, float32 scale without `axes`) whose product is nearest to the kernel, the largest of each output exact.

    Args:
      kernel: a host array, or a device's; so is the result.
      axes: the dims that it contracts.
    """
    numbers: Any = np if isinstance(kernel, np.ndarray) else jnp
    wide = kernel.astype(numbers.float32)
    scale = numbers.max(numbers.abs(wide), axis=axes, keepdims=True) / numbers.float32(MOST)
    whole = numbers.round(wide / numbers.where(scale > 0, scale, numbers.ones_like(scale)))
    return whole.astype(numbers.int8), scale.reshape([size for dim, size in enumerate(scale.shape) if dim not in axes])


def widened(kernel: Any, scale: Any, stacked: bool) -> Any:
    """[L?, in..., out...] float32, of int8 numbers and their scale [L?, out...]; a kernel that has none (None) as it is."""
    if scale is None:
        return kernel
    lead = 1 if stacked else 0
    wide = scale.reshape(*scale.shape[:lead], *[1] * (kernel.ndim - scale.ndim), *scale.shape[lead:])
    return kernel.astype(wide.dtype) * wide
