"""The weighted mean of the parameters of several runs of one model, as a run: WiSE-FT, model soups."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.adapt import is_adapter, merged, wide
from mmjax.convert.api import COMPANION_FOLDER, load_run, run_at, save_params
from mmjax.convert.staging import staged_folder
from mmjax.core.config import differences
from mmjax.core.errors import UserError, within
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.models.forward import VARIABLES
from mmjax.train import kept_code
from mmjax.train.narrow import WIDE
from mmjax.train.run import AVERAGED, CLASSES, Run
from mmjax.train.teachers import FOLDER as TEACHERS

# Fields of a model that change how it is trained or computed, and not what it gives.
TRAINING = ("dropout", "embed_dropout", "attention_dropout", "unroll", "remat", "attention", "dtype", "block")


def average(sources: Sequence[str | Path], target: str | Path, weights: Sequence[float]) -> tuple[int, tuple[str, ...]]:
    """Write the run whose parameters are sum_i w_i theta_i, of the best checkpoints of runs of one model.

    With a fine-tuned run and the one that it started from this is WiSE-FT (Wortsman 2022, eq. 1), with several runs of one
    start a uniform or weighted soup (Wortsman 2022b). What adapts a run is merged into its parameters first: the mean of
    low-rank factors is not that of the updates that they stand for. Data, evaluators, tokenizers and code are those of the
    first.

    Returns:
      How many numbers were averaged, and the names of the runs in which an adapter was merged.

    Raises:
      UserError: less than two runs; weights that are no shares or do not sum to 1; runs of other models, tokenizers or classes,
        or of modules that keep different variables, by name; adapters that cannot be merged.
    """
    if len(sources) < 2:
        raise UserError(f"convert average takes two runs or more, found {', '.join(map(str, sources)) or 'none'}")
    _check_weights(weights, len(sources))
    runs = [_run(source) for source in sources]
    first, adapters = runs[0], list[str]()
    model: Multimodal | None = None
    total: dict[str, np.ndarray] = {}
    shapes: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    for run, weight in zip(runs, weights, strict=True):
        own_model, params = load_run(run)
        own_variables = leaves_by_path(params.get(VARIABLES, {}))
        params = {name: tree for name, tree in params.items() if name != VARIABLES}
        if any(map(is_adapter, leaves_by_path(params))):
            adapters.append(run.name)
            with within(run.name):
                params = merged(own_model, params)
        params = wide(params)  # of whole numbers there is no mean
        leaves = {path: np.asarray(x) for path, x in leaves_by_path(params).items()}
        if model is None:
            model, variables = own_model, own_variables
            shapes = {path: (x.shape, x.dtype) for path, x in leaves.items()}
        else:
            _check_same(first, run, model, own_model, shapes, leaves)
            _check_variables(first, run, variables, own_variables)
        _add(total, leaves, weight)
    assert model is not None
    mean = {path: jnp.asarray(x.astype(shapes[path][1])) for path, x in total.items()}
    _write(runs, target, weights, _tree(mean, variables), adapters)
    return sum(x.size for x in mean.values()), tuple(adapters)


def _run(source: str | Path) -> Run:
    run = run_at(source)
    if run is None:
        raise UserError(f"{source} is not a run: it has no config.json of an experiment; mmjax convert from-hf makes one")
    return run


def _check_weights(weights: Sequence[float], runs: int) -> None:
    if len(weights) != runs:
        raise UserError(f"--weights {' '.join(f'{w:g}' for w in weights)}: give one a run, {runs} in all")
    if any(not 0 <= weight <= 1 for weight in weights) or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise UserError(
            f"--weights {' '.join(f'{w:g}' for w in weights)}: they are shares from 0 to 1 and sum to 1, found {sum(weights):g}"
        )


def _check_same(
    first: Run, other: Run, model: Multimodal, own: Multimodal, shapes: Mapping[str, Any], leaves: Mapping[str, np.ndarray]
) -> None:
    """Raises UserError unless another run is of the first one's model, words and classes."""
    both = f"{first.name} and {other.name}"
    for path in sorted(shapes.keys() | leaves.keys()):
        if path not in leaves or path not in shapes:
            which = other.name if path in leaves else first.name
            raise UserError(f"{both} are runs of different models: only {which} has {path}")
        if shapes[path][0] != leaves[path].shape:
            raise UserError(f"{both} are runs of different models: {path} is {shapes[path][0]} and {leaves[path].shape}")
    changed = [line for line in differences(model, own, ("augment",)) if line.split(": ")[0].split(".")[-1] not in TRAINING]
    if changed:
        raise UserError(f"{both} are runs of different models: model.{changed[0]}")
    mine, theirs = first.tokenizers(), other.tokenizers()
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine or name not in theirs or _words(mine[name]) != _words(theirs[name]):
            raise UserError(f"{both} have different tokenizers{f' {name!r}' * bool(name)}: their words are not the same rows")
    classes, others = first.classes(), other.classes()
    for head in model.heads:
        if classes.get(head) != others.get(head):
            raise UserError(f"{both}: heads.{head} has the classes {_some(classes.get(head))} and {_some(others.get(head))}")


def _words(tokenizer: Any) -> tuple[Any, ...]:
    """What makes ids of texts."""
    huggingface = tokenizer.huggingface
    backend = getattr(huggingface, "backend_tokenizer", None)
    return (sorted(huggingface.get_vocab().items()), None if backend is None else backend.to_str())


def _some(names: Sequence[str] | None) -> str:
    names = names or ()
    return (", ".join(names[:3]) + ", ..." * (len(names) > 3)) or "without names"


def _check_variables(first: Run, other: Run, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises UserError where modules keep other variables: the mean of statistics is not the statistics of the mean."""
    for path in sorted(mine.keys() | theirs.keys()):
        if path not in mine or path not in theirs or not np.array_equal(mine[path], theirs[path]):
            raise UserError(f"{first.name} and {other.name} keep different variables at {path}, which no mean stands for")


def _add(total: dict[str, np.ndarray], leaves: Mapping[str, np.ndarray], weight: float) -> None:
    for path, x in leaves.items():
        total[path] = np.float64(weight) * x.astype(np.float64) + total.get(path, 0.0)


def _tree(params: Mapping[str, Any], variables: Mapping[str, Any]) -> Params:
    tree = nested(dict(params))
    return {**tree, VARIABLES: nested(dict(variables))} if variables else tree


def _write(runs: Sequence[Run], target: str | Path, weights: Sequence[float], params: Params, adapters: Sequence[str]) -> None:
    """The run: the first one's experiment, classes, tokenizers, code and companions, and the parameters as checkpoint 0."""
    first = runs[0]
    with staged_folder(Path(target)) as folder:
        run = Run(folder)
        for beside in (COMPANION_FOLDER, kept_code.FOLDER, TEACHERS):
            if (first.path / beside).is_dir():
                shutil.copytree(first.path / beside, folder / beside)
        for name in (CLASSES, "environment.json"):
            if (kept := first.read_json(name)) is not None:
                run.write_json(name, kept)
        begun: dict[str, Any] = {"init_from": "", "init_fresh": (), "init_layers": (), "frozen_dtype": WIDE}
        experiment = dataclasses.replace(first.experiment(), adapt={}, **begun)
        run.write_config(experiment)
        run.keep_tokenizers(first.tokenizers())
        about = [{"run": run.name, "weight": weight} for run, weight in zip(runs, weights, strict=True)]
        run.write_json(AVERAGED, {"of": about, "merged": list(adapters)})
        save_params(run, params)
