"""A base as another class of its family: one with the head that an adapter brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.convert.family import Family, explicit
from mmjax.convert.huggingface import build_model, family_of, match_names, tensors
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.models.forward import whole_shapes

CLASSES = ("classifier.weight", "classifier.out_proj.weight", "score.weight")  # of heads, whose rows are the classes


def as_class(
    model: Multimodal, params: Params, architecture: str, labels: Sequence[str], problem: str = ""
) -> tuple[Multimodal, Params, set[str]]:
    """A base as a class of its family that tells these labels apart.

    Args:
      problem: the `problem_type` by which HuggingFace says what the logits are; "" where nothing was said.

    Returns:
      The model, its parameters, and the paths that are zeros since the base has none.
    """
    family = family_of(model)
    names = {str(i): label for i, label in enumerate(labels)}
    said = family.config(explicit(model)) | {"id2label": names, "label2id": {label: int(i) for i, label in names.items()}}
    other = build_model(said | {"architectures": [architecture]})[1]
    return with_problem(other, problem), *_filled(family, model, params, other, architecture)


def with_problem(model: Multimodal, problem: str) -> Multimodal:
    """The model with a `problem_type`, where one is said."""
    return model.copy(huggingface={**model.huggingface, "problem_type": problem}) if problem else model


def unnamed(model: Multimodal, brought: Sequence[str]) -> int:
    """How many classes a head has that an adapter brought, if nothing names them; else 0."""
    labels = list((model.huggingface.get("id2label") or {}).values())
    bare = labels == [f"LABEL_{i}" for i in range(len(labels))]
    return len(labels) if bare and any(path.startswith("heads_") for path in brought) else 0


def _filled(family: Family, model: Multimodal, params: Params, other: Multimodal, named: str) -> tuple[Params, set[str]]:
    """The parameters of another class of the same family: those that both have, by HuggingFace's names, and zeros; and the
    paths of the zeros."""
    plan, read = tensors(model, params)
    shapes = dict(plan)
    rows = family.rows(other, named)
    files, _ = match_names(family, [name for row in rows for name in row.names()], tuple(shapes))
    leaves: dict[str, Any] = {
        path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in leaves_by_path(whole_shapes(other)).items()
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
