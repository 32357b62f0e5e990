"""A step of LoRA (r = 8, queries and values) of BERT-base and ViT-B/16: ours, peft's, and ours with all parameters trained.

    [BATCH=8] python benchmarks/adapt.py [--only bert] [--steps 7]

float32 on the CPU. Each side is a process of its own, so that its memory is its own, and they take turns, step by step; each
may use both cores. A step is all of it: forward, backward, AdamW, and the loss read back. `peak` is the most memory that a
process held (VmHWM) while it stepped, its libraries and its copy of the base included: peft's has PyTorch in it, ours JAX.
`above_base` leaves out what it held before the first step. The base is the same random one on all sides, without dropout, and
so is the first loss. Ours recompute norms, activations and attention weights (`remat="dots"`), which is the faster on a CPU.
Needs peft; about eight minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

BATCH, TOKENS, CLASSES = int(os.environ.get("BATCH", "16")), 128, 2
SIDES = ("mmjax", "peft", "mmjax, all trained")


def build(name: str) -> Any:
    """The HuggingFace model, random."""
    import torch
    import transformers

    torch.manual_seed(0)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES}
    if name == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**off))
    return transformers.ViTForImageClassification(transformers.ViTConfig(**off))


def batch_of(name: str) -> dict[str, np.ndarray]:
    """Ids [B, T] or pixels [B, 224, 224, 3], and labels [B]."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    if name == "bert":
        return {"text": rng.integers(5, 30000, (BATCH, TOKENS)).astype(np.int32), "label": label}
    return {"image": rng.normal(size=(BATCH, 224, 224, 3)).astype(np.float32), "label": label}


def ours(name: str, folder: str, whole: bool) -> Any:
    """A function that takes one step of ours and gives its loss."""
    import jax
    import jax.numpy as jnp

    import mmjax
    from mmjax.adapt import LoRA, adapted, trained_patterns
    from mmjax.models.multimodal import param_shapes
    from mmjax.objectives import Classification
    from mmjax.train import AdamW, Task
    from mmjax.train.state import init_state
    from mmjax.train.step import make_step
    from mmjax.train.weighting import Fixed

    model, params = mmjax.load(folder)
    # Norms, activations and attention weights are computed again: less to hold, and so less to move, than saving them.
    encoders = {room: part.copy(remat="dots") for room, part in model.encoders.items()}
    model = model.copy(encoders=encoders)
    adapt: dict[str, Any] = {} if whole else {"encoders_*/attention/[qv]/kernel": LoRA(r=8)}
    train = () if whole else (*trained_patterns(model, adapt), "heads_*")
    optimizer = AdamW(learning_rate=1e-4, schedule="constant", weight_decay=0.01, no_decay=(), clip_norm=0.0, train=train)
    weighting, tasks = Fixed(), {"task": Task(Classification())}
    params = adapted(model, params, adapt, jax.random.key(0))

    def first(params: Any) -> Any:
        state = init_state(model, optimizer, 1000, weighting, {"task": 1.0}, jnp.zeros((), jnp.uint32), adapt=adapt)
        return dataclasses.replace(state, params=params)

    shapes = jax.eval_shape(
        lambda: adapted(model, jax.tree.map(lambda s: jnp.zeros(s.shape), param_shapes(model)), adapt, key())
    )
    tx = optimizer.build(shapes, 1000)
    step = jax.jit(make_step(model, tasks, weighting, optimizer, tx, optimizer.rate(1000)), donate_argnums=0)
    state = jax.jit(first, donate_argnums=0)(params)
    batch = {key: jnp.asarray(x) for key, x in batch_of(name).items()} | {"index": jnp.arange(BATCH, dtype=jnp.int32)}

    def one() -> float:
        nonlocal state
        state, metrics = step(state, {"train": batch})
        return float(metrics["loss"])

    return one


def key() -> Any:
    """Any random key."""
    import jax

    return jax.random.key(0)


def theirs(name: str, folder: str) -> Any:
    """A function that takes one step of peft's and gives its loss."""
    import peft
    import torch
    import transformers

    kind = transformers.BertForSequenceClassification if name == "bert" else transformers.ViTForImageClassification
    model = kind.from_pretrained(folder)
    targets = ["query", "value"] if name == "bert" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets, modules_to_save=["classifier"])
    model = peft.get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "bert":  # the pooler is part of our head
        trained += list(model.base_model.model.bert.pooler.parameters())
        for p in trained:
            p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.01, fused=True)
    batch = batch_of(name)
    given = {"labels": torch.tensor(batch["label"]).long()}
    if name == "bert":
        given["input_ids"] = torch.tensor(batch["text"]).long()
    else:
        given["pixel_values"] = torch.tensor(batch["image"].transpose(0, 3, 1, 2).copy())

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**given).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    return one


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def worker(name: str, side: str, folder: str) -> None:
    """Take a step for each line that comes in, and say how long it took."""
    step = theirs(name, folder) if side == "peft" else ours(name, folder, side != "mmjax")
    before, out = memory("VmRSS"), sys.stdout
    print(json.dumps({"loss": step()}), file=out, flush=True)
    step()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compiling left unused is no part of a step
    Path("/proc/self/clear_refs").write_text("5")  # the most memory is counted anew
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(json.dumps({"s": time.perf_counter() - start, "peak": memory("VmHWM"), "before": before}), file=out, flush=True)


def compare(name: str, steps: int) -> dict[str, Any]:
    """Seconds and bytes of all sides."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        build(name).save_pretrained(folder)
        running = {}
        for side in SIDES:
            words = [sys.executable, __file__, "--worker", name, side, folder]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            running[side] = subprocess.Popen(words, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, **pipes)
            found[side].append(json.loads(running[side].stdout.readline()))  # compiled before the next one is
        for _ in range(steps):
            for side, process in running.items():
                process.stdin.write("step\n")
                process.stdin.flush()
                found[side].append(json.loads(process.stdout.readline()))
        for process in running.values():
            process.stdin.close()
            process.wait()
    losses = [own[0]["loss"] for own in found.values()]
    assert max(losses) - min(losses) < 1e-4, losses
    seconds = {side: [one["s"] for one in own[1:]] for side, own in found.items()}
    mine, peer, whole = (seconds[side] for side in SIDES)
    peaks = {side: own[-1]["peak"] for side, own in found.items()}
    return {
        "model": name,
        "batch": BATCH,
        "median_s": {side: round(statistics.median(own), 3) for side, own in seconds.items()},
        "least_s": {side: round(min(own), 3) for side, own in seconds.items()},
        "peak_MiB": {side: round(peak / 2**20) for side, peak in peaks.items()},
        "above_base_MiB": {side: round((own[-1]["peak"] - own[-1]["before"]) / 2**20) for side, own in found.items()},
        "times_peft": round(statistics.median(b / a for a, b in zip(mine, peer, strict=True)), 3),
        "of_all_trained": round(statistics.median(a / b for a, b in zip(mine, whole, strict=True)), 3),
        "peak_of_all_trained": round(peaks["mmjax"] / peaks["mmjax, all trained"], 3),
    }


def main() -> None:
    """One JSON object a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=["bert", "vit"], default=["bert", "vit"])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.worker:
        worker(*own.worker)
        return
    for name in own.only:
        print(json.dumps(compare(name, own.steps)), flush=True)


if __name__ == "__main__":
    main()
