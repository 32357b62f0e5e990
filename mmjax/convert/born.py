"""A model of our own as one that was built from a HuggingFace config: the class that is exactly it, or one with its encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.convert.config_paths import parts
from mmjax.convert.families import FAMILIES
from mmjax.convert.family import Config, Family, explicit, misfits
from mmjax.convert.huggingface import build_model, family_of
from mmjax.convert.towers import no_ids, same_class
from mmjax.core.errors import UserError
from mmjax.models import Multimodal

# Of a family whose fields are about parts that a model lacks.
UNLIKE = (UserError, StopIteration, KeyError, TypeError, AttributeError)
ROOMS = ("encoders", "fusions", "decoders")
Found = tuple[Multimodal, list[str]]  # a class as our model, and in what another differs from it


def born(model: Multimodal) -> Multimodal:
    """The model with the config.json of the HuggingFace class that is exactly it; as it is where it came with one.

    Raises:
      UserError: no class is; in what the nearest differs.
    """
    if model.huggingface:
        return model
    if (found := same_class(model)) is not None:
        return found[0]
    own = parts(model)
    near = [lines for built, lines in _classes(model) if parts(built) == own and lines]
    raise UserError(f"no HuggingFace class is the whole of this model: {_nearest(near, own)}")


def with_head(model: Multimodal, classes: int, ends: tuple[str, ...], does: str) -> Multimodal:
    """The first HuggingFace class whose name ends so and whose encoders are the model's, as our model, without parameters.

    Args:
      does: what such a class does, for the complaint.

    Raises:
      UserError: its family has no such class; no class has such an encoder, and in what the nearest differs.
    """
    names = {str(i): f"LABEL_{i}" for i in range(classes)}
    labels = {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    if model.huggingface:
        family = family_of(model)
        name = next((name for name in family.models if name.endswith(ends)), None)
        if name is None:
            raise UserError(f"{family.model_type} has no class of HuggingFace's that {does}; add a head by hand")
        return build_model(family.config(explicit(model)) | labels | {"architectures": [name]})[1]
    found = [pair for end in ends for pair in _classes(model, end, labels)]  # of two towers the image's, if it is one
    if (same := next((built for built, lines in found if not lines), None)) is not None:
        return same
    near = _nearest([lines for _, lines in found], parts(model))
    raise UserError(f"no class of HuggingFace's that {does} has such an encoder, so add a head by hand: {near}")


def _classes(model: Multimodal, end: str = "", labels: Config | None = None) -> Iterator[Found]:
    """Each class that has nothing beside its heads that the model lacks; with `labels`, whatever the heads of both are."""
    for family in FAMILIES.values():
        for name in family.models:
            if name.endswith(end):
                try:
                    yield _as_class(family, name, model, labels)
                except UNLIKE:
                    continue


def _as_class(family: Family, name: str, model: Multimodal, labels: Mapping[str, Any] | None) -> Found:
    own = explicit(model).copy(unread={}, huggingface={"model_type": family.model_type, **no_ids(family)})
    own = own if labels is None else own.copy(heads={})
    config = {**family.config(own), **(labels or {}), "architectures": [name]}
    built = build_model(config)[1]
    rooms = {room: {part: getattr(own, room)[part] for part in getattr(built, room)} for room in ROOMS}
    own = own.copy(**rooms, heads=built.heads) if labels is not None else own
    return built, list(misfits(family, explicit(own), config, name))


def _nearest(found: list[list[str]], own: set[str]) -> str:
    """What is said of the class that differs in the least."""
    if not found:
        return f"none is made of {', '.join(sorted(own))}"
    lines = min(found, key=len)
    return lines[0] + (f"; and {len(lines) - 1} more" if len(lines) > 1 else "")
