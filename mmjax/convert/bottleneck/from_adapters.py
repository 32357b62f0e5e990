"""A folder of the `adapters` library over a base that we have -> an adapted run."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.adapt import Bottleneck
from mmjax.convert.adapted import Over, check_base, check_plain, runs_of_layers, write_adapted
from mmjax.convert.bottleneck import layout
from mmjax.convert.bottleneck.layout import (
    ACTIVATIONS,
    CONFIG,
    FIXED,
    FLAGS,
    HEAD,
    HEAD_CONFIG,
    LEAVES,
    PLACES,
    RANDOM,
    TENSORS,
    Place,
)
from mmjax.convert.headed import CLASSES, as_class, unnamed
from mmjax.convert.huggingface import family_of
from mmjax.convert.weights import metadata_of
from mmjax.core import strict_json
from mmjax.core.errors import UserError, nearest, within
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.nn.bottleneck import kind


def from_adapters(base: str | Path, source: str | Path, target: str | Path) -> tuple[dict[str, Any], tuple[str, ...], int]:
    """Make a run of a base (a run or a HuggingFace folder) and a folder of the library's.

    Returns:
      Pattern -> method, what adapts the new run; the paths of the head that the folder brings, and how many classes of it have
      no names.

    Raises:
      UserError: no adapter there; a field or a tensor that has no place here, by name; another base's.
    """
    model, _, adapt, train = write_adapted(base, target, functools.partial(over_base, Path(source)))
    return adapt, train, unnamed(model, train)


def over_base(folder: Path, model: Multimodal, params: Params) -> Over:
    """A base with the bottlenecks, and the head, of a folder."""
    config, name = read_config(folder)
    check_plain(folder, params)
    layout.check_family(model, family_of(model).architecture(model))
    file = layout.file_of(folder, TENSORS)
    tensors = layout.read(file)
    model, params, train = with_head(folder, model, params, metadata_of(file).get("problem_type", ""))
    family = family_of(model)
    leaves = leaves_by_path(params)
    act = next((ours for ours, theirs in ACTIVATIONS.items() if config["non_linearity"].lower() in theirs), None)
    if act is None:
        known = ", ".join(word for words in ACTIVATIONS.values() for word in words)
        raise UserError(f"{folder}: non_linearity={config['non_linearity']!r} is not supported here; use one of {known}")
    if others := [key for key in tensors if f"adapters.{name}." not in key]:
        raise UserError(f"{folder}: its {CONFIG} names the adapter {name!r}, and it has tensor {others[0]!r}")
    found = {key.replace(f"adapters.{name}.", "adapters."): x for key, x in tensors.items()}
    body = f"{PLACES[family.model_type][0]}."
    adapt: dict[str, Any] = {}
    for place in layout.places(model, family.architecture(model)):
        if config[FLAGS[place.branch]]:
            given = _given(folder, place, config["leave_out"], found, body)
            adapt |= _put(folder, place, given, act, bool(config["original_ln_before"]), leaves) if given else {}
    if found:
        spare = next(iter(found))
        raise UserError(f"{folder}: tensor {spare!r} has no place here by what its {CONFIG} says")
    if not adapt:
        raise UserError(f"{folder}: it has no bottleneck of this base")
    check_base(folder, metadata_of(file), model, leaves, params)
    return model, nested(leaves), adapt, train


def _labels(file: Path, known: Any, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the classes of a head: those that its config gives, or LABEL_0, ..., where it names none."""
    count = next((len(tensors[name]) for name in CLASSES if name in tensors), None)
    if not known:
        return [f"LABEL_{i}" for i in range(count or 0)]
    ids = list(known.values()) if isinstance(known, dict) else []
    if not all(isinstance(i, int) for i in ids) or sorted(ids) != list(range(len(ids) if count is None else count)):
        raise UserError(
            f"{file}: label2id={str(known)[:60]}: its head has {count} classes, 0 to {(count or 1) - 1}, one name each"
        )
    return sorted(known, key=lambda label: known[label])


def _given(
    folder: Path, place: Place, leave_out: Sequence[int], found: dict[str, np.ndarray], body: str
) -> dict[int, dict[str, np.ndarray]]:
    """Layer -> its tensors, of those that the config adapts; they are taken out of `found`."""
    given: dict[int, dict[str, np.ndarray]] = {}
    for n, module in enumerate(place.modules):
        if place.first + n in leave_out:
            continue
        other = _other(module, body)
        first = other if any(f"{other}.{theirs}" in found for theirs in LEAVES.values()) else module
        if missing := [f"{first}.{theirs}" for theirs in LEAVES.values() if f"{first}.{theirs}" not in found]:
            raise UserError(f"{folder}: it has no tensor {missing[0]!r}, which its {CONFIG} says that it has")
        given[n] = {ours: found.pop(f"{first}.{theirs}").T for ours, theirs in LEAVES.items()}
    return given


def _other(module: str, body: str) -> str:
    """The module as a class has it that is, or is not, the body alone."""
    return module.removeprefix(body) if module.startswith(body) else body + module


