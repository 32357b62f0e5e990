"""One side of a comparison of training steps, in a process that waits to be told when to run: what `gpu.py` starts two of.

    python benchmarks/gpu_steps.py --model siglip|captioner --side torch|mmjax --weights FOLDER [--batch 128] [--eager] [--cpu]

Both sides have the same weights (PyTorch's, written to the folder and converted by `mmjax.load`), batch, loss and AdamW, and
compute in bfloat16 with float32 parameters. SigLIP-B/16 is `transformers.SiglipModel` with `sdpa` attention and the model of
configs/siglip_b16.py; the captioner is BLIP's (ViT-B/16 and 12 layers of text that read the image; `transformers` has no `sdpa`
for it, so its image attention, the largest, is given PyTorch's scaled_dot_product_attention here). The peer is compiled
(`torch.compile`), with autocast and the fused AdamW.

Lines on standard input: `steps N` runs N steps, each with its loss read back; `memory`; the end of the input ends it. Each is
answered by a line `@{...}`; a first one says what the first step gave: the loss and the norm of the whole gradient.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from train_step import Setting, siglip_config, timed, training

B2 = 0.95
SIGLIP = Setting(128, 768, 12, 12, 3072, 224, 16, 32000, 64)
CAPTIONER = Setting(128, 768, 12, 12, 3072, 224, 16, 30524, 40)
TINY = {
    "batch": 3,
    "width": 32,
    "layers": 2,
    "heads": 2,
    "mlp_width": 48,
    "image": 16,
    "patch": 4,
    "vocabulary": 40,
    "tokens": 7,
}
PAD = 0  # as the captioner's config has it

Step = Callable[[], dict[str, float]]


def batch(name: str, setting: Setting) -> dict[str, np.ndarray]:
    """image [B, H, W, 3] float32, text [B, T] int32 and text_mask: all of SigLIP's texts are full, captions end anywhere."""
    image_BHWC, text_BT = setting.data()
    mask_BT = np.ones(text_BT.shape, bool)
    if name == "captioner":
        lengths = np.random.default_rng(1).integers(setting.tokens // 2, setting.tokens + 1, (setting.batch, 1))
        mask_BT = np.arange(setting.tokens)[None] < lengths
    return {"image": image_BHWC, "text": np.where(mask_BT, text_BT, PAD), "text_mask": mask_BT}


def config(name: str, setting: Setting) -> dict[str, Any]:
    """The config.json of the HuggingFace model."""
    made = siglip_config(setting)
    if name == "siglip":
        return {"model_type": "siglip", "architectures": ["SiglipModel"], **made}
    made["text_config"] |= {"encoder_hidden_size": setting.width, "bos_token_id": 1, "sep_token_id": 2, "pad_token_id": PAD}
    made["text_config"].pop("projection_size")
    return {"model_type": "blip", "architectures": ["BlipForConditionalGeneration"], **made}


def peer(name: str, setting: Setting, folder: Path) -> Any:
    """The `transformers` model on the CPU, its weights written to `folder`; whatever else that prints is left out."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {key: value for key, value in config(name, setting).items() if key.endswith("_config")}
    if name == "siglip":
        model = transformers.SiglipModel(transformers.SiglipConfig(**sizes))
        model.set_attn_implementation("sdpa")
        with torch.no_grad():  # where configs/siglip_b16.py starts
            model.logit_scale.fill_(math.log(10.0))
            model.logit_bias.fill_(-10.0)
    else:
        model = transformers.BlipForConditionalGeneration(transformers.BlipConfig(**sizes))
        type(model.vision_model.encoder.layers[0].self_attn).forward = image_attention
    model.save_pretrained(folder)
    return model


def image_attention(self: Any, hidden_states: Any, **kwargs: Any) -> tuple[Any, None]:
    """The forward pass of a `BlipAttention` by PyTorch's scaled_dot_product_attention."""
    from torch.nn import functional

    rows, tokens, width = hidden_states.shape
    qkv = self.qkv(hidden_states).reshape(rows, tokens, 3, self.num_heads, width // self.num_heads)
    mixed = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    return self.projection(mixed.transpose(1, 2).reshape(rows, tokens, width)), None


def torch_side(name: str, setting: Setting, args: argparse.Namespace) -> tuple[Step, Callable[[], int]]:
    """A step of the peer, and its peak memory."""
    import torch

    device = "cpu" if args.cpu else "cuda"
    model = peer(name, setting, args.weights).train().to(device)
    torch.set_float32_matmul_precision("high")
    forward = model if args.eager else torch.compile(model)
    data = batch(name, setting)
    inputs = {
        "pixel_values": torch.from_numpy(np.ascontiguousarray(data["image"].transpose(0, 3, 1, 2))).to(device),
        "input_ids": torch.from_numpy(data["text"].astype(np.int64)).to(device),
    }
    if name == "siglip":
        inputs["return_loss"] = True
    else:
        mask = torch.from_numpy(data["text_mask"]).to(device)
        inputs |= {"attention_mask": mask.long(), "labels": inputs["input_ids"].masked_fill(~mask, -100)}
    decay = {"weight_decay": setting.weight_decay, "betas": (0.9, B2)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, fused=True, **decay)
    first = True

    def step() -> dict[str, float]:
        nonlocal first
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = forward(**inputs).loss
        loss.backward()
        found = {}
        if first:
            norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
            found, first = {"gradient_norm": float(torch.stack(norms).norm())}, False
        optimizer.step()
        return found | {"loss": loss.item()}

    return step, torch.cuda.max_memory_allocated if device == "cuda" else lambda: 0


def mmjax_side(name: str, setting: Setting, args: argparse.Namespace) -> tuple[Step, Callable[[], int]]:
    """A step of ours, and its peak memory. SigLIP recomputes what the shipped config does."""
    import jax
    import jax.numpy as jnp

    from mmjax import load
    from mmjax.convert.huggingface import build_model
    from mmjax.objectives import CausalLM, Contrastive
    from mmjax.parallel.mesh import Mesh
    from mmjax.plan.depths import map_stacks

    jax.set_mesh(Mesh().build(jax.devices()[:1]))
    there = (args.weights / "config.json").is_file()
    model, params = load(args.weights) if there else (build_model(config(name, setting))[1], None)
    model = map_stacks(model, lambda stack: {"remat": args.remat}).copy(dtype="bfloat16")
    objective = Contrastive(kind="sigmoid") if name == "siglip" else CausalLM()
    jitted, state = training(model, objective, setting, params, b2=B2)
    data = {key: jnp.asarray(value) for key, value in batch(name, setting).items()}
    batches = {"train": data | {"index": jnp.arange(setting.batch, dtype=jnp.int32)}}
    compiled = jitted.lower(state, batches).compile()

    def step() -> dict[str, float]:
        nonlocal state
        state, metrics = compiled(state, batches)
        return {"loss": float(metrics["loss"]), "gradient_norm": float(metrics["gradient_norm"])}

    return step, lambda: (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def say(answer: dict[str, Any]) -> None:
    print(f"@{json.dumps(answer)}", flush=True)


def turn(step: Step, count: int) -> dict[str, list[float]]:
    """Seconds and loss of each of some steps."""
    losses: list[float] = []
    return {"seconds": [timed(lambda: losses.append(step()["loss"])) for _ in range(count)], "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("siglip", "captioner"), required=True)
    parser.add_argument("--side", choices=("torch", "mmjax"), required=True)
    parser.add_argument("--weights", type=Path, required=True, help="folder for the weights; the side torch writes it")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--remat", default="cheap", help="what our backward pass recomputes, see `mmjax.nn.stack`")
    parser.add_argument("--eager", action="store_true", help="no torch.compile")
    parser.add_argument("--cpu", action="store_true", help="tiny shapes on the CPU, for a test of this script")
    args = parser.parse_args()
    setting = {"siglip": SIGLIP, "captioner": CAPTIONER}[args.model]
    setting = dataclasses.replace(setting, **(TINY if args.cpu else {"batch": args.batch}))
    begun = time.perf_counter()
    step, memory = (torch_side if args.side == "torch" else mmjax_side)(args.model, setting, args)
    first = step()
    say({"set_up_s": time.perf_counter() - begun, "batch": setting.batch, **first})
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "memory":
            say({"peak_bytes": int(memory())})
        else:
            say(turn(step, int(rest[0])))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
