"""HuggingFace folders that teach: what `mmjax.train` asks of a teacher that is no run of its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.convert.api import COMPANION_FOLDER, has_tokenizer, run_at
from mmjax.convert.huggingface import describe_model, read_model
from mmjax.convert.processor import image_transforms
from mmjax.core.errors import UserError
from mmjax.core.trees import match_any
from mmjax.core.types import Params
from mmjax.data import Normalise, Tokenizer
from mmjax.models import Multimodal
from mmjax.models.casting import FLOAT32
from mmjax.models.forward import VARIABLES
from mmjax.parallel.rules import place
from mmjax.train.classes import names_of
from mmjax.train.teacher import Known, Normalised, kept_params
from mmjax.train.teachers import fingerprint, of_run, words_of


def teacher(path: str) -> Known | None:
    """What a HuggingFace folder, or a run that was made of one, is as a teacher; None for any other run, or nothing.

    Its tensors are read one by one when training begins, each cast and put in its place on the mesh before the next.

    Raises:
      UserError: as `mmjax.load`.
    """
    folder = Path(path)
    run = run_at(path)
    if run is not None:
        known, beside = of_run(path), run.path / COMPANION_FOLDER
        return known if known.images or not beside.is_dir() else dataclasses.replace(known, images=_images(known.model, beside))
    if not (folder / "config.json").is_file():
        return None
    model = describe_model(folder)
    tokenizer = Tokenizer.load(folder) if has_tokenizer(folder) else None
    texts = {} if tokenizer is None else {key: fingerprint(tokenizer) for key in words_of(model)}
    return Known(
        model=model,
        classes=names_of(model),
        texts=texts,
        images=_images(model, folder),
        read=functools.partial(_read, folder),
    )


def _images(model: Multimodal, folder: Path) -> dict[str, Normalised]:
    """What a folder's image processor normalises by; {} where there is none, or it is not one of ours."""
    if "image" not in model.encoders:
        return {}
    try:
        steps = image_transforms(folder)
    except UserError:
        return {}
    found = [step for step in steps if isinstance(step, Normalise)]
    return {"image": (tuple(found[-1].mean), tuple(found[-1].std))} if found else {}


def _read(folder: Path, mesh: jax.sharding.Mesh, dtype: str, parts: Collection[str]) -> Params:
    def put(path: str, x: np.ndarray) -> Any:
        if path.split("/")[0] not in (*parts, VARIABLES):
            return None
        same = match_any(FLOAT32, path) or path.startswith(f"{VARIABLES}/")
        return place(mesh, path, x if same else x.astype(np.dtype(dtype)))

    _, params, _ = read_model(folder, put)
    return kept_params({name: tree for name, tree in params.items() if name in parts}, params.get(VARIABLES, {}), dtype)
