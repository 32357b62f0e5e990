"""The bound model, as objectives and evaluators see it. No flax here: each computation is one pure `apply`.

What was computed once in a step is remembered, so a modality is encoded once however many objectives ask for it. Dropout and
augmentation keys are folded with the name of the computation, so the order in which objectives ask changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError, nearest
from mmjax.core.random import example_keys, fold_name
from mmjax.core.trees import map_with_path
from mmjax.core.types import Array, Batch, Params, Tokens
from mmjax.models.multimodal import Multimodal

FLOAT32 = ("norm", "_logit", "mix")  # parts of a path whose parameters are used in float32 whatever the compute dtype


def compute_dtype(dtype: str) -> jnp.dtype:
    """The dtype activations are computed in.

    Raises:
      UserError: neither `auto`, `float32` nor `bfloat16`.
    """
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype={dtype!r}: use auto, float32 or bfloat16")
    return jnp.dtype(dtype)


def cast_params(params: Params, dtype: jnp.dtype) -> Params:
    """Parameters in the compute dtype, all but norms' and learned scalars'."""
    if dtype == jnp.float32:
        return params
    return map_with_path(lambda path, x: x if any(part in path for part in FLOAT32) else x.astype(dtype), params)


class BoundForward:
    """`core.types.Forward` over a model, its parameters and one batch.

    Args:
      rng: key of this step's dropout and augmentation; None when not training.
    """

    def __init__(self, model: Multimodal, params: Params, batch: Batch, rng: Array | None = None):
        self.batch = batch
        self.train = rng is not None
        self._model = model
        self._dtype = compute_dtype(model.dtype)
        self._params = cast_params(params, self._dtype)
        self._rng = rng
        self._memory: dict[tuple[str, ...], Any] = {}

    def encode(self, modality: str, inputs: Mapping[str, Array] | None = None, key: str = "") -> Tokens:
        def compute() -> Tokens:
            source = {**self.batch, **(inputs or {})}
            if modality not in source:
                raise UserError(f"the batch has no {modality!r}{nearest(modality, source)}; it has {', '.join(source)}")
            x = self._prepare(modality, source[modality])
            mask, segments = (source.get(f"{modality}_{part}") for part in ("mask", "segments"))
            return self._apply("encode", f"encode/{modality}/{key}", modality, x, mask, segments)

        assert inputs is None or key, "replaced inputs need a key of their own"
        return self._once(("encode", modality, key), compute)

    def embed(self, modality: str, fusion: str = "dual", inputs: Mapping[str, Array] | None = None, key: str = "") -> Array:
        tokens = self.encode(modality, inputs, key)
        return self._once(
            ("embed", fusion, modality, key),
            lambda: self._apply("embed", f"embed/{fusion}/{modality}/{key}", fusion, modality, tokens),
        )

    def fuse(self, fusion: str, tokens: Mapping[str, Tokens], key: str) -> Tokens:
        return self._once(("fuse", fusion, key), lambda: self._apply("fuse", f"fuse/{fusion}/{key}", fusion, dict(tokens)))

    def decode(
        self, decoder: str, inputs: Mapping[str, Array], context: Mapping[str, Tokens] | None = None, key: str = ""
    ) -> Array:
        def compute() -> Array:
            ids, mask = inputs["text"], inputs.get("text_mask")
            return self._apply("decode", f"decode/{decoder}/{key}", decoder, ids, mask, dict(context or {})).astype(jnp.float32)

        return self._once(("decode", decoder, key), compute)

    def head(self, head: str, tokens: Tokens, key: str) -> Array:
        return self._once(("head", head, key), lambda: self._apply("head", f"head/{head}/{key}", head, tokens))

    def scalar(self, fusion: str, name: str) -> Array:
        return self._once(("scalar", fusion, name), lambda: self._apply("scalar", "scalar", fusion, name))

    def _prepare(self, modality: str, x: Array) -> Array:
        """Augment (when training) and cast a raw input."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        augment = self._model.augment.get(modality)
        if augment is not None and self._rng is not None:
            x = augment(x, example_keys(fold_name(self._rng, f"augment/{modality}"), self.batch["index"]))
        return x.astype(self._dtype)

    def _apply(self, method: str, name: str, *args: Any) -> Any:
        rngs = None if self._rng is None else {"dropout": fold_name(self._rng, name)}
        return self._model.apply({"params": self._params}, *args, method=method, rngs=rngs)

    def _once(self, key: tuple[str, ...], compute: Any) -> Any:
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]
