"""Adapted runs: read, to be handed to another library, and made of what another library hands over."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.adapt import base_of, is_adapter, wide
from mmjax.adapt.places import places_of
from mmjax.convert.api import COMPANION_FOLDER, copy_companions, has_tokenizer, load, load_run, prepared, run_at, save_params
from mmjax.convert.born import born
from mmjax.convert.export import Whole, in_units
from mmjax.convert.staging import staged_folder
from mmjax.core.errors import UserError, within
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Params
from mmjax.data import Tokenizer
from mmjax.models import Multimodal
from mmjax.models.forward import VARIABLES
from mmjax.train import AdamW, Experiment
from mmjax.train.frozen import fingerprint
from mmjax.train.narrow import WIDE, narrowed
from mmjax.train.run import Run, environment

logger = logging.getLogger("mmjax")
# What an adapter makes of a base: its model with the head that came along, its parameters, pattern -> method, and patterns of
# what else was trained.
Over = tuple[Multimodal, Params, dict[str, Any], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Adapted:
    """An adapted run.

    Attributes:
      experiment: its own.
      whole: its model as a HuggingFace class.
      params: without what its modules keep.
      trained: paths of what was trained.
      below: over which run's model, for who reads it.
    """

    experiment: Experiment
    whole: Whole
    params: Params
    trained: set[str]
    below: str

    @property
    def mark(self) -> dict[str, str]:
        """What tells the kernels beside which the adapter lies from another base's, and the dtype that they were kept in."""
        rooms = {path.rpartition("/")[0] for path in leaves_by_path(self.params) if is_adapter(path)}
        own = {
            path: leaf
            for path, leaf in leaves_by_path(base_of(self.params)).items()
            if path.rpartition("/")[0] in rooms and path.endswith(("/kernel", "/table")) and path not in self.trained
        }
        return {"base": fingerprint(nested(own)), "base_dtype": self.experiment.frozen_dtype}


def read_adapted(source: str | Path, library: str) -> Adapted:
    """An adapted run, to be written for a library.

    Raises:
      UserError: the run is not adapted, or is no HuggingFace class as a whole; its base is not what the library's user loads.
    """
    run = Run(source)
    e = run.experiment()
    model, params = load_run(run)
    params = {name: tree for name, tree in params.items() if name != VARIABLES}
    if not e.adapt:
        raise UserError(
            f"{source}: nothing adapts this run's model (its config has no adapt); mmjax convert to-hf writes it whole"
        )
    about = run.path / "init_from.json"
    begun = json.loads(about.read_text()) if about.is_file() else {}
    if begun.get("resized"):
        raise UserError(
            f"{source}: {begun['resized'][0]} was resized from the base's, so {library}'s user would load another base: write "
            "the run whole, mmjax convert to-hf"
        )
    if begun.get("layers"):
        raise UserError(
            f"{source}: it has some of its base's layers ({', '.join(begun['layers'])}), and {library}'s user would load all "
            "of them: write the run whole, mmjax convert to-hf"
        )
    if e.tasks and not begun:
        raise UserError(
            f"{source}: what it adapts is its own random beginning (its config has no init_from), which {library}'s user has "
            "not: write the run whole, mmjax convert to-hf"
        )
    whole = prepared(run, model)
    if whole is None:
        raise UserError(
            f"{source}: no HuggingFace class is the whole of this model, so {library} has nothing to add an adapter to"
        )
    below = begun.get("run", "its base")
    if begun.get("merged"):
        below += " with what adapted that merged in (to-hf writes it)"
    if e.frozen_dtype != WIDE:
        below += f", which was kept in {e.frozen_dtype}: over the whole of it answers differ by what that rounded"
    trained = set(leaves_by_path(e.updating.trained(params).of(params)))
    if kept := [head for head, own in whole.numbers.items() if own[:2] != (0, 1) and not _trained_whole(head, trained)]:
        raise UserError(
            f"{source}: the unit of the numbers that heads.{kept[0]} says goes into its last layer, and {library}'s file has "
            "not the whole of that: write the run whole, mmjax convert to-hf"
        )
    return Adapted(e, whole, in_units(whole, params), trained, below)


def _trained_whole(head: str, trained: set[str]) -> bool:
    """Whether the last layer of a head is trained itself, and not by an adapter."""
    own = [path for path in trained if path.startswith(f"heads_{head}/") and "logits/" in path]
    return f"heads_{head}/logits/kernel" in own and not any(is_adapter(path) for path in own)


def write_adapted(base: str | Path, target: str | Path, over: Callable[[Multimodal, Params], Over]) -> Over:
    """Make a run of a base, a run or a HuggingFace folder, and of what an adapter makes of it.

    Raises:
      UserError: no base there, or no HuggingFace class is it; `target` holds files already.
    """
    base, target = Path(base), Path(target)
    model, params = load(base)
    with within(str(base)):
        model = born(model)
    variables = params.get(VARIABLES)
    params = wide({name: tree for name, tree in params.items() if name != VARIABLES})
    with staged_folder(target) as folder:
        made = model, params, adapt, train = over(model, params)
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
    return made


def runs_of_layers(path: str, methods: Mapping[int, Any], depth: int, stacked: bool) -> dict[str, Any]:
    """Pattern -> method, of consecutive layers that have the same."""
    found: dict[str, Any] = {}
    layer = 0
    while layer < depth:
        if layer not in methods:
            layer += 1
            continue
        end = layer + 1
        while end in methods and methods[end] == methods[layer]:
            end += 1
        found[path if not stacked or (layer, end) == (0, depth) else f"{path}[{layer}:{end}]"] = methods[layer]
        layer = end
    return found


def check_plain(folder: Path, params: Params) -> None:
    """Raises UserError where a base is adapted itself: a folder's adapter would lie over part of that."""
    if own := sorted(path for path in leaves_by_path(params) if is_adapter(path)):
        raise UserError(
            f"{folder}: the base is adapted itself ({own[0]}, {len(own)} arrays in all): give what it was adapted from, or "
            "merge it first (mmjax convert to-hf)"
        )


def check_base(folder: Path, about: Mapping[str, str], model: Multimodal, leaves: Mapping[str, Any], params: Params) -> None:
    """Raises UserError where a folder says (`about`) over which kernels it was made, and they are not these.

    Args:
      leaves: of the parameters with the adapter in them; `params` are those without.
    """
    mark, dtype = about.get("base"), about.get("base_dtype", WIDE)
    before = leaves_by_path(params)
    rooms = {path.rpartition("/")[0] for path in leaves if path not in before}
    kernels = {path: np.asarray(x) for path, x in before.items() if path.rpartition("/")[0] in rooms}
    kernels = {path: x for path, x in kernels.items() if path.endswith(("/kernel", "/table"))}
    if dtype != WIDE:  # of the numbers that it was trained over
        logger.warning(
            "mmjax: %s was trained over a base kept in %s: over the whole of it answers differ by what that rounded",
            folder,
            dtype,
        )
    if mark and dtype != WIDE:
        narrow = leaves_by_path(narrowed(nested(kernels), {p: x for p, x in places_of(model).items() if p in kernels}, dtype))
        kernels = {path: narrow[path] for path in kernels}
    if mark and kernels and fingerprint(nested({path: jnp.asarray(x) for path, x in kernels.items()})) != mark:
        raise UserError(
            f"{folder}: it was made over a base whose kernels are not these (mark {mark}): give the base it belongs to"
        )
