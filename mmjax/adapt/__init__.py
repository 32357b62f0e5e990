"""Adapting a model that stays as it is: what is added beside its parameters, and what of them is trained.

A new method is one file, one line here, one test: a frozen dataclass that says which places it takes and what leaves it adds
(`adapt.method`); what those do to a kernel stands in `nn.adapters`.
"""

from mmjax.adapt.adaptation import adapted, base_of, is_adapter, is_dropout, merged, trained_patterns, wide
from mmjax.adapt.bottleneck import Bottleneck
from mmjax.adapt.existing import BitFit, Norms
from mmjax.adapt.ia3 import IA3
from mmjax.adapt.lora import LoRA
from mmjax.adapt.method import Method
from mmjax.adapt.prefix import Prefix
from mmjax.adapt.prompt import Prompt

METHODS: dict[str, type[Method]] = {
    "lora": LoRA,
    "ia3": IA3,
    "bottleneck": Bottleneck,
    "prompt": Prompt,
    "prefix": Prefix,
    "bitfit": BitFit,
    "norms": Norms,
}

__all__ = [
    "IA3",
    "METHODS",
    "BitFit",
    "Bottleneck",
    "LoRA",
    "Method",
    "Norms",
    "Prefix",
    "Prompt",
    "adapted",
    "base_of",
    "is_adapter",
    "is_dropout",
    "merged",
    "trained_patterns",
    "wide",
]
