"""A peft folder over a base that we have -> an adapted run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.adapt import BitFit, Norms, wide
from mmjax.adapt.places import places_of
from mmjax.convert.api import COMPANION_FOLDER, copy_companions, has_tokenizer, load, run_at, save_params
from mmjax.convert.family import Family, explicit
from mmjax.convert.huggingface import build_model, family_of, match_names, tensors
from mmjax.convert.peft import layout
from mmjax.convert.peft.placing import place_ia3, place_lora, place_whole
from mmjax.convert.peft.reading import by_module, metadata, methods, read_config, tensor, tensor_shapes
from mmjax.convert.peft.virtual import EMBEDDINGS, FIRST, VIRTUAL, place_virtual
from mmjax.convert.staging import staged_folder
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Params
from mmjax.data import Tokenizer
from mmjax.models import Multimodal, param_shapes
from mmjax.models.forward import VARIABLES
from mmjax.train import AdamW, Experiment
from mmjax.train.frozen import fingerprint
from mmjax.train.narrow import WIDE, narrowed
from mmjax.train.run import Run, environment

HEADS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")  # whose rows are the classes


def from_peft(base: str | Path, source: str | Path, target: str | Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Make a run of a base (a run or a HuggingFace folder) and a peft folder.

    Returns:
      Pattern -> method, what adapts the new run; and the paths of what else the adapter replaces.

    Raises:
      UserError: no adapter there; a method, a field or a tensor that has no place here, by name; another base's.
    """
    base, source, target = Path(base), Path(source), Path(target)
    model, params = load(base)
    variables = params.get(VARIABLES)
    params = wide({name: tree for name, tree in params.items() if name != VARIABLES})
    with staged_folder(target) as folder:
        model, params, adapt, train = over_base(source, model, params)
        run = Run(folder)
        experiment = Experiment(model=model, data={}, tasks={}, steps=0, adapt=adapt, optimizer=AdamW(train=train))
        run.write_config(experiment)
        run.write_json("environment.json", environment())
        own = run_at(base)
        beside = base if own is None else own.path / COMPANION_FOLDER
        (folder / COMPANION_FOLDER).mkdir()
        if beside.is_dir():
            copy_companions(beside, folder / COMPANION_FOLDER)
        if own is not None and "" in own.tokenizers():
            run.keep_tokenizer(own.tokenizers()[""])
        elif own is None and has_tokenizer(base):
            run.keep_tokenizer(Tokenizer.load(base))
        save_params(run, {**params, VARIABLES: variables} if variables else params)
    return adapt, train


def over_base(source: Path, model: Multimodal, params: Params) -> tuple[Multimodal, Params, dict[str, Any], tuple[str, ...]]:
    """A base with the adapter of a peft folder: its model, with the head that peft trained beside it; its parameters; the
    methods by pattern, and patterns of what else the adapter trained.

    Raises:
      UserError: see `from_peft`.
    """
    config = read_config(source)
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
    heads = {name: shape for name, shape in found.items() if name in HEADS}
    if not named or not heads:
        return model, params, set()
    count = next(iter(heads.values()))[0]
    own = [getattr(head, "classes", 0) for name, head in model.heads.items() if name in ("classes", "token_classes")]
    if named == family.architecture(model) and own == [count]:
        return model, params, set()
    known = json.loads(metadata(folder).get("labels", "[]"))
    labels = {str(i): known[i] if len(known) == count else f"LABEL_{i}" for i in range(count)}
    said = family.config(explicit(model)) | {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
    other = build_model(said | {"architectures": [named]})[1]
    return other, *_as_class(family, model, params, other, named)


def _as_class(family: Family, model: Multimodal, params: Params, other: Multimodal, named: str) -> tuple[Params, set[str]]:
    """The parameters of another class of the same family: those that both have, by HuggingFace's names, and zeros; and the
    paths of the zeros."""
    plan, read = tensors(model, params)
    shapes = dict(plan)
    rows = family.rows(other, named)
    files, _ = match_names(family, [name for row in rows for name in row.names()], tuple(shapes))
    leaves: dict[str, Any] = {
        path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves_by_path(param_shapes(other)).items()
    }
    empty = set(leaves) - set(family.constants)
    for row in rows:
        own = [leaves[path].shape[1:] if row.depth else leaves[path].shape for path in row.ours]
        if any(shapes.get(files.get(name, "")) != row.their_shape(own) for name in row.names()):
            continue
        for layer, name in enumerate(row.names()):
            for path, part in zip(row.ours, row.split(read(files[name]), own), strict=True):
                leaves[path][layer if row.depth else ...] = part
        empty -= set(row.ours)
    for path, value in family.constants.items():
        if path in leaves and path not in {path for row in rows for path in row.ours}:
            leaves[path][...] = value
    return nested({path: jnp.asarray(leaf) for path, leaf in leaves.items()}), empty


def read_adapter(
    folder: Path, config: Mapping[str, Any], model: Multimodal, params: Params
) -> tuple[Params, dict[str, Any], tuple[str, ...]]:
    """The parameters with the adapter in them, the methods by pattern, and patterns of what else it trained.

    Raises:
      UserError: see `from_peft`.
    """
    family = family_of(model)
    architecture = family.architecture(model)
    rows = family.rows(model, architecture)
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
    _check_base(folder, model, leaves, params)
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


def _check_base(folder: Path, model: Multimodal, leaves: Mapping[str, Any], params: Params) -> None:
    """Raises UserError where the folder says of which kernels it was made, and they are not these."""
    about = metadata(folder)
    mark, dtype = about.get("base"), about.get("base_dtype", WIDE)
    before = leaves_by_path(params)
    rooms = {path.rpartition("/")[0] for path in leaves if path not in before}
    kernels = {path: np.asarray(x) for path, x in before.items() if path.rpartition("/")[0] in rooms}
    kernels = {path: x for path, x in kernels.items() if path.endswith(("/kernel", "/table"))}
    if mark and dtype != WIDE:  # of the numbers that it was trained over
        narrow = leaves_by_path(narrowed(nested(kernels), {p: x for p, x in places_of(model).items() if p in kernels}, dtype))
        kernels = {path: narrow[path] for path in kernels}
    if mark and kernels and fingerprint(nested({path: jnp.asarray(x) for path, x in kernels.items()})) != mark:
        raise UserError(
            f"{folder}: it was made over a base whose kernels are not these (mark {mark}): give the base it belongs to"
        )
