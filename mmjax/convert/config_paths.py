"""Leaves of a model and fields of a nested config, by dotted path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmjax.core.config import children, replace
from mmjax.models import Multimodal

Config = Mapping[str, Any]


class _Missing:
    pass


MISSING = _Missing()


def parts(model: Multimodal) -> set[str]:
    """`encoders.text`, `heads.classes`, ...: what a model is made of."""
    kinds = ("encoders", "fusions", "decoders", "heads")
    return {f"{kind}.{name}" for kind in kinds for name in getattr(model, kind)}


def get_leaf(model: Any, path: str) -> Any:
    """The model's leaf at a dotted path, or MISSING where it lacks a part on the way."""
    for name in path.split("."):
        known = children(model)
        if name not in known:
            return MISSING
        model = known[name]
    return model


def set_leaf(model: Any, path: str, value: Any) -> Any:
    """The model with one leaf replaced; unchanged where it lacks a part on the way."""
    if get_leaf(model, path) is MISSING:
        return model
    name, _, rest = path.partition(".")
    return replace(model, name, set_leaf(children(model)[name], rest, value) if rest else value)


def get(config: Config, path: str, default: Any) -> Any:
    """A field of a nested config by its dotted path; `default` where it is not there."""
    for name in path.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return default
        config = config[name]
    return config


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set a field of a nested config by its dotted path; a group that is absent or null is made."""
    *way, last = path.split(".")
    for name in way:
        if config.get(name) is None:
            config[name] = {}
        config = config[name]
    config[last] = value


def thaw(value: Any) -> Any:
    """A copy as JSON has it: lists for tuples."""
    if isinstance(value, Mapping):
        return {name: thaw(child) for name, child in value.items()}
    return [thaw(child) for child in value] if isinstance(value, (tuple, list)) else value


def freeze(value: Any) -> Any:
    """A copy as specs have it: tuples for lists."""
    if isinstance(value, Mapping):
        return {name: freeze(child) for name, child in value.items()}
    return tuple(freeze(child) for child in value) if isinstance(value, (tuple, list)) else value
