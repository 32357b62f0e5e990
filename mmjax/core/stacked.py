"""A parameter of a stack of layers, `[L, ...]`, held as consecutive parts.

So the layers that are trained and those that are frozen stay arrays of their own: what is differentiated by the ones has no
gradient for the others, and a stack scans each run of layers apart.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Run = tuple[int, int]  # layers from the first number to below the second


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stacked:
    """The parts `[n, ...]` of an array `[L, ...]`, one after the other; L is the sum of the n."""

    parts: tuple[Any, ...]

    def runs(self) -> Iterator[tuple[Run, Any]]:
        """Each part with its layers."""
        first = 0
        for part in self.parts:
            yield (first, first + part.shape[0]), part
            first += part.shape[0]


def is_stacked(leaf: Any) -> bool:
    """For `jax.tree.map(..., is_leaf=is_stacked)`."""
    return isinstance(leaf, Stacked)


def layers_of(leaf: Any, run: Run) -> Any:
    """[n, ...]: some layers of a stacked parameter, whole or in parts."""
    first, last = run
    if not isinstance(leaf, Stacked):
        return leaf[first:last]
    found = [part[max(first - a, 0) : last - a] for (a, b), part in leaf.runs() if a < last and b > first]
    return joined(found)


def in_parts(trees: Sequence[Any]) -> Any:
    """One tree of consecutive runs of layers: of each leaf a `Stacked`; of one run alone, or none, that itself."""
    if len(trees) < 2:
        return trees[0] if trees else None
    return jax.tree.map(lambda *leaves: Stacked(leaves), *trees)


def apart(tree: Any) -> Any:
    """Each parameter `[L, ...]` of a tree as L parts, a layer each; as it is where there is one layer."""
    return jax.tree.map(
        lambda leaf: leaf if leaf.shape[0] == 1 else Stacked(tuple(leaf[n : n + 1] for n in range(leaf.shape[0]))), tree
    )


def joined(parts: Sequence[Any]) -> Any:
    """One array of consecutive parts; of one part that itself, of host arrays a host array."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else jnp.concatenate(parts)


def segments(tree: Any, depth: int) -> list[Run]:
    """The runs of layers, of the first `depth`, in which no parameter of a stack passes from one part to the next."""
    leaves = [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_stacked) if isinstance(leaf, Stacked)]
    firsts = {first for leaf in leaves for (first, _), _ in leaf.runs() if first < depth}
    edges = sorted(firsts | {0, depth})
    return list(itertools.pairwise(edges))


def runs_of(rows: np.ndarray) -> tuple[Run, ...]:
    """The runs of True: [T, T, F, T] -> ((0, 2), (3, 4))."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], rows, [False])).astype(int)))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))
