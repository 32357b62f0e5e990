"""The bound model, as objectives and evaluators see it. No flax here: each computation is one pure `apply`.

What was computed once in a step is remembered by its name and inputs: a modality is encoded once however many objectives ask
for it, and nobody gets another's result. Dropout and augmentation keys are folded with that name (the caller's `key` is part of
it), so the order in which objectives ask changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import UserError, nearest
from mmjax.core.random import example_keys, fold_name
from mmjax.core.trees import map_with_path
from mmjax.core.types import Array, Batch, Params, Tokens
from mmjax.models.multimodal import Multimodal
from mmjax.parallel.mesh import platform

FLOAT32 = ("norm", "_logit", "mix")  # parts of a path whose parameters are used in float32 whatever the compute dtype


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
    """Parameters in the compute dtype, all but norms' and learned scalars'."""
    if dtype == jnp.float32:
        return params
    return map_with_path(lambda path, x: x if any(part in path for part in FLOAT32) else x.astype(dtype), params)


class BoundForward:
    """`core.types.Forward` over a model, its parameters and one batch.

    Args:
      rng: key of this step's dropout and augmentation; None when not training.
      part: [] int32, which micro-batch of the step this is: each has dropout of its own. Augmentation is an example's own.
      embedded: (fusion, modality) -> [B, E], embeddings of this batch that are known already.
    """

    def __init__(
        self,
        model: Multimodal,
        params: Params,
        batch: Batch,
        rng: Array | None = None,
        part: Array | None = None,
        embedded: Mapping[tuple[str, str], Array] | None = None,
    ):
        self.batch = batch
        self.train = rng is not None
        self._model = model
        self._dtype = compute_dtype(model.dtype)
        self._params = cast_params(params, self._dtype)
        self._rng = rng
        self._part = part
        self._embedded = embedded or {}
        self._memory: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def encode(self, modality: str, inputs: Mapping[str, Array] | None = None, key: str = "") -> Tokens:
        source = {**self.batch, **(inputs or {})}
        if modality not in source:
            raise UserError(f"the batch has no {modality!r}{nearest(modality, source)}; it has {', '.join(source)}")
        raw = {part: source.get(f"{modality}{part}") for part in ("", "_mask", "_segments", "_keep")}

        def compute() -> Tokens:
            x = self._view(modality, source[modality])
            x = x.astype(self._dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
            rest = (raw["_mask"], raw["_segments"], raw["_keep"])
            return self._apply("encode", f"encode/{modality}/{key}", modality, x, *rest)

        return self._once(("encode", modality, key), raw, compute)

    def view(self, modality: str) -> Array:
        return self._view(modality, self.batch[modality])

    def embed(self, modality: str, fusion: str = "dual", inputs: Mapping[str, Array] | None = None, key: str = "") -> Array:
        if inputs is None and not key and (fusion, modality) in self._embedded:
            return self._embedded[fusion, modality]
        tokens = self.encode(modality, inputs, key)
        name = f"embed/{fusion}/{modality}/{key}"
        return self._once(
            ("embed", fusion, modality, key), tokens, lambda: self._apply("embed", name, fusion, modality, tokens)
        )

    def fuse(self, fusion: str, tokens: Mapping[str, Tokens], key: str) -> Tokens:
        taken = dict(tokens)
        return self._once(("fuse", fusion, key), taken, lambda: self._apply("fuse", f"fuse/{fusion}/{key}", fusion, taken))

    def decode(
        self, decoder: str, inputs: Mapping[str, Array], context: Mapping[str, Tokens] | None = None, key: str = ""
    ) -> Array:
        written = "text" if "text" in inputs else "image"
        taken, x, mask = dict(context or {}), inputs[written], inputs.get(f"{written}_mask")

        def compute() -> Array:
            return self._apply("decode", f"decode/{decoder}/{key}", decoder, x, mask, taken).astype(jnp.float32)

        return self._once(("decode", decoder, key), (x, mask, taken), compute)

    def head(self, head: str, tokens: Tokens, key: str) -> Array:
        return self._once(("head", head, key), tokens, lambda: self._apply("head", f"head/{head}/{key}", head, tokens))

    def scalar(self, fusion: str, name: str) -> Array:
        return self._once(("scalar", fusion, name), (), lambda: self._apply("scalar", "scalar", fusion, name))

    def _view(self, modality: str, x: Array) -> Array:
        """A raw input, augmented when training."""
        augment, rng = self._model.augment.get(modality), self._rng
        if augment is None or rng is None or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        keys = example_keys(fold_name(rng, f"augment/{modality}"), self.batch["index"])
        return self._once(("view", modality), x, lambda: augment(x, keys))

    def _apply(self, method: str, name: str, *args: Any) -> Any:
        rngs = None if self._rng is None else {"dropout": self._dropout(self._rng, name)}
        return self._model.apply({"params": self._params}, *args, method=method, rngs=rngs)

    def _dropout(self, rng: Array, name: str) -> Array:
        key = fold_name(rng, name)
        return key if self._part is None else jax.random.fold_in(key, self._part)

    def _once(self, name: tuple[str, ...], inputs: Any, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, computed once for these very inputs; keeping them keeps their identities from being reused."""
        key = (*name, jax.tree.structure(inputs), *map(id, jax.tree.leaves(inputs)))
        if key not in self._memory:
            self._memory[key] = (inputs, compute())
        return self._memory[key][1]
