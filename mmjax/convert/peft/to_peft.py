"""An adapted run -> a folder that peft opens over the model that the run was adapted from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from mmjax.adapt import is_adapter
from mmjax.convert.adapted import read_adapted
from mmjax.convert.card import adapter_card
from mmjax.convert.family import Family
from mmjax.convert.huggingface import family_of
from mmjax.convert.peft import layout
from mmjax.convert.peft.beside import norms_alone, with_trained
from mmjax.convert.peft.tensors import Adapter, Tensors, check_modules, ia3, lora
from mmjax.convert.peft.virtual import FIRST, VIRTUAL, kinds_of, task_of, virtual
from mmjax.convert.staging import staged_folder
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.train.narrow import WIDE


def to_peft(source: str | Path, target: str | Path, base: str = "") -> tuple[str, int, str]:
    """Write what adapts a run as a peft folder; the HuggingFace class that it goes with, how many numbers it holds, and over
    which run's model.

    Args:
      base: what `base_model_name_or_path` says, the model to load first: a folder, or a name on a hub.

    Raises:
      UserError: the run is not adapted, or is no HuggingFace class as a whole; what peft has no place for, by name; `target`
        holds files already.
    """
    own = read_adapted(source, "peft")
    whole = own.whole
    adapter = adapter_of(whole.model, whole.architecture, own.params, own.trained)
    dropout = max([getattr(method, "dropout", 0.0) for method in own.experiment.adapt.values()])
    write_adapter(Path(target), whole.model, whole.architecture, adapter, base, own.mark, dropout)
    return whole.architecture, sum(x.size for own in adapter.tensors.values() for x in own.values()), own.below


def adapter_of(model: Multimodal, architecture: str, params: Params, trained: set[str]) -> Adapter:
    """The adapter of a model, in peft's terms.

    Args:
      trained: paths of what was trained.

    Raises:
      UserError: two methods at once, or what peft has no place for.
    """
    family = family_of(model)
    rows = family.module_rows(model, architecture)
    leaves = leaves_by_path(params)
    more = {path for path in trained if not is_adapter(path)}
    kinds = {name for path in leaves if is_adapter(path) for name in ("lora", "ia3") if f"/{name}_" in path}
    if thin := [path for path in leaves if path.endswith("/bottleneck_kind")]:
        raise UserError(f"{thin[0]}: peft has no bottlenecks; mmjax convert to-adapters writes them for the adapters library")
    if kinds_of(leaves):
        if kinds:
            raise UserError(
                f"adapt has {next(iter(kinds_of(leaves)))} and {', '.join(sorted(kinds))}, and a peft folder holds one method"
            )
        return virtual(model, architecture, rows, leaves, more)
    if alone := [(row.theirs, path) for row in rows if "." not in row.theirs for path in row.ours if path in more]:
        name, path = alone[0]
        raise UserError(
            f"{path}: {name} is no module's in {architecture}, and peft adapts modules; leave it out of adapt and train"
        )
    check_modules(family, architecture, rows, {path.rpartition("/")[0] for path in leaves if is_adapter(path)})
    names = layout.modules(rows)
    if len(kinds) > 1:
        raise UserError("adapt has LoRA and IA3, and a peft folder holds one method: convert to-hf merges both")
    if kinds == {"ia3"}:
        adapter = ia3(names, leaves)
    elif kinds or not norms_alone(more):
        adapter = lora(names, leaves)
    else:
        adapter = Adapter({}, {"peft_type": "LN_TUNING"})
    return with_trained(adapter, rows, leaves, more, architecture)


def write_adapter(
    target: Path,
    model: Multimodal,
    architecture: str,
    adapter: Adapter,
    base: str,
    mark: Mapping[str, str],
    dropout: float = 0.0,
) -> None:
    """Write the folder. `mark` tells the base's kernels and the dtype that they were kept in (`base`, `base_dtype`), see
    `from_peft`; beside it stand the names of the classes."""
    family = family_of(model)
    fields, tensors = _spelt(family, architecture, adapter), file_tensors(family, architecture, adapter)
    own: dict[str, Any] = {
        "auto_mapping": None,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "peft_version": "0.21.2",
        "revision": None,
        "task_type": fields.get("task_type") or _task(architecture, fields),
    }
    if own["task_type"] is None:
        kind = model.huggingface["model_type"]
        library = f"transformers.models.{kind}.modeling_{kind}"
        own["auto_mapping"] = {"base_model_class": architecture, "parent_library": library}
    if fields["peft_type"] == "LORA":
        own |= {"bias": "none", "lora_dropout": dropout, "use_rslora": False, "init_lora_weights": True}
    with staged_folder(target) as folder:
        (folder / layout.CONFIG).write_text(json.dumps(own | fields, indent=2, sort_keys=True) + "\n")
        labels = list((model.huggingface.get("id2label") or {}).values())
        problem = model.huggingface.get("problem_type") or ""
        about = {"format": "pt", "labels": json.dumps(labels), "problem_type": problem}
        save_file(tensors, folder / layout.TENSORS, {**about, **mark})
        card = adapter_card(architecture, own | fields, base, labels, problem, mark.get("base_dtype", WIDE))
        (folder / "README.md").write_text(card)


def _task(architecture: str, fields: Mapping[str, Any]) -> str | None:
    """peft's name of the class's task. One that classifies expects a head in the file, so without one nothing is said."""
    task = task_of(architecture)
    if task == "FEATURE_EXTRACTION" or architecture.endswith("ForConditionalGeneration"):  # peft's plain model takes any input
        return None
    return task if task == "CAUSAL_LM" or fields.get("modules_to_save") else None


def file_tensors(family: Family, architecture: str, adapter: Adapter) -> Tensors:
    """The tensors of the file, under every spelling of their modules."""
    first = FIRST if adapter.fields["peft_type"] in VIRTUAL else layout.FIRST
    return {
        f"{first}{spelt}.{suffix}" if name else suffix: x
        for name, own in adapter.tensors.items()
        for spelt in layout.spellings(family, architecture, name)
        for suffix, x in own.items()
    }


def _spelt(family: Family, architecture: str, adapter: Adapter) -> dict[str, Any]:
    """Fields with the names of modules as versions of `transformers` have them, each spelling beside the other."""
    fields = dict(adapter.fields)

    def every(names: Sequence[str]) -> list[str]:
        return [spelt for name in names for spelt in layout.spellings(family, architecture, name)]

    if fields["peft_type"] in VIRTUAL:  # which has no modules of its own
        return fields | {"modules_to_save": every(fields["modules_to_save"]) if fields["modules_to_save"] else None}
    fields["target_modules"] = one_pattern(every(fields.pop("targets")))
    if fields.get("feedforward_modules") is not None and fields["peft_type"] == "IA3":
        fields["feedforward_modules"] = (
            one_pattern(every(fields["feedforward_modules"])) if fields["feedforward_modules"] else []
        )
    if fields["modules_to_save"]:
        fields["modules_to_save"] = every(fields["modules_to_save"])
    for field in ("rank_pattern", "alpha_pattern"):
        if field in fields:
            # One pattern a value: peft warns of a key that matches no module, as one of two spellings would.
            same = {n: [name for name, own in fields[field].items() if own == n] for n in fields[field].values()}
            fields[field] = {one_pattern(every(names)): n for n, names in same.items()}
    return fields


def one_pattern(names: Sequence[str]) -> str:
    """A regular expression that matches these names and no other; layers that differ in their number alone become one."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        number = re.search(r"\.(\d+)(?=\.)", name)
        kind = name if number is None else name[: number.start(1)] + "{}" + name[number.end(1) :]
        kinds.setdefault(kind, []).append(number[1] if number else "")
    found = []
    for kind, numbers in kinds.items():
        text = re.escape(kind)
        found.append(text.replace(re.escape("{}"), f"({'|'.join(numbers)})") if numbers[0] else text)
    return "|".join(found)
