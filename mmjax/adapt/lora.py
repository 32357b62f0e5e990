"""LoRA and its kin: a product of two thin matrices beside a kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.adapt.method import Given, Method
from mmjax.adapt.places import TABLE, Place
from mmjax.core.config import check_ranges, setting
from mmjax.core.errors import UserError
from mmjax.core.random import fold_name
from mmjax.core.types import Array
from mmjax.nn.adapters import column_lengths

INITS = ("uniform", "gaussian", "pissa")


@dataclasses.dataclass(frozen=True)
class LoRA(Method):
    """W + s A B with A [in, r], B [r, out] trained and W as it was (Hu 2022, eq. 3).

    Usage: `Experiment(adapt={"encoders_text/*/attention/[qv]/*": LoRA(r=8, alpha=16)})`; the pattern "all-linear" is every
    kernel of encoders, fusions and decoders but the last one to words. A table is adapted where the pattern names it.

    Attributes:
      r: the rank.
      alpha: the product is scaled by s = alpha / r.
      dropout: rate at which inputs are dropped before A, when training.
      rslora: scale by alpha / sqrt(r) instead (Kalajdzievski 2023, eq. 4).
      dora: train the length of each column of W apart from its direction (Liu 2024, eq. 5).
      init: what A and B begin with: `uniform` (A as peft's, uniform within 1 / sqrt(in), B zero), `gaussian` (A normal with
        deviation 1 / r), or `pissa` (the r largest singular values of W, taken away again: Meng 2024). A table's A is zero
        and its B normal, as peft's.
    """

    r: int = setting(least=1, default=8)
    alpha: float = setting(above=0, below=math.inf, default=8.0)
    dropout: float = setting(least=0, below=1, default=0.0)
    rslora: bool = False
    dora: bool = False
    init: str = "uniform"

    def __post_init__(self) -> None:
        check_ranges(self, "LoRA.")
        if self.init not in INITS:
            raise UserError(f"LoRA.init={self.init!r}: use one of {', '.join(INITS)}")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def check(self, place: Place, whole: bool) -> None:
        most = min(math.prod(place.inputs), math.prod(place.outputs))
        if self.r > most:
            raise UserError(
                f"LoRA.r={self.r} is above the rank of {place.path}, which is {math.prod(place.inputs)} by "
                f"{math.prod(place.outputs)}; use {most} or less"
            )
        if self.dora and not whole:
            raise UserError(f"LoRA.dora of some layers of {place.path}: a stack has one structure, so adapt all of its layers")
        if place.kind == TABLE and (self.dora or self.dropout or self.init == "pissa"):
            raise UserError(f"LoRA of the table {place.path} can have no dora, no dropout and no init=pissa")

    @staticmethod
    def leaves(place: Place, given: Sequence[Given], kernel: Array, key: Array) -> dict[str, Any]:
        specs = [each.method for each in given]
        if len({(spec.dora, spec.init == "pissa") for spec in specs}) > 1:
            raise UserError(f"adapt: layers of {place.path} differ in dora or in init=pissa: a stack has one structure")
        most = max(spec.r for spec in specs)
        a, b = jnp.zeros((*place.lead, *place.inputs, most)), jnp.zeros((*place.lead, most, *place.outputs))
        for each in given:
            own_a, own_b = each.method._begin(place, kernel, key, most)
            a = jnp.where(_rows(place, each.rows, a.ndim), own_a, a)
            b = jnp.where(_rows(place, each.rows, b.ndim), own_b, b)
        found = {"lora_a": a, "lora_b": b, "lora_scale": _a_layer(place, given, "scale")}
        if any(spec.dropout for spec in specs):
            found["lora_dropout"] = _a_layer(place, given, "dropout")
        if specs[0].init == "pissa":
            found |= {"lora_a0": jnp.copy(a), "lora_b0": jnp.copy(b)}
        if specs[0].dora:
            found["dora_magnitude"] = _lengths(place, kernel, a, b, found["lora_scale"], specs[0].init == "pissa")
        return found

    @staticmethod
    def names(place: Place, given: Sequence[Given]) -> tuple[str, ...]:
        return ("lora_a", "lora_b", *(("dora_magnitude",) if given[0].method.dora else ()))

    def _begin(self, place: Place, kernel: Array, key: Array, most: int) -> tuple[Array, Array]:
        """A and B of all layers, zero beyond the rank."""
        shape_a, shape_b = (*place.lead, *place.inputs, most), (*place.lead, most, *place.outputs)
        own = jnp.arange(most) < self.r
        size = math.prod(place.inputs)
        if place.kind == TABLE:
            b = jax.random.normal(fold_name(key, "b"), shape_b)
            return jnp.zeros(shape_a), b * own.reshape(most, *[1] * len(place.outputs)).astype(b.dtype)
        if self.init == "pissa":
            return _principal(place, kernel, self.r, self.scale, most)
        if self.init == "gaussian":
            a = jax.random.normal(fold_name(key, "a"), shape_a) / self.r
        else:
            a = jax.random.uniform(fold_name(key, "a"), shape_a, minval=-1.0, maxval=1.0) / math.sqrt(size)
        return a * own.reshape((1,) * (a.ndim - 1) + (most,)).astype(a.dtype), jnp.zeros(shape_b)


def _principal(place: Place, kernel: Array, r: int, scale: float, most: int) -> tuple[Array, Array]:
    """The r largest singular values of each layer's kernel, split evenly between A and B, with scale A B their part of it."""
    flat = kernel.astype(jnp.float32).reshape(-1, math.prod(place.inputs), math.prod(place.outputs))
    u, s, v = jnp.linalg.svd(flat, full_matrices=False)
    root = jnp.sqrt(s[:, :r] / scale)
    a, b = u[:, :, :r] * root[:, None], root[:, :, None] * v[:, :r]
    a, b = jnp.pad(a, ((0, 0), (0, 0), (0, most - r))), jnp.pad(b, ((0, 0), (0, most - r), (0, 0)))
    return a.reshape(*place.lead, *place.inputs, most), b.reshape(*place.lead, most, *place.outputs)


def _lengths(place: Place, kernel: Array, a: Array, b: Array, scale: Array, taken_away: bool) -> Array:
    """[L?, out...]: the lengths of the columns that the layer begins with."""
    zero = jnp.zeros_like(scale) if taken_away else scale
    lengths = jax.vmap(column_lengths) if place.layers else column_lengths
    return lengths(kernel.astype(jnp.float32), a, b, zero)


def _a_layer(place: Place, given: Sequence[Given], name: str) -> Array:
    """[L?] float32: a number of each method, in the layers that are its own; 0 in others."""
    numbers = np.sum([each.rows * np.float32(getattr(each.method, name)) for each in given], axis=0)
    return jnp.asarray(numbers if place.layers else numbers[0], jnp.float32)


def _rows(place: Place, rows: np.ndarray, ndim: int) -> Array:
    """Layers as a mask that spreads over a leaf."""
    return jnp.asarray(rows).reshape(-1, *[1] * (ndim - 1)) if place.layers else jnp.asarray(rows).reshape([1] * ndim)
