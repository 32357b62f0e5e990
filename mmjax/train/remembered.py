"""What heads remember of the data: keys and classes of examples, taken when a run begins (`models.cached`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import UserError, within
from mmjax.core.trees import leaves_by_path, map_with_path
from mmjax.core.types import Array, Batch, Forward
from mmjax.evaluate.evaluation import class_names
from mmjax.evaluate.zero_shot import class_vectors
from mmjax.models.cached import KEPT, CachedClassifier
from mmjax.objectives.class_prompts import by_name, check_templates
from mmjax.train.setup import Setup
from mmjax.train.state import State, with_variables


def remembered(setup: Setup, state: State, loaded: Collection[str], say: Callable[[str], None]) -> State:
    """The state with the keys of every head that remembers examples, but for those that came from another run.

    Args:
      loaded: paths of the parameters that came from another run.

    Raises:
      UserError: data of another size than the head's, or of other classes; a template without `{}`.
    """
    for name, head in setup.experiment.model.heads.items():
        if not isinstance(head, CachedClassifier) or f"heads_{name}/cache_keys" in loaded:
            continue
        with within(f"model.heads.{name}"):
            found = _read(setup, state, name, head)
        say(f"heads.{name}: remembers the {head.size} records of data.{head.data}")
        state = _with(setup, state, name, found)
    return state


def _read(setup: Setup, state: State, name: str, head: CachedClassifier) -> dict[str, Any]:
    """Embeddings and classes of the data, the vectors of the classes' prompts, and the scale."""
    evaluation, (fusion, _, modality) = setup.evaluation(), head.input.partition(":")
    check_templates("templates", head.templates)
    dataset = evaluation.dataset(head.data)
    if dataset.size != head.size:
        raise UserError(f"size={head.size}: data.{head.data} has {dataset.size} records, and each of them is a key")
    own = class_names(dataset, head.label)
    classes = setup.classes.get(name) or own
    if len(classes) != head.classes:
        raise UserError(
            f"classes={head.classes}: data.{head.data} has {len(classes)} classes with names, and prompts need them"
        )
    params = with_variables(state.params, state.variables.get("model", {}))

    def embed(forward: Forward, batch: Batch) -> tuple[Array, Array, Array]:
        scale_B = jnp.broadcast_to(forward.scalar(fusion, "scale"), batch[head.label].shape)
        return forward.embed(modality, fusion), batch[head.label], scale_B

    def embed_text(forward: Forward, batch: Batch) -> Array:
        return forward.embed(head.text, fusion)

    keys_NE, label_N, scale_N = evaluation.rows(name, head.data, params, embed, needs=(head.label,))
    if len(label_N) != head.size or (label_N < 0).any():
        readable = int((label_N >= 0).sum())
        raise UserError(f"size={head.size}: of the records of data.{head.data} {readable} can be read and have a class")
    vectors_CE = class_vectors(
        classes, head.templates, lambda texts: evaluation.texts(name, params, texts, embed_text, head.text)
    )
    label_N = by_name(label_N, own, classes, head.data).astype(np.int32)
    return {"cache_keys": keys_NE, "label": label_N, "vectors": vectors_CE, "scale": np.float32(scale_N[0])}


def _with(setup: Setup, state: State, name: str, found: dict[str, Any]) -> State:
    """The state with a head's leaves replaced; the moving average begins with them too."""

    def taken(prefix: str) -> Callable[[str, Any], Any]:
        def one(path: str, x: Any) -> Any:
            new = found.get(path.removeprefix(prefix)) if path.startswith(prefix) else None
            return x if new is None else jax.device_put(jnp.asarray(new, x.dtype), x.sharding)

        return one

    params = map_with_path(taken(f"heads_{name}/"), state.params)
    variables = map_with_path(taken(f"model/{KEPT}/heads_{name}/"), state.variables)
    assert f"model/{KEPT}/heads_{name}/label" in leaves_by_path(variables)
    own = setup.trained().of(params) if state.ema else {}
    ema = jax.tree.map(jnp.copy, own)
    return dataclasses.replace(state, params=params, variables=variables, ema=ema)