def _put(
    folder: Path, place: Place, given: Mapping[int, Mapping[str, np.ndarray]], act: str, normed: bool, leaves: dict[str, Any]
) -> dict[str, Any]:
    """Put the layers' tensors beside the kernel, their widths padded; pattern -> method."""
    kernel = leaves[f"{place.room}/kernel"]
    depth, width = kernel.shape[0], kernel.shape[-1]
    most = max(own["bottleneck_down"].shape[1] for own in given.values())
    shapes = {"down": (width, most), "down_bias": (most,), "up": (most, width), "up_bias": (width,)}
    whole = {name: np.zeros((depth, *shape), np.float32) for name, shape in shapes.items()}
    methods = {}
    for n, own in given.items():
        r = own["bottleneck_down"].shape[1]
        wanted = {"down": (width, r), "down_bias": (r,), "up": (r, width), "up_bias": (width,)}
        for name, x in whole.items():
            part = own[f"bottleneck_{name}"]
            if part.shape != wanted[name]:
                raise UserError(
                    f"{folder}: {place.modules[n]} has a {name} of {part.shape}, and this base's layer takes {wanted[name]}: "
                    "it belongs to another base"
                )
            x[n][tuple(slice(0, size) for size in part.shape)] = part
        with within(str(folder)):
            methods[n] = Bottleneck(r, act, normed)
    leaves |= {f"{place.room}/bottleneck_{name}": jnp.asarray(x) for name, x in whole.items()}
    leaves[f"{place.room}/bottleneck_kind"] = jnp.stack([kind(act, normed)] * depth)
    return runs_of_layers(f"{place.room}/kernel", methods, depth, True)


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """What the folder says of its adapter, and the adapter's name.

    Raises:
      UserError: no folder of the library's; what is not done here.
    """
    file = folder / CONFIG
    if not layout.is_bottleneck(folder):
        known = strict_json.read(file) if file.is_file() else None
        other = ": it is peft's, for mmjax convert from-peft" if isinstance(known, dict) and "peft_type" in known else ""
        raise UserError(f"{folder} is no folder of the adapters library{other}")
    whole = strict_json.read(file)
    config = whole["config"]
    if not isinstance(config, dict) or config.get("architecture") is not None or "non_linearity" not in config:
        said = config.get("architecture") if isinstance(config, dict) else config
        raise UserError(f"{file}: {said!r} is no bottleneck, and the others of the adapters library are not supported here")
    for field, value in FIXED.items():
        if config.get(field, value) != value:
            raise UserError(f"{file}: {field}={config[field]!r} is not supported here; it must be {value!r}")
    for field, value in RANDOM.items():
        if config.get(field, value) != value:
            raise UserError(
                f"{file}: {field}={config[field]!r} is not supported here; it acts when training alone: set it to {value}"
            )
    act, left = config["non_linearity"], config.get("leave_out") or []
    if not isinstance(act, str) or not isinstance(left, list):
        raise UserError(f"{file}: non_linearity={act!r} and leave_out={left!r}: they are a name and a list of layers")
    if "version" not in whole:  # as the library reads folders of before it had one
        config = config | {"non_linearity": {"gelu": "gelu_new", "gelu_orig": "gelu"}.get(act.lower(), act)}
    usual = {"original_ln_before": False, "leave_out": [], **dict.fromkeys(FLAGS.values(), False)}
    return {**usual, **{name: x for name, x in config.items() if x is not None}}, str(whole.get("name", ""))


def with_head(folder: Path, model: Multimodal, params: Params, problem: str = "") -> tuple[Multimodal, Params, tuple[str, ...]]:
    """The base with the head of the folder, and the head's paths; as it is where there is none.

    Args:
      problem: HuggingFace's `problem_type` of the head, where the folder says it.
    """
    file = folder / HEAD_CONFIG
    if not file.is_file():
        if any((folder / name).is_file() for name in HEAD):
            raise UserError(f"{folder}: it has a head and no {HEAD_CONFIG} that says of which class")
        return model, params, ()
    config = strict_json.read(file)
    family, named = family_of(model), str(config.get("model_class")) if isinstance(config, dict) else ""
    if named not in family.models:
        raise UserError(
            f"{file}: a head of {named}, which is not supported here{nearest(named, family.models)}; save the adapter with "
            "with_head=False, or from a class of transformers"
        )
    tensors = layout.read(layout.file_of(folder, HEAD))
    model, params, empty = as_class(model, params, named, _labels(file, config.get("label2id"), tensors), problem)
    leaves = leaves_by_path(params)
    body, changed = f"{PLACES[family.model_type][0]}.", []
    for row in family.rows(model, named):
        if row.theirs.startswith(body) or row.depth:
            continue
        if row.theirs not in tensors:
            raise UserError(f"{folder}: its head has no {row.theirs}")
        shapes = [leaves[path].shape for path in row.ours]
        x = tensors.pop(row.theirs)
        if x.shape != row.their_shape(shapes):
            raise UserError(f"{folder}: {row.theirs} has shape {x.shape}, and here it is {row.their_shape(shapes)}")
        for path, part in zip(row.ours, row.split(x, shapes), strict=True):
            leaves[path] = jnp.asarray(part)
            changed.append(path)
    if missing := sorted(empty - set(changed)):
        raise UserError(f"{folder}: its head is of {named}, and neither it nor the base has {missing[0]}")
    unread = (*family.dropped, *family.unread(model, named))
    if spare := [name for name in tensors if not any(re.search(pattern, name) for pattern in unread)]:
        raise UserError(f"{folder}: tensor {spare[0]!r} of its head has no place here")
    return model, nested(leaves), tuple(dict.fromkeys(changed))
