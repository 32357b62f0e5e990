"""Activation functions by name, as a config writes them."""

from __future__ import annotations

from collections.abc import Callable

import jax

from mmjax.core.errors import UserError
from mmjax.core.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016, section 2
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jax.numpy.tanh,
    "linear": lambda x: x,
}
# Of a feed-forward layer: the activation of the half that gates the other.
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}


def activation(name: str) -> Callable[[Array], Array]:
    """The function a config names.

    Raises:
      UserError: an unknown name.
    """
    if name not in ACTIVATIONS:
        raise UserError(
            f"activation={name!r}: use one of {', '.join(ACTIVATIONS)} (or {', '.join(GATED)} in a feed-forward layer)"
        )
    return ACTIVATIONS[name]
