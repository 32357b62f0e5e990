"""A HuggingFace folder in and out: config.json -> model, weights -> parameters, tensor by tensor, and back."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from mmjax.convert.card import model_card
from mmjax.convert.config_json import check_types, unknown_fields
from mmjax.convert.config_paths import freeze, get, put
from mmjax.convert.families import FAMILIES
from mmjax.convert.family import Family, check_exact, explicit
from mmjax.convert.layout import Count, Row, Table
from mmjax.convert.sounds import with_extractor
from mmjax.convert.staging import staged_folder
from mmjax.convert.weights import Weights, open_weights, write_weights
from mmjax.core import quiet, strict_json
from mmjax.core.errors import UserError, nearest, within
from mmjax.core.trees import leaves_by_path, map_with_path, nested
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.models.forward import VARIABLES, whole_shapes

# Beside the weights: what belongs to the tokenizer and to the image or feature extractor.
COMPANIONS = re.compile(
    r"(tokenizer|preprocessor|processor|feature_extractor|image_processor|special_tokens|added_tokens|generation_config|"
    r"chat_template|vocab|merges|spiece|sentencepiece)[\w.-]*\.(json|txt|model|jinja)$"
)
logger = logging.getLogger("mmjax")
Put = Callable[[str, np.ndarray], Any]  # path of a parameter, its array -> where it shall live


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a HuggingFace folder.

    Raises:
      UserError: no folder, no config.json, not JSON, an unknown `model_type`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a local HuggingFace folder with config.json and its weights")
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json: it is no HuggingFace folder")
    config = strict_json.read(file)
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{file}: it names no model_type")
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"{file}: model_type={kind!r} is not supported{nearest(str(kind), FAMILIES)}; there are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    with within(str(file)):
        check_types(family, config)
    if family.observe is None and not family.ties:
        return config
    with open_weights(folder) as weights:
        return _observed_ties(family, dict(family.observe(config, weights)) if family.observe else config, weights)


def _observed_ties(family: Family, config: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """The config with its word table untied from the output where the files hold two matrices that differ; see `Tie`."""
    for tie in family.ties:
        if not tie.always and all(get(config, field, None) is False for field in tie.fields):
            continue  # it says what two matrices that differ would say: they need not be read for it
        files, _ = match_names(family, [tie.output, tie.words], weights.names)
        if tie.output in files and tie.words in files:
            tied = np.array_equal(weights.read(files[tie.output]), weights.read(files[tie.words]))
        else:
            tied = True
        if tied and not tie.always:
            continue
        said = {**config, **{name: dict(value) for name, value in config.items() if isinstance(value, Mapping)}}
        for field in tie.fields:
            put(said, field, tied)
        _, model, architecture = build_model(said)
        if tied or any(row.theirs == tie.output for row in family.rows(model, architecture)):  # of a class that has an output
            config = said
    return config


def build_model(config: Mapping[str, Any]) -> tuple[Family, Multimodal, str]:
    """The family, our model and the HuggingFace class of a config.

    Raises:
      UserError: what we cannot represent exactly, by the field's name.
    """
    family = FAMILIES[config["model_type"]]
    check_types(family, config)
    architecture = (config.get("architectures") or [next(iter(family.models))])[0]
    model = family.build(config, architecture)
    return family, model.copy(huggingface=freeze({**config, "architectures": [architecture]})), architecture


def read_model(folder: Path, put: Put | None = None) -> tuple[Multimodal, Params, tuple[str, ...]]:
    """The model of a HuggingFace folder, its float32 parameters, and the names of tensors that this class has no use for.

    Weights are read tensor by tensor, and each parameter goes where `put` says (the default device) as soon as it is whole.

    Raises:
      UserError: see `read_config`, `build_model`, `open_weights`; a tensor that is missing or has another shape.
    """
    config = read_config(folder)
    _tell_unknown(folder, config)
    with open_weights(folder) as weights:
        family, model, rows, files, unused = _match(config, weights)
        quiet.devices()
        params = _read_params(folder, family, model, rows, files, weights, put or _on_device)
    return with_extractor(folder, model), params, unused


def _tell_unknown(folder: Path, config: Mapping[str, Any]) -> None:
    unknown = unknown_fields(FAMILIES[config["model_type"]], config)
    if unknown:
        logger.warning(
            "mmjax: %s: nothing here reads %s; if it changes what the model computes, the model read is another",
            folder / "config.json",
            ", ".join(f"{name}={get(config, name, None)!r}"[:60] for name in unknown),
        )


def describe_model(folder: Path) -> Multimodal:
    """The model alone; of the weights only the headers are read, and an output matrix that config.json says is tied.

    Raises:
      UserError: see `read_config`, `build_model`, `open_weights`.
    """
    config = read_config(folder)
    with open_weights(folder) as weights:
        return with_extractor(folder, _match(config, weights)[1])


def _match(
    config: Mapping[str, Any], weights: Weights
) -> tuple[Family, Multimodal, list[Row], dict[str, str], tuple[str, ...]]:
    """A config and its weights: family, model, all rows, where each tensor is, and the names that nothing expects."""
    family, model, architecture = build_model(config)
    rows, unread = family.rows(model, architecture), family.unread(model, architecture)
    copies = [name for row in rows for name in row.copies]
    expected = [*copies, *[name for row in rows for name in row.names()]]
    files, unused = match_names(family, expected, weights.names, unread)
    for row in rows:  # a file of a tied model holds the output's bias once, under its other name
        same = next((copy for copy in row.copies if copy in files), None)
        if not row.depth and row.theirs not in files and same is not None:
            files[row.theirs] = files[same]
    kept = [*[name for name in copies if name in files], *[name for name in files if name not in expected]]
    model = model.copy(unread={name: weights.shape(files[name]) for name in kept})
    if "dtype" not in config and "torch_dtype" not in config:
        model = model.copy(huggingface={**model.huggingface, "dtype": weights.dtype_of_model})
    return family, model, [*rows, *map(_unread_row, kept)], files, unused


def _unread_row(name: str) -> Row:
    return Row(name, (f"unread/{name}",), Table())


def match_names(
    family: Family, expected: list[str], found: tuple[str, ...], unread: tuple[str, ...] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Where each expected tensor is: its name -> its name in the files; and the names that nothing expects.

    Files say a name as this version of `transformers` does, as older ones did (`renames`), with the base model's prefix or
    without. What matches a pattern of `unread` is expected too; what carries nothing is `dropped`.
    """
    wanted, files, unused = set(expected), dict[str, str](), []
    for name in found:
        new = name
        for pattern, replacement in family.renames:
            new = re.sub(pattern, replacement, new)
        ways = (name, new, family.prefix + new, new.removeprefix(family.prefix))
        match = next((way for way in ways if way in wanted and way not in files), None)
        if match is not None:
            files[match] = name
        elif any(re.search(pattern, new) for pattern in unread):
            files[new] = name
        elif not any(re.search(pattern, new) for pattern in family.dropped):
            unused.append(name)
    return files, tuple(unused)


