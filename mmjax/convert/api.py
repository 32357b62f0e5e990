"""The way in: `load` takes a run or a HuggingFace folder, `save_hf` writes one; and the two conversions of the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.convert.huggingface import COMPANIONS, build_model, read_config, read_model, write_model
from mmjax.convert.weights import staged_folder
from mmjax.core.config import CLASS, to_json
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.data import Tokenizer
from mmjax.models import Multimodal
from mmjax.train import Experiment
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.run import Run, environment
from mmjax.train.state import State

COMPANION_FOLDER = "huggingface"  # in a run: the files that came with the weights


def load(path: str | Path) -> tuple[Multimodal, Params]:
    """A run's best checkpoint, or a HuggingFace folder: the model and its float32 parameters.

    Raises:
      UserError: neither is there; what of the HuggingFace model we cannot represent exactly, by the field's name.
    """
    folder = Path(path)
    if is_run(folder):
        return _load_run(folder)
    model, params, _ = read_model(folder)
    return model, params


def load_model(path: str | Path) -> Multimodal:
    """The model alone, without its parameters: `model=load_model("runs/vit")` in a config."""
    folder = Path(path)
    return Run(folder).experiment().model if is_run(folder) else build_model(read_config(folder))[1]


def save_hf(model: Multimodal, params: Params, path: str | Path, companions: str | Path | None = None) -> str:
    """Write a folder that `transformers` opens with `from_pretrained`, and return the name of its class.

    Args:
      companions: a folder whose tokenizer and image-processor files go with it.

    Raises:
      UserError: no HuggingFace class is this model; `path` holds files already.
    """
    return write_model(model, params, Path(path), None if companions is None else Path(companions))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of ours (its config.json is an experiment)."""
    try:
        return CLASS in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


def from_hf(source: str | Path, target: str | Path) -> tuple[Multimodal, tuple[str, ...]]:
    """Make a run out of a HuggingFace folder: its checkpoint 0 is what `init_from` starts from.

    Returns:
      The model, and the names of tensors that its class has no use for.

    Raises:
      UserError: as `load`; `target` holds files already.
    """
    source, target = Path(source), Path(target)
    with staged_folder(target) as folder:
        model, params, unused = read_model(source)
        run = Run(folder)
        run.write_json("config.json", to_json(Experiment(model=model, data={}, tasks={}, steps=0)))
        run.write_json("environment.json", environment())
        (folder / COMPANION_FOLDER).mkdir()
        for file in sorted(source.iterdir()):
            if COMPANIONS.match(file.name):
                shutil.copyfile(file, folder / COMPANION_FOLDER / file.name)
        if any(source.glob("tokenizer*")) or any(source.glob("vocab*")):
            run.keep_tokenizer(Tokenizer.load(source))
        _save_params(run, params)
    return model, unused


def to_hf(source: str | Path, target: str | Path) -> str:
    """Write a run's best checkpoint as a HuggingFace folder; returns the name of its class. Raises `UserError` as `save_hf`."""
    run = Run(source)
    model, params = _load_run(run.path)
    companions = run.path / COMPANION_FOLDER
    return write_model(model, params, Path(target), companions if companions.is_dir() else None)


def _load_run(folder: Path) -> tuple[Multimodal, Params]:
    run = Run(folder)
    experiment = run.experiment()
    if not run.has_checkpoint():
        raise UserError(f"{folder}: the run has no checkpoint yet")
    checkpoints = Checkpoints(run.checkpoints, experiment.checkpoint, read_only=True)
    step = checkpoints.best_step()
    assert step is not None
    params, _ = checkpoints.params(step)
    checkpoints.close()
    return experiment.model, jax.tree.map(jnp.asarray, params)


def _save_params(run: Run, params: Params) -> None:
    none: dict[str, Any] = {}
    watch = {"mean": jnp.zeros((), jnp.float32), "good": jnp.zeros((), jnp.int32)}
    state = State(jnp.zeros((), jnp.int32), params, none, none, none, jnp.asarray(np.zeros(2, np.uint32)), watch)
    checkpoints = Checkpoints(run.checkpoints, run.experiment().checkpoint)
    checkpoints.save(0, state, {}, to_json(run.experiment()))
    checkpoints.wait()
    checkpoints.close()
