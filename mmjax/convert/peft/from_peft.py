"""A peft folder over a base that we have -> an adapted run."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.adapt import BitFit, Norms
from mmjax.convert.adapted import Over, check_base, check_plain, write_adapted
from mmjax.convert.headed import CLASSES, as_class, unnamed, with_problem
from mmjax.convert.huggingface import family_of
from mmjax.convert.peft import layout
from mmjax.convert.peft.placing import place_ia3, place_lora, place_whole
from mmjax.convert.peft.reading import by_module, metadata, methods, read_config, tensor, tensor_shapes
from mmjax.convert.peft.virtual import EMBEDDINGS, FIRST, VIRTUAL, place_virtual
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Params
from mmjax.models import Multimodal


def from_peft(base: str | Path, source: str | Path, target: str | Path) -> tuple[dict[str, Any], tuple[str, ...], int]:
    """Make a run of a base (a run or a HuggingFace folder) and a peft folder.

    Returns:
      Pattern -> method, what adapts the new run; the paths of what else the adapter replaces, and how many classes of
      its head have no names.

    Raises:
      UserError: no adapter there; a method, a field or a tensor that has no place here, by name; another base's.
    """
    model, _, adapt, train = write_adapted(base, target, functools.partial(over_base, Path(source)))
    return adapt, train, unnamed(model, train)


def over_base(source: Path, model: Multimodal, params: Params) -> Over:
    """A base with the adapter of a peft folder: its model, with the head that peft trained beside it; its parameters; the
    methods by pattern, and patterns of what else the adapter trained.

    Raises:
      UserError: see `from_peft`.
    """
    config = read_config(source)
    check_plain(source, params)
    model, params, empty = with_head(source, config, model, params)
    params, adapt, train = read_adapter(source, config, model, params)
    if missing := sorted(empty - set(train)):
        raise UserError(f"{source}: it has no {missing[0]}, which neither the base has")
    return model, params, adapt, train


def with_head(
    folder: Path, config: Mapping[str, Any], model: Multimodal, params: Params
) -> tuple[Multimodal, Params, set[str]]:
    """The base as the class that the adapter was made over, where that has a head which the base has not, or has for another
    number of classes, and the adapter has.

    Returns:
      The model, its parameters, and the paths that are zeros until the adapter fills them.
    """
    family = family_of(model)
    asked = (config.get("auto_mapping") or {}).get("base_model_class") or ""
    ends = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
    end = ends.get(config.get("task_type") or "")
    named = asked if asked in family.models else next((name for name in family.models if end and name.endswith(end)), "")
    found = tensor_shapes(folder, _first(config))
    heads = {name: shape for name, shape in found.items() if name in CLASSES}
    if not named or not heads:
        return model, params, set()
    count = next(iter(heads.values()))[0]
    own = [getattr(head, "classes", 0) for name, head in model.heads.items() if name in ("classes", "token_classes")]
    about = metadata(folder)
    problem = about.get("problem_type", "")
    if named == family.architecture(model) and own == [count]:
        return with_problem(model, problem), params, set()
    known = json.loads(about.get("labels", "[]"))
    labels = known if len(known) == count else [f"LABEL_{i}" for i in range(count)]
    return as_class(model, params, named, labels, problem)


def read_adapter(
    folder: Path, config: Mapping[str, Any], model: Multimodal, params: Params
) -> tuple[Params, dict[str, Any], tuple[str, ...]]:
    """The parameters with the adapter in them, the methods by pattern, and patterns of what else it trained.

    Raises:
      UserError: see `from_peft`.
    """
    family = family_of(model)
    architecture = family.architecture(model)
    rows = family.module_rows(model, architecture)
    modules = layout.modules(rows)
    kind, names, unread = (
        config["peft_type"],
        [name for row in rows for name in row.names()],
        family.unread(model, architecture),
    )
    but = (EMBEDDINGS,) if kind in VIRTUAL else ()
    found, spelt = by_module(folder, names, family, unread, _first(config), but)
    leaves = leaves_by_path(params)
    if kind == "LORA":
        own = {name: tensors for name, tensors in found.items() if any(suffix.startswith("lora_") for suffix in tensors)}
        adapt = place_lora(folder, methods(folder, config, own, spelt), own, modules, leaves)
    elif kind == "IA3":
        adapt = place_ia3(folder, found, modules, leaves)
    elif kind in VIRTUAL:
        adapt = place_virtual(folder, config, tensor(folder, EMBEDDINGS), model, leaves)
    else:
        adapt = {}
    train = place_whole(folder, found, rows, leaves)
    check_base(folder, metadata(folder), model, leaves, params)
    if kind == "LN_TUNING":
        norms = [path for path in train if re.search(r"norm/(scale|bias)$", path)]
        adapt, train = dict.fromkeys(norms, Norms()), tuple(path for path in train if path not in norms)
    elif kind == "LORA" and config.get("bias", "none") != "none":
        biases = [path for path in train if path.endswith(("/bias", "/tied_bias")) and not path.startswith("heads_")]
        adapt |= dict.fromkeys(biases, BitFit())
        train = tuple(path for path in train if path not in biases)
    return nested(leaves), adapt, train


def _first(config: Mapping[str, Any]) -> str:
    """What comes before the names of modules."""
    return FIRST if config["peft_type"] in VIRTUAL else layout.FIRST
