"""Exporting what was not born of HuggingFace: as the class that is exactly this model, or tower by tower where none is."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from mmjax.convert.config_paths import freeze, parts
from mmjax.convert.families import FAMILIES
from mmjax.convert.family import Family, check_exact, explicit, misfits
from mmjax.core.errors import UserError
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.models.encoders import ResNet
from mmjax.models.forward import VARIABLES
from mmjax.models.heads import Classifier

# HuggingFace's defaults are the ids of the published model's tokenizer; ours goes with its own.
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


@dataclasses.dataclass(frozen=True)
class Tower:
    """One encoder as a HuggingFace class.

    Attributes:
      model, params: what is written.
      architecture: the name of the class.
    """

    model: Multimodal
    params: Params
    architecture: str


def same_class(model: Multimodal) -> tuple[Multimodal, str] | None:
    """The model as one of a HuggingFace class that is exactly it, and the class's name; None where there is none."""
    for kind, family in FAMILIES.items():
        # A class that a config field chooses (SigLIP's without a pooling head) is found by that field.
        for fields in ({}, {"vision_use_head": False}):
            if not fields.keys() <= family.fields.keys():
                continue
            born = explicit(model).copy(huggingface={"model_type": kind, **no_ids(family), **fields})
            try:
                architecture = family.architecture(born)
                config = family.config(born) | {"architectures": [architecture]}
                check_exact(family, born, config, architecture)
            except (UserError, StopIteration, KeyError, TypeError, AttributeError):
                continue  # it lacks what the family's fields are about
            return born.copy(huggingface=freeze({**born.huggingface, "architectures": [architecture]})), architecture
    return None


def nearest_class(model: Multimodal) -> str:
    """What stands in a model's way to the class that is nearest to it, for a complaint; "" where none has its parts."""
    found: list[tuple[int, str, list[str]]] = []
    for kind, family in FAMILIES.items():
        born = explicit(model).copy(huggingface={"model_type": kind, **no_ids(family)})
        try:
            architecture = family.architecture(born)
            lines = list(misfits(family, born, family.config(born) | {"architectures": [architecture]}, architecture))
        except (UserError, StopIteration, KeyError, TypeError, AttributeError):
            continue
        found.append((len(lines), architecture, lines))
    if not found:
        return ""
    count, architecture, lines = min(found)
    more = f" (and {count - 1} more)" if count > 1 else ""
    return f"; nearest is {architecture}: {lines[0]}{more}" if lines else ""


def no_ids(family: Family) -> dict[str, Any]:
    """The fields of config.json that say ids of a tokenizer, none of which is known yet."""
    ids: dict[str, Any] = {}
    for group in family.texts:
        ids |= {group: dict(NO_IDS)} if group else NO_IDS
    return ids


def towers(model: Multimodal, params: Params) -> tuple[dict[str, Tower], list[str]]:
    """Each encoder that some class is exactly, by modality; and the parts that are left behind.

    A class that always has a projection of the pooled vector gets the identity for it.
    """
    found: dict[str, Tower] = {}
    for modality, encoder in model.encoders.items():
        for alone, extra in _forms(modality, encoder):
            same = same_class(alone)
            if same is not None:
                room = f"encoders_{modality}"
                kept = {name: {room: tree[room]} for name, tree in params.get(VARIABLES, {}).items() if room in tree}
                own = {room: params[room], **extra, **({VARIABLES: kept} if kept else {})}
                found[modality] = Tower(same[0], own, same[1])
                break
    return found, sorted(parts(model) - {f"encoders.{modality}" for modality in found})


def _forms(modality: str, encoder: Any) -> list[tuple[Multimodal, dict[str, Any]]]:
    """What the tower may be written as: by itself, or with a pooled vector that is the last token's."""
    bare = Multimodal(encoders={modality: encoder})
    if isinstance(encoder, ResNet):  # whose class always has the mean beside the grid
        return [(Multimodal({modality: encoder}, heads={"pooler": Classifier(classes=0, input=modality)}), {})]
    if modality != "text":
        return [(bare, {})]
    pooler = Classifier(classes=encoder.width, input=modality, pool="last")
    identity = {"kernel": jnp.eye(encoder.width), "bias": jnp.zeros(encoder.width)}
    open_ended = encoder.copy(mask_padding=False)  # HuggingFace's hides what its attention_mask says
    return [(bare, {}), (Multimodal({modality: open_ended}, heads={"pooler": pooler}), {"heads_pooler": {"logits": identity}})]
