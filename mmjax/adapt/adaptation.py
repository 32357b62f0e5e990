"""What a mapping of patterns to methods makes of a model: the leaves it adds, what of all is trained, and the way back."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.adapt.method import Given
from mmjax.adapt.places import Place, inner, places_of
from mmjax.core.errors import UserError, nearest
from mmjax.core.random import fold_name
from mmjax.core.stacked import runs_of
from mmjax.core.trees import leaves_by_path, match, nested, split_layers
from mmjax.core.types import Array, Params
from mmjax.models import Multimodal
from mmjax.models.multimodal import param_shapes
from mmjax.nn.adapters import BESIDE, LEAVES
from mmjax.nn.narrow import SCALE, widened

ALL_LINEAR = "all-linear"


def given_places(adapt: Mapping[str, Any], places: Mapping[str, Place]) -> dict[tuple[str, str], list[Given]]:
    """Path of a kernel or table, and what is changed of it -> the methods that were given it, each with its layers.

    Raises:
      UserError: a pattern that matches nothing its method could take, a method that a place cannot take, or two methods on one
        kernel (of one layer, or of two kinds).
    """
    found: dict[tuple[str, str], list[Given]] = {}
    by: dict[tuple[str, str], list[str]] = {}
    for pattern, method in adapt.items():
        if not method.adds:
            continue
        for path, some in _matched(pattern, method, places).items():
            place = places[path]
            rows = np.zeros(place.layers or 1, bool)
            rows[some] = True
            method.check(place, bool(rows.all()))
            own = (path, method.slot)
            for other, first in zip(found.get(own, ()), by.get(own, ()), strict=True):
                if type(other.method) is not type(method) or (other.rows & rows).any():
                    raise UserError(
                        f"adapt: {first!r} ({type(other.method).__name__}) and {pattern!r} ({type(method).__name__}) are both "
                        f"given {path}: a {method.slot} takes one method, and a layer of it one rank"
                    )
            found.setdefault(own, []).append(Given(method, rows))
            by.setdefault(own, []).append(pattern)
    return found


def _matched(pattern: str, method: Any, places: Mapping[str, Place]) -> dict[str, slice]:
    """Path -> layers, of the places that a pattern gives its method."""
    if pattern == ALL_LINEAR:
        if method.slot != "kernel":
            raise UserError(f"adapt: {ALL_LINEAR!r} names kernels, which {type(method).__name__} does not change: name a tower")
        if not inner(places):  # of convolutions alone
            raise UserError(
                f"adapt: {ALL_LINEAR!r} matches no kernel; only linear layers are adapted, and the model has none inside"
            )
        return dict.fromkeys(inner(places), slice(None))
    plain, some = split_layers(pattern)
    # Words are adapted where someone says so, not where "encoders_text/*" does.
    kernels = [path for path in places if match(plain, path) and method.takes(places[path], plain.endswith("table"))]
    if some is not None:
        kernels = [path for path in kernels if places[path].layers and range(places[path].layers)[some]]
    if not kernels:
        could = [path for path in places if method.takes(places[path], True)]
        raise UserError(
            f"adapt: {pattern!r} matches no kernel that {type(method).__name__} could be given{nearest(plain, could)}; one is "
            f"{next(iter(could), 'none')!r}"
        )
    method.check_all(pattern, [places[path] for path in kernels])
    return dict.fromkeys(kernels, slice(None) if some is None else some)


def adapted(model: Multimodal, params: Params, adapt: Mapping[str, Any], key: Array) -> Params:
    """The parameters with what the methods add, as it is before the first step; the others are not touched."""
    if not adapt:
        return params
    places = places_of(model)
    leaves = leaves_by_path(params)
    for (path, _), given in given_places(adapt, places).items():
        place = places[path]
        kernel = widened(leaves[path], leaves.get(f"{place.room}/{SCALE}"), bool(place.layers))
        made = given[0].method.leaves(place, given, kernel, fold_name(key, path))
        leaves |= {f"{place.room}/{name}": leaf for name, leaf in made.items()}
    return nested(leaves)


def trained_patterns(model: Multimodal, adapt: Mapping[str, Any], beside: Sequence[str] = ()) -> tuple[str, ...]:
    """Patterns of what the methods train, layer by layer.

    Args:
      beside: patterns of what is trained in addition, as a whole.

    Raises:
      UserError: as `given_places`; a kernel that is adapted and trained as a whole.
    """
    places, shapes = places_of(model), leaves_by_path(param_shapes(model))
    patterns: list[str] = []
    for (path, slot), given in given_places(adapt, places).items():
        whole = [pattern for pattern in beside if match(split_layers(pattern)[0], path)]
        if whole and slot == "kernel":
            raise UserError(
                f"{path} is adapted, and optimizer.train={whole[0]!r} trains it as a whole: name it in one of the two"
            )
        rows = np.any([each.rows for each in given], axis=0)
        for name in given[0].method.names(places[path], given):
            patterns += _layers(f"{places[path].room}/{name}", rows, bool(places[path].layers))
    for pattern, method in adapt.items():
        if method.adds:
            continue
        plain, some = split_layers(pattern)
        own = [path for path in shapes if match(plain, path) and method.trains(path) and (some is None or "/layers/" in path)]
        if not own:
            kind = type(method).__name__
            raise UserError(f"adapt: {pattern!r} matches nothing that {kind} trains{nearest(plain, shapes)}")
        suffix = "" if some is None else pattern[len(plain) :]
        patterns += [glob.escape(path) + suffix for path in own]
    return tuple(dict.fromkeys(patterns))


def _layers(path: str, rows: np.ndarray, stacked: bool) -> list[str]:
    """The pattern of a leaf, or one for each run of its layers."""
    path = glob.escape(path)
    if not stacked or rows.all():
        return [path]
    return [f"{path}[{a}:{b}]" for a, b in runs_of(rows)]


def is_adapter(path: str) -> bool:
    """Whether a leaf is of an adapter, and not of the model itself."""
    return path.rpartition("/")[2] in LEAVES


def is_dropout(path: str) -> bool:
    """Whether a leaf is the rate of an adapter's dropout."""
    return path.endswith("/lora_dropout")


