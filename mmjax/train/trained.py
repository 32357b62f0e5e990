"""Which parameters are trained and which are frozen, layer by layer; and a tree of either, taken out and put back.

Gradients, optimizer state, the moving average and what every checkpoint holds exist for the trained ones alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmjax.core.errors import UserError, nearest
from mmjax.core.stacked import Run, Stacked, joined, runs_of
from mmjax.core.trees import leaves_by_path, map_with_path, match, nested, split_layers
from mmjax.core.types import Params
from mmjax.nn.narrow import SCALE

UNREAD = "unread/*"  # parameters that no forward pass reads: see `Multimodal.unread`
NEVER = (UNREAD, f"*/{SCALE}")  # never trained, whatever the patterns say


@dataclasses.dataclass(frozen=True)
class Trained:
    """What an optimizer updates of a tree of parameters.

    A tree "of the trained ones" has those leaves alone, and of a stacked leaf `[L, ...]` of which some layers are frozen the
    other layers, one after the other. `of` and `rest` take shapes as well as arrays.

    Attributes:
      whole: paths of the leaves that are trained as a whole; None for all.
      layers: path -> runs of layers that are trained, of the leaves of which some are and some are not.
    """

    whole: frozenset[str] | None = None
    layers: Mapping[str, tuple[Run, ...]] = dataclasses.field(default_factory=dict)

    def of(self, params: Params) -> Params:
        """The trained ones; of parameters, or of a tree that has as many layers at the same paths."""
        return self._picked(params, lambda path, leaf: _some(leaf, self.layers[path]), trained=True)

    def rest(self, params: Params) -> Params:
        """The frozen ones."""
        return self._picked(params, lambda path, leaf: _some(leaf, _gaps(self.layers[path], leaf.shape[0])), trained=False)

    def still(self, params: Params) -> frozenset[str]:
        """The parts of the model (`encoders_image`, the first names of paths) of which nothing is trained."""
        if self.whole is None:
            return frozenset()
        return frozenset(params) - {path.split("/")[0] for path in (*self.whole, *self.layers)}

    def bind(self, own: Params, params: Params) -> Params:
        """Parameters for a forward pass that is differentiated by `own`, the trained ones: the frozen ones are those of
        `params`, and a leaf of both kinds is `Stacked`."""
        by_path = leaves_by_path(own)

        def bound(path: str, leaf: Any) -> Any:
            if path not in self.layers:
                return by_path.get(path, leaf)
            return Stacked(tuple(self._parts(path, by_path[path], lambda run: leaf[slice(*run)], leaf.shape[0])))

        return map_with_path(bound, params)

    def put(self, params: Params, own: Params) -> Params:
        """`params` with the trained ones replaced by `own`."""
        by_path = leaves_by_path(own)

        def taken(path: str, leaf: Any) -> Any:
            if path not in self.layers:
                return by_path.get(path, leaf)
            return joined(self._parts(path, by_path[path], lambda run: leaf[slice(*run)], leaf.shape[0]))

        return map_with_path(taken, params)

    def join(self, own: Params, rest: Params) -> Params:
        """The whole tree, of the trained ones and the frozen ones."""
        mine, others = leaves_by_path(own), leaves_by_path(rest)
        found: dict[str, Any] = {}
        for path in mine | others:
            if path not in self.layers:
                found[path] = mine[path] if path in mine else others[path]
                continue
            frozen, first, taken = others[path], 0, {}
            depth = mine[path].shape[0] + frozen.shape[0]
            for a, b in _gaps(self.layers[path], depth):
                taken[a, b] = frozen[first : first + b - a]
                first += b - a
            found[path] = joined(self._parts(path, mine[path], taken.__getitem__, depth))
        return nested(found)

    def to_json(self) -> dict[str, list[list[int]]]:
        """The layers, for a file beside the trees: all that it takes to `join` them."""
        return {path: [list(run) for run in runs] for path, runs in sorted(self.layers.items())}

    @staticmethod
    def from_json(layers: Mapping[str, Sequence[Sequence[int]]]) -> Trained:
        """The reverse, good for `join` alone."""
        return Trained(frozenset(), {path: tuple((a, b) for a, b in runs) for path, runs in layers.items()})

    def _parts(self, path: str, own: Any, frozen: Callable[[Run], Any], depth: int) -> list[Any]:
        """The consecutive parts of a leaf of both kinds."""
        parts, first, at = [], 0, 0
        for a, b in self.layers[path]:
            if a > at:
                parts.append(frozen((at, a)))
            parts.append(own[first : first + b - a])
            first, at = first + b - a, b
        if at < depth:
            parts.append(frozen((at, depth)))
        return parts

    def _picked(self, params: Params, some: Callable[[str, Any], Any], trained: bool) -> Params:
        found = {}
        for path, leaf in leaves_by_path(params).items():
            if path in self.layers:
                found[path] = some(path, leaf)
            elif (self.whole is None or path in self.whole) == trained:
                found[path] = leaf
        return nested(found)


ALL = Trained()


def trained_of(train: Sequence[str], freeze: Sequence[str], params: Params) -> Trained:
    """What patterns make of parameters, or of their shapes: trained is what matches one of `train` (all where there is none)
    and none of `freeze`.

    "encoders_image/*[:6]" is of the parameters stacked over layers that match, and of those the first six layers.

    Raises:
      UserError: a pattern that matches no parameter, or layers of what has none; or nothing is left to train.
    """
    leaves, train = leaves_by_path(params), tuple(train) or ("*",)
    for field, patterns in (("train", train), ("freeze", freeze)):
        for pattern in patterns:
            _check_pattern(f"optimizer.{field}", pattern, leaves)
    whole, layers = set(), {}
    for path, leaf in leaves.items():
        stacked = "/layers/" in path
        rows = np.zeros(leaf.shape[0] if stacked else 1, bool)
        for patterns, value in ((train, True), (freeze, False), (NEVER, False)):
            for pattern, some in map(split_layers, patterns):
                if match(pattern, path) and (some is None or stacked):
                    rows[slice(None) if some is None else some] = value
        if rows.all():
            whole.add(path)
        elif rows.any():
            layers[path] = runs_of(rows)
    if leaves and not whole and not layers:
        raise UserError(f"optimizer.freeze={tuple(freeze)} with train={tuple(train)} leaves nothing to train")
    return Trained(frozenset(whole), layers)


def check_whole_batches(model: Any, still: frozenset[str], parts: int) -> None:
    """Raises UserError where a batch comes in `parts` micro-batches and an encoder normalises by it: the loss, and what is kept
    of the batch, would be others. One of which nothing is trained (`still`) does not."""
    for name, encoder in model.encoders.items():
        if parts > 1 and getattr(encoder, "in_batch", False) and f"encoders_{name}" not in still:
            raise UserError(
                f"optimizer.accumulate={parts} and model.encoders.{name}.norm={encoder.norm!r}: each micro-batch would be "
                "normalised by itself and not by the batch; use accumulate=1, norm='group', or freeze the encoder"
            )


def _some(leaf: Any, runs: Sequence[Run]) -> Any:
    """Some layers of a stacked leaf, one after the other; the dim of layers is never split over a mesh."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        layers = sum(b - a for a, b in runs)
        return jax.ShapeDtypeStruct((layers, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)
    return joined([leaf[a:b] for a, b in runs])


def _check_pattern(field: str, pattern: str, leaves: Mapping[str, Any]) -> None:
    glob, some = split_layers(pattern)
    paths = [path for path in leaves if match(glob, path)]
    if not paths:
        raise UserError(f"{field}: {pattern!r} matches no parameter{nearest(glob, leaves)}; one is {next(iter(leaves))!r}")
    if some is None:
        return
    depths = [leaves[path].shape[0] for path in paths if "/layers/" in path]
    if not depths:
        raise UserError(f"{field}: {pattern!r} names layers, and what it matches has none; one is {paths[0]!r}")
    if not any(range(depth)[some] for depth in depths):
        raise UserError(f"{field}: {pattern!r} names none of the {max(depths)} layers that there are")


def _gaps(runs: Sequence[Run], depth: int) -> list[Run]:
    """What the runs leave of `depth` layers."""
    edges = [0, *(edge for run in runs for edge in run), depth]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
