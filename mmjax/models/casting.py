"""The dtype that a model computes in, and which parameters are used in float32 all the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError
from mmjax.core.stacked import is_stacked
from mmjax.core.trees import map_with_path, match_any
from mmjax.core.types import Params
from mmjax.nn.narrow import SCALE
from mmjax.parallel.mesh import platform

# Parameters that are used in float32 whatever the compute dtype.
FLOAT32 = (
    *("*/norm/scale", "*/norm/bias", "*/*_norm/scale", "*/*_norm/bias"),
    *("*/scale_logit", "*/bias_logit", "*/mix", "*/cache_keys"),
    *(f"*/{SCALE}", "*/lora_scale", "*/lora_dropout", "*/dora_magnitude"),
)


def compute_dtype(dtype: str) -> jnp.dtype:
    """The dtype activations are computed in.

    Raises:
      UserError: neither `auto`, `float32` nor `bfloat16`.
    """
    if dtype == "auto":
        dtype = "float32" if platform() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype={dtype!r}: use auto, float32 or bfloat16")
    return jnp.dtype(dtype)


def cast_params(params: Params, dtype: jnp.dtype) -> Params:
    """Parameters in the compute dtype, all but norms' and learned scalars'; and kernels that are kept narrower, which the layer
    that uses them widens, one at a time."""

    def cast(path: str, leaf: Any) -> Any:  # a leaf in parts has the one name
        narrow = path.endswith("/kernel") and all(x.dtype.itemsize < dtype.itemsize for x in jax.tree.leaves(leaf))
        if narrow or match_any(FLOAT32, path):
            return leaf
        return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), leaf)

    return map_with_path(cast, params, is_leaf=is_stacked)
