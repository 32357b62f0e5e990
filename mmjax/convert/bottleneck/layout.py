"""How bottlenecks lie in a folder of the `adapters` library (1.3, which needs transformers 4).

adapter_config.json, adapter.safetensors    PLACE.adapters.NAME.adapter_down.0.weight [r, D], .bias [r]
                                            PLACE.adapters.NAME.adapter_up.weight [D, r], .bias [D]
head_config.json, model_head.safetensors    a head that was trained beside, by the class's own names
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.convert.huggingface import family_of
from mmjax.convert.layout import Row
from mmjax.convert.weights import float32_of, open_file
from mmjax.core import strict_json
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.nn.bottleneck import LAST

CONFIG, TENSORS = "adapter_config.json", ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_CONFIG, HEAD = "head_config.json", ("model_head.safetensors", "pytorch_model_head.bin")
NAME = "mmjax"  # of the adapter, which its user gives another with load_as
CLIP = ("clip", ((r"self_attn\.out_proj$", "attention_adapters"), (r"mlp\.fc2$", "output_adapters")))
# Family -> what the class calls its body, and where a branch's adapters lie, by the module of its last kernel.
PLACES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "bert": ("bert", ((r"\.dense$", ""),)),
    "roberta": ("roberta", ((r"\.dense$", ""),)),
    "gpt2": ("transformer", ((r"attn\.c_proj$", "attention_adapters"), (r"mlp\.c_proj$", "output_adapters"))),
    "llama": ("model", ((r"self_attn\.o_proj$", "attention_adapters"), (r"mlp\.down_proj$", "output_adapters"))),
    "clip": CLIP,
    "clip_text_model": CLIP,
    "clip_vision_model": CLIP,
    "vit": ("vit", ((r"attention\.output\.dense$", "attention_adapters"), (r"output\.dense$", "output.output_adapters"))),
}
ACTIVATIONS = {
    "relu": ("relu",),
    "silu": ("swish", "silu"),
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh"),
    "quick_gelu": ("quick_gelu",),
    "tanh": ("tanh",),
}
WITHOUT = ("CLIPForImageClassification",)  # which the library has not prepared
FLAGS = {"attention": "mh_adapter", "mlp": "output_adapter"}  # of the library's config, by branch
# What the library's config may say beside, which is all that is done here.
FIXED: dict[str, Any] = {
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "inv_adapter": None,
    "cross_adapter": False,
    "phm_layer": False,
}
RANDOM = {"dropout": 0.0, "stochastic_depth": 0.0}  # acts when training alone
LEAVES = {
    "bottleneck_down": "adapter_down.0.weight",
    "bottleneck_down_bias": "adapter_down.0.bias",
    "bottleneck_up": "adapter_up.weight",
    "bottleneck_up_bias": "adapter_up.bias",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the adapters of a branch lie, layer by layer.

    Attributes:
      room: the path of the branch's last linear layer here.
      branch: `attention` or `mlp`.
      modules: of the library, one a layer, without the adapter's name.
      first: the library's number of the first layer.
    """

    room: str
    branch: str
    modules: tuple[str, ...]
    first: int


def check_family(model: Multimodal, architecture: str) -> None:
    """Raises UserError for a class that the library does not have."""
    if family_of(model).model_type not in PLACES or architecture in WITHOUT:
        raise UserError(
            f"{architecture}: no bottleneck of it goes to the adapters library or comes from it, as of {', '.join(PLACES)} "
            f"(but not {', '.join(WITHOUT)}). The run itself answers, evaluates and goes on with it"
        )


def places(model: Multimodal, architecture: str) -> list[Place]:
    """Every branch that the library can adapt. Raises UserError for a class that it does not have."""
    check_family(model, architecture)
    family = family_of(model)
    found: list[Place] = []
    depths: dict[str, int] = {}  # by tower
    rows = sorted(family.rows(model, architecture), key=lambda row: "encoders_image" in row.ours[0])  # a CLIP's texts first
    ends = {"/layers/" + "/".join(last) + "/kernel": branch for branch, last in LAST.items() if branch != "cross_attention"}
    for row in rows:
        end = next((end for end in ends if row.ours[0].endswith(end)), None)
        if end is None or not row.depth:
            continue
        tower = row.ours[0].split("/")[0]
        first = sum(depth for other, depth in depths.items() if other != tower)
        depths[tower] = row.depth
        modules = tuple(_module(PLACES[family.model_type][1], name.removesuffix(".weight")) for name in row.names())
        found.append(Place(row.ours[0].removesuffix("/kernel"), ends[end], modules, first))
    return found


def _module(patterns: Sequence[tuple[str, str]], name: str) -> str:
    """The module that holds the adapters, for that of a branch's last kernel."""
    for pattern, replacement in patterns:
        if re.search(pattern, name):
            return f"{re.sub(pattern, replacement, name)}.adapters"
    raise AssertionError(name)


def check_bottlenecks(model: Multimodal, architecture: str, rooms: Collection[str], others: Collection[str]) -> list[Place]:
    """Every branch that the library can adapt.

    Args:
      rooms: paths of the linear layers beside which bottlenecks lie.
      others: paths of what else adapts the model.

    Raises:
      UserError: unless these are all there is, and the library has places for them.
    """
    if others or not rooms:
        found = min(others) if others else "no bottleneck"
        raise UserError(
            f"adapt has {found}, and a folder of the adapters library holds bottlenecks alone: the others are for mmjax "
            "convert to-peft"
        )
    known = places(model, architecture)
    if spare := sorted(set(rooms) - {place.room for place in known}):
        raise UserError(f"{architecture}: the adapters library has no place for a bottleneck at {spare[0]}")
    return known


def check_beside(model: Multimodal, architecture: str, trained: Collection[str]) -> list[Row]:
    """The rows of the class's head, which is what the library keeps beside bottlenecks.

    Args:
      trained: paths of what is trained of the model itself.

    Raises:
      UserError: something else is trained; a CLIP's head.
    """
    family = family_of(model)
    body = f"{PLACES[family.model_type][0]}."
    rows = [row for row in family.rows(model, architecture) if not row.theirs.startswith(body)]
    if spare := sorted(set(trained) - {path for row in rows for path in row.ours}):
        raise UserError(
            f"{architecture}: {spare[0]} is trained beside the bottlenecks, and the adapters library keeps beside them a head "
            "alone, which it is no part of there: leave it out of optimizer.train and of adapt"
        )
    if trained and family.model_type.startswith("clip"):
        raise UserError(f"{architecture}: the adapters library keeps the head of a CLIP together with its towers: not written")
    return rows


def is_bottleneck(folder: Path) -> bool:
    """Whether a folder is the library's, and not peft's."""
    try:
        config = strict_json.read(folder / CONFIG)
    except (OSError, UserError):
        return False
    return isinstance(config, dict) and "peft_type" not in config and "config" in config


def file_of(folder: Path, names: Sequence[str]) -> Path:
    """The file that is there of these names. Raises UserError where none is."""
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has neither {' nor '.join(names)}")
    return file


def read(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, float32."""
    with open_file(file) as weights:
        return {name: float32_of(weights, name, file) for name in weights.names}
