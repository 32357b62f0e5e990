"""What the tests know of adapters: a method as ours, and as peft's; the rest is the same for all families."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import torch

from mmjax.adapt import IA3, BitFit, LoRA, Norms, adapted, trained_patterns
from mmjax.convert.huggingface import family_of
from mmjax.convert.peft.from_peft import read_adapter
from mmjax.convert.peft.reading import read_config
from mmjax.convert.peft.to_peft import adapter_of, write_adapter
from mmjax.core.trees import leaves_by_path, map_with_path, match_any
from mmjax.core.types import Params
from mmjax.models import Multimodal
from mmjax.nn.adapters import TRAINED
from mmjax.train.trained import trained_of

LAYERS = "*/layers/"  # of stacks, so that SigLIP's pooling, which torch's own attention computes, is left out


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to adapt.

    Attributes:
      ours: pattern -> method.
      theirs: names of linear modules of a HuggingFace model -> peft's config.
    """

    ours: Mapping[str, Any]
    theirs: Callable[[list[str]], Any]


def _lora(**settings: Any) -> Callable[[list[str]], Any]:
    return lambda names: peft.LoraConfig(r=3, lora_alpha=5, target_modules=names, **settings)


WAYS = {
    "lora": Way(
        {
            f"{LAYERS}*attention/q/kernel": LoRA(r=3, alpha=5),
            f"{LAYERS}*attention/v/kernel": LoRA(r=2, alpha=8),
            f"{LAYERS}mlp/up/kernel[1:]": LoRA(r=2),
            f"{LAYERS}mlp/up/kernel[:1]": LoRA(r=4, alpha=3),
        },
        _lora(),
    ),
    "rslora": Way({f"{LAYERS}*attention/out/kernel": LoRA(r=3, rslora=True)}, _lora(use_rslora=True)),
    "dora": Way({f"{LAYERS}mlp/down/kernel": LoRA(r=3, dora=True)}, _lora(use_dora=True)),
    "pissa": Way({f"{LAYERS}mlp/down/kernel": LoRA(r=2, init="pissa")}, _lora()),
    "ia3": Way(
        {f"{LAYERS}*attention/[kv]/kernel": IA3(), f"{LAYERS}mlp/down/kernel": IA3("input")},
        lambda names: peft.IA3Config(
            target_modules=names, feedforward_modules=[n for n in names if n.split(".")[-1] == names[-1].split(".")[-1]]
        ),
    ),
    "bitfit": Way({"*": BitFit()}, _lora(bias="all")),
    "norms": Way({"*": Norms()}, lambda names: peft.LNTuningConfig(target_modules=names)),
}


def moved(params: Params, trained: Any, seed: int = 3) -> Params:
    """The parameters with what is trained somewhere else, as training would leave it."""
    rng = np.random.default_rng(seed)
    # Added by NumPy, which compiles nothing for each shape.
    own = map_with_path(
        lambda _, x: jnp.asarray(np.asarray(x) + (0.2 * rng.normal(size=x.shape)).astype(np.float32)), trained.of(params)
    )
    return trained.put(params, own)


def ours(model: Multimodal, params: Params, adapt: Mapping[str, Any], beside: tuple[str, ...] = ()) -> tuple[Params, set[str]]:
    """An adapted model as training would leave it, and the paths that are trained."""
    begun = adapted(model, params, adapt, jax.random.key(0))
    trained = trained_of((*trained_patterns(model, adapt), *beside), (), begun)
    return moved(begun, trained), set(leaves_by_path(trained.of(begun)))


def written(model: Multimodal, params: Params, trained: set[str], folder: Path) -> Path:
    """A peft folder of ours."""
    architecture = family_of(model).architecture(model)
    write_adapter(folder, model, architecture, adapter_of(model, architecture, params, trained), "", {})
    return folder


def opened(hf: Any, folder: Path) -> Any:
    """peft's reading of a folder over a copy of the model, in eval mode. It says nothing."""
    with strict():
        return peft.PeftModel.from_pretrained(copy.deepcopy(hf), str(folder)).eval()


def read(model: Multimodal, params: Params, folder: Path) -> tuple[Params, dict[str, Any], tuple[str, ...]]:
    """Our reading of a folder of peft's."""
    return read_adapter(folder, read_config(folder), model, params)


def theirs(hf: Any, way: str, folder: Path, fused: bool = True) -> Any:
    """A model of peft's with random adapters, saved to the folder; without `fused` none on what holds several of ours."""
    names = linear_modules(hf, way, fused)
    conv1d = any(type(hf.get_submodule(name)).__name__ == "Conv1D" for name in names)
    config = WAYS[way].theirs(names)
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = conv1d
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's LN tuning warns of LayerNorm itself
        torch.manual_seed(0)  # peft draws what adapters begin with from it: the same in whatever order tests run
        model = peft.get_peft_model(copy.deepcopy(hf), config)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.2 * torch.randn(p.shape, generator=generator))
        model.eval().save_pretrained(folder)
    return model


def linear_modules(hf: Any, way: str, fused: bool = True) -> list[str]:
    """Full names of what a method is given: linear layers of the stacks, or norms."""
    if way == "norms":
        return [name for name, m in hf.named_modules() if re.search("Norm", type(m).__name__) and hasattr(m, "weight")]
    kinds, found = ("Linear", "Conv1D"), []
    for name, module in hf.named_modules():
        inside = "MultiheadAttention" in type(hf.get_submodule(name.rpartition(".")[0])).__name__
        inside |= hf.config.model_type == "dinov2" and name.endswith(("gate_proj", "up_proj"))  # halves of one tensor of a file
        if type(module).__name__ in kinds and re.search(r"\.\d+\.", name) and not inside:
            found.append(name)
    if way == "dora" or not fused:  # of one A for several kernels of ours there is none
        found = [name for name in found if not name.endswith((".c_attn", ".qkv"))]
    return found


@contextlib.contextmanager
def strict() -> Any:
    """Warnings of peft's are errors; those of transformers about its own past are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Unsupported layer type")  # LN tuning, of every LayerNorm
        yield


def is_trained(path: str) -> bool:
    return match_any([f"*/{name}" for name in TRAINED], path)
