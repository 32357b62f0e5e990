"""What the tests know of prompts and prefixes beside peft's: classes, and both ways to make one."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from cases import MASK, Made
from families import CASES
from peft_cases import strict

from mmjax.adapt import Prefix, Prompt
from mmjax.convert.peft.virtual import TASKS

N = 3
KINDS = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
FAMILIES = ("bert", "roberta", "gpt2", "llama", "llava", "vilt")


def task_of(name: str) -> str:
    return next((task for end, task in TASKS.items() if name.endswith(end)), "FEATURE_EXTRACTION")


def works(name: str, kind: str) -> bool:
    """Whether peft's own model runs, which was found by trying; `test_peft_has_no_place_for_what_fails_there` tries again."""
    if kind == "prefix":
        return task_of(name) not in ("SEQ_CLS", "TOKEN_CLS") and not name.startswith("Vilt")
    return name != "LlavaModel"


MADE = [(CASES[family], made) for family in FAMILIES for made in CASES[family].models]
PAIRS = [(case, made, kind) for case, made in MADE for kind in KINDS if works(made.name, kind)]


def ways(kind: str, model: Any) -> dict[str, Any]:
    """Our adapt of the text tower."""
    room = next(
        f"{room}_{name}"
        for room in ("decoders", "encoders")
        for name, part in getattr(model, room).items()
        if hasattr(part, "vocab_size")
    )
    return {f"{room}/*": {"prompt": Prompt(n=N, deviation=0.5), "prefix": Prefix(n=N, deviation=0.5)}[kind]}


def theirs(hf: Any, kind: str, folder: Path, loud: float = 0.5) -> Any:
    """peft's own over a copy of the model, in eval mode, somewhere else than where it began; saved to the folder."""
    with strict():
        torch.manual_seed(0)
        model = peft.get_peft_model(
            copy.deepcopy(hf), KINDS[kind](task_type=task_of(type(hf).__name__), num_virtual_tokens=N)
        ).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.mul_(loud).add_(0.1 * torch.randn(p.shape, generator=generator))
        model.save_pretrained(folder)
    return model


def batch_of(case: Any, hf: Any) -> dict[str, np.ndarray]:
    """A padded batch; of a causal model that classifies whole texts, since its class looks for the last word where it is given
    ids, and where it is given embeddings takes the last place."""
    batch, name = dict(case.batch(hf)), type(hf).__name__
    if task_of(name) in ("FEATURE_EXTRACTION", "CAUSAL_LM"):
        batch.pop("text_segments", None)  # which peft leaves out there, and says so
    if name in ("GPT2ForSequenceClassification", "LlamaForSequenceClassification"):
        batch["text_mask"] = np.ones_like(MASK)
    return batch


def answers_of(case: Any, made: Made, own: Any, hf: Any, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """What peft's model answers, of the real tokens where it answers a token."""
    with strict():
        found = case.theirs(made, Named(own, hf), batch)
    length = batch["text"].shape[1]

    def real(x: Any) -> Any:
        return x[:, N:] if x.ndim == 3 and x.shape[1] == length + N else x

    return {name: real(x) for name, x in found.items()}


@dataclasses.dataclass(frozen=True)
class Named:
    """A model of peft's with the arguments and the config of its base."""

    own: Any
    base: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def __call__(self, **arguments: Any) -> Any:
        return self.own(**arguments)


@dataclasses.dataclass(frozen=True)
class Real:
    """A case whose own answers are those of the real tokens."""

    case: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.case, name)

    def ours(self, model: Any, params: Any, batch: Any, names: Any) -> dict[str, Any]:
        length = batch["text"].shape[1]
        found = self.case.ours(model, params, batch, names)
        return {name: x[:, N:] if x.ndim == 3 and x.shape[1] == length + N else x for name, x in found.items()}
