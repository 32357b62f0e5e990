"""A forward of a few matrices: small enough to write out by hand, and every output depends on every input it should."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.types import Array, Batch, Loss, Objective, Tokens

WIDTH, EMBED, VOCABULARY, CLASSES = 4, 3, 11, 3
PAD, CLS, MASK = 0, 1, 2


FUSIONS = {"cross": ("text", "image")}
SPECS = {
    "heads.classes": types.SimpleNamespace(input="image"),
    "heads.both": types.SimpleNamespace(input="cross"),
    "heads.match": types.SimpleNamespace(input="cross"),
    "heads.masked_lm": types.SimpleNamespace(input="text"),
    "heads.masked_lm_fused": types.SimpleNamespace(input="cross"),
    "heads.next_sentence": types.SimpleNamespace(input="text"),
    "decoders.caption": types.SimpleNamespace(context=("image",), writes="text"),
    "decoders.pixels": types.SimpleNamespace(context=("image",), writes="image"),
}


def fake_params(seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng(seed).normal
    shapes = {
        "encoders_text": (VOCABULARY, WIDTH),
        "encoders_image": (12, WIDTH),
        "dual_text": (WIDTH, EMBED),
        "dual_image": (WIDTH, EMBED),
        "match": (WIDTH, 2),
        "next_sentence": (WIDTH, 2),
        "classes": (WIDTH, CLASSES),
        "both": (WIDTH, CLASSES),
        "masked_lm": (WIDTH, VOCABULARY),
        "masked_lm_fused": (WIDTH, VOCABULARY),
        "caption": (WIDTH, VOCABULARY),
        "scale": (),
        "bias": (),
        "pixels": (WIDTH, 4 * 12),
    }
    return {name: jnp.asarray(draw(size=shape), jnp.float32) for name, shape in shapes.items()}


def fake_batch(size: int = 8, length: int = 5, seed: int = 0) -> dict[str, Array]:
    """Right-padded texts, the first 8 all different, without groups."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, length + 1, size)
    mask = np.arange(length)[None] < lengths[:, None]
    text = np.where(mask, rng.integers(3, VOCABULARY, (size, length)), PAD)
    text[:, 0] = CLS
    text[:, 1] = 3 + np.arange(size) % (VOCABULARY - 3)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 4, 4, 3)), jnp.float32),
        "text": jnp.asarray(text, jnp.int32),
        "text_mask": jnp.asarray(mask),
        "text_segments": jnp.asarray(rng.integers(0, 2, (size, length)), jnp.int32),
        "label": jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32),
        "next": jnp.asarray(rng.integers(0, 2, size), jnp.int32),
        "index": jnp.arange(size, dtype=jnp.int32),
    }


def mean_tokens(tokens: Tokens) -> Array:
    """[B, D]: the mean over real tokens."""
    weight_BT = tokens.mask.astype(jnp.float32)
    return jnp.einsum("btd,bt->bd", tokens.embeddings, weight_BT) / jnp.maximum(jnp.sum(weight_BT, 1, keepdims=True), 1.0)


def unit(x_BE: Array) -> Array:
    """Rows of length 1; a row of zeros, which has no length, stays one."""
    return x_BE * jax.lax.rsqrt(jnp.sum(x_BE * x_BE, axis=1, keepdims=True) + 1e-12)