def wide(params: Params) -> Params:
    """The same parameters, with what is kept narrow among float32 ones (`nn.narrow`) in float32 as well."""
    leaves = leaves_by_path(params)
    if all(x.dtype != jnp.float32 for x in leaves.values()):  # someone's own choice, and not a frozen base's
        return params
    for path in [path for path in leaves if path.endswith(f"/{SCALE}")]:
        room = path.rpartition("/")[0]
        leaves[f"{room}/kernel"] = widened(leaves[f"{room}/kernel"], leaves.pop(path), "/layers/" in path)
    return nested({path: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for path, x in leaves.items()})


def base_of(params: Params) -> Params:
    """The model's own parameters."""
    return nested({path: leaf for path, leaf in leaves_by_path(params).items() if not is_adapter(path)})


def merged(model: Multimodal, params: Params) -> Params:
    """The parameters of a model without adapters that gives the same results; those of one that has none as they are, but for
    what is kept narrow among float32 ones.

    Raises:
      UserError: a prompt, a prefix or a bottleneck, which no parameter of the model could hold; an adapted word table that an
        output is tied to, which merging would change as well.
    """
    leaves = leaves_by_path(wide(params))
    rooms = {path.rpartition("/")[0] for path in leaves if is_adapter(path)}
    if beside := sorted(path for path in leaves if path.rpartition("/")[2] in BESIDE):
        kind = beside[0].rpartition("/")[2].partition("_")[0]
        said = "mmjax convert " + ("to-adapters" if kind == "bottleneck" else "to-peft") + " writes it beside them"
        if kind == "prompt" and beside[0].startswith("encoders_image/"):
            said = "no other library takes one of an image"
        raise UserError(
            f"{beside[0]}: what a {kind} adds has no place in the model's own parameters; {said}, and a run that goes on with "
            "it has the same adapt"
        )
    tied = [f"encoders_{head.tied_to}" for head in model.heads.values() if getattr(head, "tied_to", "")]
    for name, decoder in model.decoders.items():
        words_of = getattr(decoder, "words_of", "")
        tied += [f"encoders_{words_of}" if words_of else f"decoders_{name}"] * bool(getattr(decoder, "tied", False))
    for room in rooms:
        if room.endswith("/words") and room.split("/")[0] in tied:
            raise UserError(f"{room}: the output is tied to this table and was not adapted with it, so they cannot be merged")
        own = {name: leaves.pop(f"{room}/{name}") for name in LEAVES if f"{room}/{name}" in leaves}
        path = f"{room}/kernel" if f"{room}/kernel" in leaves else f"{room}/table"
        stacked = "/layers/" in room
        leaves[path] = _merged_kernel(leaves[path], own, stacked)
        if "ia3_out" in own and f"{room}/bias" in leaves:
            leaves[f"{room}/bias"] = leaves[f"{room}/bias"] * own["ia3_out"]
    return nested(leaves)


def _merged_kernel(kernel: Any, own: Mapping[str, Any], stacked: bool) -> Any:
    """[L?, in..., out...] with its adapter's leaves inside, in the kernel's own dtype."""
    if stacked:
        layers = [_merged_kernel(kernel[n], {k: x[n] for k, x in own.items()}, False) for n in range(kernel.shape[0])]
        return jnp.stack(layers)
    out = jnp.asarray(kernel, jnp.float32)
    if "lora_a" in own:
        out = out + own["lora_scale"] * jnp.tensordot(own["lora_a"], own["lora_b"], 1)
        if "lora_a0" in own:
            out = out - own["lora_scale"] * jnp.tensordot(own["lora_a0"], own["lora_b0"], 1)
    if "dora_magnitude" in own:
        axes = tuple(range(out.ndim - own["dora_magnitude"].ndim))
        out = out * (own["dora_magnitude"] / jnp.sqrt(jnp.sum(jnp.square(out), axes)))[(None,) * len(axes)]
    if "ia3_out" in own:
        out = out * own["ia3_out"][(None,) * (out.ndim - own["ia3_out"].ndim)]
    if "ia3_in" in own:
        out = out * own["ia3_in"].reshape(own["ia3_in"].shape + (1,) * (out.ndim - own["ia3_in"].ndim))
    return out.astype(kernel.dtype)
