"""A peft folder, read: its config, its tensors by module, and the method of each."""

from __future__ import annotations

import collections
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.adapt import LoRA
from mmjax.convert.bottleneck.layout import is_bottleneck
from mmjax.convert.family import Family
from mmjax.convert.huggingface import match_names
from mmjax.convert.peft import layout
from mmjax.convert.weights import float32_of, metadata_of, open_file
from mmjax.core import strict_json
from mmjax.core.errors import UserError, nearest

logger = logging.getLogger("mmjax")

TAKEN = ("LORA", "IA3", "LN_TUNING", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
# What changes the outputs and is not done here; of each, the values that leave it off.
OFF: dict[str, tuple[Any, ...]] = {
    "lora_bias": (False, None),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "use_bdlora": (None, False),
    "monteclora_config": (None,),
    "velora_config": (None,),
}


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises UserError where there is none, or it says what is not done here."""
    file = folder / layout.CONFIG
    if not file.is_file():
        raise UserError(f"{folder} has no {layout.CONFIG}: it is no folder of peft's")
    config = strict_json.read(file)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in TAKEN:
        other = " (a folder of the adapters library: mmjax convert from-adapters)" if is_bottleneck(folder) else ""
        raise UserError(f"{file}: peft_type={kind!r} is not supported here; use one of {', '.join(TAKEN)}{other}")
    for field, off in OFF.items():
        if config.get(field) not in off:
            raise UserError(f"{file}: {field}={config[field]!r} is not supported here; it must be {off[0]!r}")
    return dict(config)


def _file(folder: Path) -> Path:
    file = next((folder / name for name in (layout.TENSORS, "adapter_model.bin") if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no {layout.TENSORS}")
    return file


def metadata(folder: Path) -> dict[str, str]:
    """What stands beside the tensors; {} where nothing does."""
    return metadata_of(_file(folder))


def tensor_shapes(folder: Path, first: str = layout.FIRST) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors, the names without what comes before those of modules."""
    with open_file(_file(folder)) as weights:
        return {name.removeprefix(first).replace(".modules_to_save.", "."): weights.shape(name) for name in weights.names}


def tensor(folder: Path, name: str) -> np.ndarray:
    """One tensor by its whole name, float32. Raises UserError where it is missing."""
    with open_file(_file(folder)) as weights:
        if name not in weights.names:
            raise UserError(f"{folder}: it has no tensor {name!r}")
        return float32_of(weights, name, folder)


def by_module(
    folder: Path,
    expected: Sequence[str],
    family: Family,
    unread: Sequence[str],
    first: str = layout.FIRST,
    but: tuple[str, ...] = (),
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """Module, as our rows name it -> suffix -> tensor; and module -> as the folder names it.

    Args:
      first: what comes before the names of modules.
      but: tensors that are of no module.

    Raises:
      UserError: a tensor of a module that this class has not, or with an end that is not known.
    """
    file = _file(folder)
    with open_file(file) as weights:
        # Beside a module trained whole peft may keep the base's own; of two that say one name, the trained one counts.
        held = sorted(
            (name for name in weights.names if ".original_module." not in name and name not in but),
            key=lambda n: ".modules_to_save." in n,
        )
        places = [_place(file, name, first) for name in held]
        asked = {_asked(module, suffix) for module, suffix in places}
        known, unused = match_names(family, list(expected), tuple(sorted(asked)))
        names = {theirs: ours.rpartition(".")[0] for ours, theirs in known.items()}
        twice = _second_spellings(family, expected, unused)
        found: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
        spelt: dict[str, str] = {}
        inside = [name.removesuffix("in_proj_weight") for name in expected if name.endswith(".in_proj_weight")]
        for name, (module, suffix) in zip(held, places, strict=True):
            asked_name = _asked(module, suffix)
            if asked_name in twice:
                continue
            if asked_name not in names:
                if not suffix.startswith("lora_") and any(re.search(p, asked_name) for p in (*family.dropped, *unread)):
                    continue  # a tied tensor's other name, or what no output depends on
                raise UserError(
                    f"{file}: tensor {name!r} is of module {module!r}, which the base has not"
                    f"{nearest(module, [n.rpartition('.')[0] for n in expected])}"
                )
            if suffix.startswith("lora_") and any(asked_name.startswith(first) for first in inside):
                logger.warning(
                    "mmjax: %s is of a module inside torch's own attention, where peft's adapter does nothing: left out", name
                )
                continue
            found[names[asked_name]][suffix] = float32_of(weights, name, file)
            spelt[names[asked_name]] = module
    return dict(found), spelt


def _asked(module: str, suffix: str) -> str:
    """The tensor of the model that one of an adapter belongs to."""
    return f"{module}.{suffix if suffix == 'in_proj_bias' else 'bias' if suffix.endswith('bias') else 'weight'}"


def _second_spellings(family: Family, expected: Sequence[str], unused: Sequence[str]) -> set[str]:
    """Of the names that nothing asks for, those that are other spellings of ones that were found."""
    return {name for name in unused if match_names(family, list(expected), (name,))[0]}


def _place(file: Path, name: str, first: str) -> tuple[str, str]:
    """The module and the suffix of a tensor."""
    short = name.removeprefix(first).replace(".modules_to_save.", ".")
    for suffix in layout.SUFFIXES:
        if short.endswith(f".{suffix}"):
            return short.removesuffix(f".{suffix}"), suffix.removesuffix(".weight") if "magnitude" in suffix else suffix
    raise UserError(f"{file}: tensor {name!r} is none that this method has; its end is one of {', '.join(layout.SUFFIXES[:7])}")


def methods(
    folder: Path, config: Mapping[str, Any], found: Mapping[str, Mapping[str, np.ndarray]], spelt: Mapping[str, str]
) -> dict[str, LoRA]:
    """Module -> its method.

    Raises:
      UserError: a rank that is not what the config says.
    """
    named = {}
    for name, tensors in found.items():
        r = next(x for suffix, x in tensors.items() if suffix in ("lora_A.weight", "lora_embedding_A")).shape[0]
        said = int(_by_pattern(config.get("rank_pattern"), spelt[name], config.get("r", 8)))
        if said != r:
            raise UserError(f"{folder}: {spelt[name]} has rank {r}, and {layout.CONFIG} says r={said}")
        alpha = float(_by_pattern(config.get("alpha_pattern"), spelt[name], config.get("lora_alpha", 8)))
        dropout = float(config.get("lora_dropout") or 0.0)
        named[name] = LoRA(r, alpha, dropout, bool(config.get("use_rslora")), bool(config.get("use_dora")))
    return named


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as peft finds it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