class FakeForward:
    """The `Forward` protocol over `fake_params`. `calls` lists what really ran, with the shape of what it ran on."""

    lacking = False

    def __init__(self, batch: Batch, params: Mapping[str, Array], train: bool = True) -> None:
        self.batch, self.params, self.train = batch, params, train
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.fused: dict[str, Tokens] = {}
        self._remembered: dict[tuple[str, str], Tokens] = {}

    def encode(self, modality: str, inputs: Mapping[str, Array] | None = None, key: str = "") -> Tokens:
        assert (inputs is None) == (not key)
        if (modality, key) not in self._remembered:
            batch = dict(self.batch) | dict(inputs or {})
            self.calls.append((f"encode {modality}", batch[modality].shape))
            self._remembered[modality, key] = self._encode(modality, batch)
        return self._remembered[modality, key]

    def _encode(self, modality: str, batch: Batch) -> Tokens:
        if modality == "text":
            return Tokens(self.params["encoders_text"][batch["text"]], batch["text_mask"])
        rows = batch["image"].reshape(batch["image"].shape[0], 4, 12)
        if "image_keep" in batch:
            rows = jnp.take_along_axis(rows, batch["image_keep"][:, :, None], axis=1)
        return Tokens(rows @ self.params["encoders_image"], jnp.ones(rows.shape[:2], bool))

    def view(self, key: str) -> Array:
        return self.batch[key]

    def with_(self, views: Mapping[str, Array]) -> FakeForward:
        return FakeForward({**self.batch, **views}, self.params, self.train)

    def spec(self, path: str) -> types.SimpleNamespace:
        return SPECS[path]

    def modalities(self, name: str) -> tuple[str, ...]:
        return FUSIONS.get(name, (name,))

    def tokens(self, name: str, key: str = "") -> Tokens:
        if name not in FUSIONS:
            return self.encode(name)
        return self.fuse(name, {modality: self.encode(modality) for modality in FUSIONS[name]}, key=key or "head")

    def embed(self, modality: str, fusion: str = "dual", inputs: Mapping[str, Array] | None = None, key: str = "") -> Array:
        return unit(mean_tokens(self.encode(modality, inputs, key)) @ self.params[f"{fusion}_{modality}"])

    def fuse(self, fusion: str, tokens: Mapping[str, Tokens], key: str) -> Tokens:
        assert key
        self.fused = dict(tokens)
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *tokens.values())
        self.calls.append((f"fuse {fusion}", joined.embeddings.shape))
        return Tokens(jnp.tanh(joined.embeddings + mean_tokens(joined)[:, None, :]), joined.mask)

    def decode(
        self, decoder: str, inputs: Mapping[str, Array], context: Mapping[str, Tokens] | None = None, key: str = ""
    ) -> Array:
        if decoder == "pixels":
            (seen,) = (context or {}).values()
            self.calls.append((f"decode {decoder}", seen.embeddings.shape))
            return (mean_tokens(seen) @ self.params[decoder]).reshape(-1, 4, 12)
        text_BTD = self.params["encoders_text"][inputs["text"]]
        self.calls.append((f"decode {decoder}", text_BTD.shape))
        steps = jnp.arange(1, text_BTD.shape[1] + 1, dtype=jnp.float32)[None, :, None]
        seen_BTD = jnp.cumsum(text_BTD, axis=1) / steps
        for tokens in (context or {}).values():
            seen_BTD = seen_BTD + mean_tokens(tokens)[:, None, :]
        return jnp.tanh(seen_BTD) @ self.params[decoder]

    def head(self, head: str, tokens: Tokens | None = None, key: str = "") -> Array:
        if tokens is None:
            tokens = self.tokens(SPECS[f"heads.{head}"].input, key)
        self.calls.append((f"head {head}", tokens.embeddings.shape))
        inputs = tokens.embeddings if head.startswith("masked_lm") else mean_tokens(tokens)
        return inputs @ self.params[head]

    def scalar(self, fusion: str, name: str) -> Array:
        return jnp.exp(self.params["scale"]) if name == "scale" else self.params["bias"]


@partial(jax.jit, static_argnums=0)
def _run(objective: Objective, batch: Batch, params: Mapping[str, Array], key: Array) -> tuple[Loss, dict[str, Tokens]]:
    forward = FakeForward(batch, params)
    return objective(forward, batch, key), forward.fused


def run(objective: Objective, batch: Batch, params: Mapping[str, Array] | None = None, seed: int = 0) -> Loss:
    """The loss on a fresh forward, jitted: eager JAX would compile every operation by itself."""
    return _run(objective, dict(batch), params or fake_params(), jax.random.key(seed))[0]


@jax.jit
def embedded(batch: Batch, params: Mapping[str, Array]) -> tuple[Array, Array]:
    """Images and texts in their shared space, both [B, E]."""
    forward = FakeForward(batch, params)
    return forward.embed("image"), forward.embed("text")


def fused(objective: Objective, batch: Batch, seed: int = 0) -> dict[str, Tokens]:
    """What the objective handed to its fusion."""
    return _run(objective, dict(batch), fake_params(), jax.random.key(seed))[1]


def calls(objective: Objective, batch: Batch) -> list[tuple[str, tuple[int, ...]]]:
    """What the objective made the forward run, without running it."""
    forward = FakeForward(batch, fake_params())
    jax.eval_shape(lambda: objective(forward, batch, jax.random.key(0)))
    return forward.calls
