"""Parameters at another size of image: tables of learned positions, resized as the model itself resizes them on the fly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mmjax.core.trees import leaves_by_path, map_with_path
from mmjax.core.types import Array, Params
from mmjax.models.encoders import ViT
from mmjax.models.multimodal import Multimodal
from mmjax.nn.position import resize_grid, resize_grid_linear

TABLES = {"learned": "position", "fixed": "fixed_position"}  # kinds of positions that are kept as a table, and its name


def grid_of(part: Any) -> tuple[int, int]:
    """(rows, columns) of patches in an image of the part's own size."""
    return part.image_size[0] // part.patch[0], part.image_size[1] // part.patch[1]


def position_tables(model: Multimodal) -> dict[str, Any]:
    """Path of each table of positions of patches -> the encoder or the pixel decoder that has it."""
    found = {}
    for room in ("encoders", "decoders"):
        for name, part in getattr(model, room).items():
            if hasattr(part, "image_size") and hasattr(part, "patch") and part.positions in TABLES:
                found[f"{room}_{name}/{TABLES[part.positions]}/table"] = part
    return found


def resize_table(part: Any, table_TD: Array, image_size: tuple[int, int]) -> Array:
    """[firsts + P, D] of an encoder or a pixel decoder -> that for images of another size, its first tokens' as they were.

    The same numbers as the part adds where it is given an image of that size.
    """
    old, new = grid_of(part), grid_of(part.copy(image_size=image_size))
    if old == new:
        return table_TD
    if not isinstance(part, ViT):  # a pixel decoder's are one sequence, as HuggingFace's ViT-MAE has them
        firsts, old, new = part.firsts, (1, old[0] * old[1]), (1, new[0] * new[1])
        patches = resize_grid(table_TD[firsts:], old, new)
    else:
        firsts = int(part.cls_token) + part.extra_tokens
        if part.resize == "bilinear":
            patches = resize_grid_linear(table_TD[firsts:], old, new, new)
        else:
            patches = resize_grid(table_TD[firsts:], old, new)
    return jnp.concatenate([table_TD[:firsts], patches])


def resize_positions(params: Params, old: Multimodal, new: Multimodal) -> tuple[Params, list[str]]:
    """The parameters of `old` with the tables of positions of patches at the sizes of `new`.

    Of a part that is there in both, with the same kind of positions and the same first tokens; what differs otherwise is left.

    Returns:
      (parameters, the paths of the tables that were resized).
    """
    before, after, shapes = position_tables(old), position_tables(new), leaves_by_path(params)
    sizes: dict[str, tuple[Any, tuple[int, int]]] = {}
    for path, part in before.items():
        other = after.get(path)
        if other is None or path not in shapes or grid_of(part) == grid_of(other) or _firsts(part) != _firsts(other):
            continue
        sizes[path] = (part.copy(patch=other.patch, image_size=_scaled(part, other)), other.image_size)

    def resized(path: str, x: Array) -> Array:
        return resize_table(sizes[path][0], jnp.asarray(x), sizes[path][1]) if path in sizes else x

    return (map_with_path(resized, params) if sizes else params), list(sizes)


def resized_model(model: Multimodal, sizes: Mapping[str, tuple[int, int]]) -> Multimodal:
    """The model whose parts over a modality's images are made for images of these sizes, by modality."""
    sized = {name for name, part in model.encoders.items() if name in sizes and hasattr(part, "image_size")}  # others take any
    encoders = {name: part.copy(image_size=sizes[name]) if name in sized else part for name, part in model.encoders.items()}
    decoders = {}
    for name, part in model.decoders.items():
        painted = getattr(part, "writes", "") if hasattr(part, "image_size") else ""
        decoders[name] = part.copy(image_size=sizes[painted]) if painted in sizes else part
    return model.copy(encoders=encoders, decoders=decoders)


def _firsts(part: Any) -> int:
    return int(part.cls_token) + part.extra_tokens if isinstance(part, ViT) else int(part.firsts)


def _scaled(part: Any, other: Any) -> tuple[int, int]:
    """The size of image that has the part's own grid with the patches of another."""
    rows, columns = grid_of(part)
    return rows * other.patch[0], columns * other.patch[1]