def _read_params(
    folder: Path, family: Family, model: Multimodal, rows: list[Row], files: Mapping[str, str], weights: Weights, put: Put
) -> Params:
    whole = leaves_by_path(whole_shapes(model))
    shapes = {path: leaf.shape for path, leaf in whole.items()}
    held: dict[str, Any] = {}
    for row in rows:
        own = [shapes[path][1:] if row.depth else shapes[path] for path in row.ours]
        buffers = [_aligned(shapes[path], whole[path].dtype) for path in row.ours]
        for layer, name in enumerate(row.names()):
            if name not in files:
                raise UserError(f"{folder}: tensor {name!r} is missing, which {model.huggingface['architectures'][0]} needs")
            shape = weights.shape(files[name])
            if tuple(shape) != row.their_shape(own):
                raise UserError(
                    f"{folder}: tensor {files[name]!r} has shape {tuple(shape)}; config.json makes it {row.their_shape(own)}"
                )
            for buffer, part in zip(buffers, row.split(weights.read(files[name]), own), strict=True):
                buffer[layer if row.depth else ...] = part
        for path in row.ours:
            held[path] = put(path, buffers.pop(0))
    for path, value in family.constants.items():
        if path in shapes and path not in held:
            held[path] = put(path, np.full(shapes[path], value, np.float32))
    assert held.keys() == shapes.keys(), sorted(held.keys() ^ shapes.keys())
    return nested(held)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Numbers of 32 bits, not initialised, at a multiple of 64 bytes: on the CPU JAX then takes it as it is, without a copy."""
    raw = np.empty(4 * math.prod(shape) + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + 4 * math.prod(shape)].view(dtype).reshape(shape)


def _on_device(_: str, x: np.ndarray) -> jax.Array:
    return jax.device_put(x, may_alias=True)  # nobody else holds it


def tensors(model: Multimodal, tree: Params) -> tuple[list[tuple[str, tuple[int, ...]]], Callable[[str], np.ndarray]]:
    """A tree of the model's shape (parameters, a gradient) as HuggingFace tensors: their names and shapes, and a reader of one.

    Raises:
      UserError: the model is no HuggingFace class.
    """
    family = family_of(model)
    architecture = family.architecture(model)
    rows = family.rows(model, architecture)
    leaves = leaves_by_path(tree)
    where = {name: (row, layer) for row in rows for layer, name in enumerate(row.names())}
    copies = {copy: (row, 0) for row in rows for copy in row.copies}

    def shape(row: Row) -> tuple[int, ...]:
        return row.their_shape([leaves[path].shape[1:] if row.depth else leaves[path].shape for path in row.ours])

    for name in model.unread:
        kept = _unread_row(name)
        if name in copies and kept.ours[0] in leaves and shape(kept) == shape(copies[name][0]):
            copies[name] = (kept, 0)
        elif name not in copies and any(re.search(p, name) for p in family.unread(model, architecture)):
            where[name] = (kept, 0)
    where |= copies
    shapes = {name: shape(row) for name, (row, _) in where.items()}

    def read(name: str) -> np.ndarray:
        row, layer = where[name]
        parts = [np.asarray(leaves[path][layer] if row.depth else leaves[path]) for path in row.ours]
        return np.ascontiguousarray(row.join(parts)).reshape(shapes[name])

    return list(shapes.items()), read


def family_of(model: Multimodal) -> Family:
    """The family a model came from.

    Raises:
      UserError: it came from none.
    """
    kind = model.huggingface.get("model_type")
    if kind not in FAMILIES:
        raise UserError("the model was not built from a HuggingFace config, and no HuggingFace class has its parts")
    return FAMILIES[kind]


def write_model(
    model: Multimodal, params: Params, target: Path, companions: Callable[[Path], Any] = lambda folder: None
) -> str:
    """Write a folder that `transformers` opens: config, weights in their own dtype, model card, and the companion files.

    Args:
      companions: writes the tokenizer's and the preprocessor's files into the folder it is given.

    Returns:
      The HuggingFace class it was written as.

    Raises:
      UserError: the model is no HuggingFace class; `target` holds files already.
    """
    family, model = family_of(model), explicit(model)
    architecture = family.architecture(model)
    config = family.config(model) | {"architectures": [architecture]}
    check_exact(family, model, config, architecture)
    params = _held_scales(model, params)
    rows = family.rows(model, architecture)
    _check_constants(family, rows, params)
    _check_whole(family, model, rows, params, architecture)
    dtype = str(config.pop("torch_dtype", None) or config.get("dtype") or "float32")
    config["dtype"] = dtype
    plan, read = tensors(model, params)
    dtypes = {name: "int64" for row in rows if isinstance(row.layout, Count) for name in row.names()}
    kinds = {name: dtypes.get(name, dtype) for name, _ in plan}
    with staged_folder(target) as folder:
        companions(folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (folder / "README.md").write_text(model_card(architecture, config, model))
        whole = [(name, shape, kinds[name]) for name, shape in plan]
        write_weights(folder, whole, lambda name: read(name).astype(np.dtype(kinds[name])))
    return architecture


def written_variables(model: Multimodal, architecture: str) -> frozenset[str]:
    """The paths of what modules keep that a class has tensors for (`variables/statistics/...`)."""
    paths = (path for row in family_of(model).rows(model, architecture) for path in row.ours)
    return frozenset(path for path in paths if path.startswith(f"{VARIABLES}/"))


def _held_scales(model: Multimodal, params: Params) -> Params:
    """A scale above its bound as the bound, since HuggingFace has none."""
    bounds = {f"fusions_{name}/scale_logit": getattr(part, "max_scale", 0.0) for name, part in model.fusions.items()}

    def held(path: str, x: Any) -> Any:
        return np.minimum(np.asarray(x), np.float32(np.log(bounds[path]))) if bounds.get(path) else x

    return map_with_path(held, params) if any(bounds.values()) else params


def _check_whole(family: Family, model: Multimodal, rows: list[Row], params: Params, architecture: str) -> None:
    """That every array is written. What no output of the class depends on is named instead, where it is not as it came.

    Raises:
      UserError: arrays that the class has no place for.
    """
    leaves = leaves_by_path(params)
    held = {path for row in rows for path in row.ours} | {f"unread/{name}" for name in model.unread}
    left = [path for path in leaves if path not in held and path not in family.constants]
    if left:
        firsts = ", ".join(dict.fromkeys(path.partition("/")[0] for path in left))
        raise UserError(
            f"{architecture} has no place for {len(left)} of these arrays, under {firsts}: {left[0]!r} first; leave them out, "
            "or merge them into the others before"
        )
    for path, value in family.constants.items():
        if value and path in leaves and path not in held and not np.allclose(np.asarray(leaves[path]), value):
            logger.warning("mmjax: %s has no place for %s, on which no output of its depends: left out", architecture, path)


def _check_constants(family: Family, rows: list[Row], params: Params) -> None:
    """That a bias which HuggingFace has no tensor for was not trained away from 0. (BLIP's scale is no bias: files lack it
    because no output depends on it.)"""
    leaves, held = leaves_by_path(params), {path for row in rows for path in row.ours}
    for path, value in family.constants.items():
        if value == 0 and path in leaves and path not in held and np.any(np.asarray(leaves[path])):
            raise UserError(f"{path} is {leaves[path]}, and {family.model_type} has no tensor for it: it must be 0")
