"""Muon: matrices move along their orthogonalised momentum, everything else by AdamW."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, map_with_path, match, match_any
from mmjax.core.types import Array, Params
from mmjax.train.optimizer import Optimizer

MATRICES = ("*/*attention/*/kernel", "*/mlp/*/kernel")


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Jordan 2024 (github.com/KellerJordan/Muon), its updates scaled as in Liu 2025 (arXiv 2502.16982, eq. 4).

    A matrix moves by U V^T of its momentum U S V^T, found by five steps of a Newton-Schulz iteration (so all singular values
    come to about 1). A layer of a stack is a matrix of its own, and a kernel of several input or output dims one with those
    dims joined: [D, H, K] is D x H K. Embeddings, projections of patches, logits, norms, biases and learned tokens go by AdamW.

    With `rms` an entry of a matrix moves by about as much as AdamW's entries do, so one learning rate serves both, and one that
    was tuned for AdamW is a good start. It keeps half of AdamW's state for matrices.

    Attributes:
      matrices: patterns of the parameters that are matrices; what has less than two dims in a layer goes by AdamW all the same.
      momentum: decay of the mean of the gradients of matrices.
      nesterov: look ahead, as Nesterov's does.
      iterations: steps of the Newton-Schulz iteration.
      rms: root mean square of a matrix's update, before the learning rate; 0 scales it by sqrt(max(1, outputs / inputs)), as
        Jordan does, whose learning rate is about 0.02 and wants `rates` below 1 for the rest.
      b1: AdamW's decay of the mean of gradients, for the rest.
      b2: its decay of the mean of their squares.
      eps: added to the root of the latter.
    """

    matrices: tuple[str, ...] = MATRICES
    momentum: float = setting(least=0, below=1, default=0.95)
    nesterov: bool = True
    iterations: int = setting(least=1, default=5)
    rms: float = setting(least=0, default=0.2)
    b1: float = setting(least=0, below=1, default=0.9)
    b2: float = setting(least=0, below=1, default=0.999)
    eps: float = setting(least=0, default=1e-8)

    def build(self, params: Params, steps: int) -> optax.GradientTransformation:
        """As every optimizer's.

        Raises:
          UserError: a pattern of `matrices` that matches no parameter (of the default ones: where none does).
        """
        found = leaves_by_path(params)
        missed = [p for p in self.matrices if not any(match(p, path) and _is_matrix(path, x) for path, x in found.items())]
        if missed if self.matrices != MATRICES else len(missed) == len(MATRICES):
            raise UserError(f"optimizer.matrices: {missed[0]!r} matches no matrix; one parameter is {next(iter(found))!r}")
        return super().build(params, steps)

    def core(self) -> optax.GradientTransformation:
        spectral = scale_by_muon(
            ns_steps=self.iterations,
            beta=self.momentum,
            nesterov=self.nesterov,
            weight_dimension_numbers=lambda tree: map_with_path(lambda path, x: dims(path, x.ndim), tree),
        )
        rescaled = optax.stateless(lambda updates, params: map_with_path(self._rescaled, updates))
        kinds = {"matrix": optax.chain(spectral, rescaled), "rest": optax.scale_by_adam(self.b1, self.b2, self.eps)}
        return optax.partition(kinds, lambda tree: map_with_path(self._kind, tree))

    def _kind(self, path: str, x: Any) -> str:
        return "matrix" if match_any(self.matrices, path) and _is_matrix(path, x) else "rest"

    def _rescaled(self, path: str, update: Array) -> Array:
        contracted = dims(path, update.ndim)
        inputs, outputs = (
            math.prod(update.shape[i] for i in axes) for axes in (contracted.reduction_axis, contracted.output_axis)
        )
        # A matrix of orthonormal rows or columns has a root mean square of 1 / sqrt(the larger side).
        return update * (self.rms * max(inputs, outputs) ** 0.5 if self.rms else max(1.0, outputs / inputs) ** 0.5)


def dims(path: str, ndim: int) -> MuonDimensionNumbers:
    """Which dims of a kernel are contracted with its input and which are its output; that of a stack's layers is neither.

    All but the last are contracted, as in [H, K, D] and in a convolution; of attention's q, k and v [D, H, K] the first alone.
    """
    first = _first(path)
    split = first + 1 if match("*attention/[qkv]/kernel", path) else ndim - 1
    return MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, ndim)))


def _first(path: str) -> int:
    return 1 if "/layers/" in path else 0


def _is_matrix(path: str, x: Array | jax.ShapeDtypeStruct) -> bool:
    return x.ndim - _first(path) >= 2
