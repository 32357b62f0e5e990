"""One training step of mmjax against the same model in PyTorch `transformers`, on the CPU, in one process.

    python benchmarks/train_step.py [--dtype bfloat16]

The model is SigLIP's (two towers and the sigmoid loss): width 384, 6 + 6 layers, 6 heads, images 128 x 128 in patches of 16,
texts of 32 tokens, a vocabulary of 32000, AdamW; parameters are float32, and computing is float32 or bfloat16. A step is the
whole of it: forward, backward, update, and the loss read back as a Python number. The two sides take turns, so that a change in
the machine's mood hits both; each may use as many threads as the other. The peer runs as its users run it: eager, in bfloat16
under autocast, scaled-dot-product attention, the faster of PyTorch's AdamWs. A figure belongs to its processor, which is named:
in bfloat16 it is above all whether its cores multiply that.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both sides build: sizes of the model and of its batch; `dtype` is what they compute in."""

    batch: int = 64
    width: int = 384
    layers: int = 6
    heads: int = 6
    mlp_width: int = 1536
    image: int = 128
    patch: int = 16
    vocabulary: int = 32000
    tokens: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    dtype: str = "float32"

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images [B, H, W, 3] float32 and token ids [B, T] int32, the same for both sides."""
        rng = np.random.default_rng(0)
        image_BHWC = rng.normal(size=(self.batch, self.image, self.image, 3)).astype(np.float32)
        return image_BHWC, rng.integers(1, self.vocabulary, (self.batch, self.tokens)).astype(np.int32)


def siglip_config(setting: Setting) -> dict[str, Any]:
    """What `transformers.SiglipConfig` takes for these sizes."""
    tower = {
        "hidden_size": setting.width,
        "intermediate_size": setting.mlp_width,
        "num_hidden_layers": setting.layers,
        "num_attention_heads": setting.heads,
    }
    text = tower | {
        "vocab_size": setting.vocabulary,
        "max_position_embeddings": setting.tokens,
        "projection_size": setting.width,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = tower | {"image_size": setting.image, "patch_size": setting.patch}
    return {"text_config": text, "vision_config": vision}


def torch_step(setting: Setting) -> Step:
    """A full training step of `transformers.SiglipModel`, randomly initialised; it returns the loss."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(**siglip_config(setting))).train()
    model.set_attn_implementation("sdpa")
    image_BHWC, text_BT = setting.data()
    pixels_BCHW = torch.from_numpy(np.ascontiguousarray(image_BHWC.transpose(0, 3, 1, 2)))
    ids_BT = torch.from_numpy(text_BT.astype(np.int64))

    def backward() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            loss = model(input_ids=ids_BT, pixel_values=pixels_BCHW, return_loss=True).loss
        loss.backward()
        return loss

    backward()
    optimizer = fastest_adamw(model, setting)

    def step() -> float:
        optimizer.zero_grad()
        loss = backward()
        optimizer.step()
        return loss.item()

    return step


def fastest_adamw(model: Any, setting: Setting) -> Any:
    """The faster of PyTorch's AdamWs for a model that has gradients; trying them leaves the parameters as they were."""
    import torch

    options: dict[str, dict[str, Any]] = {"foreach": {"foreach": True}, "fused": {"fused": True}}
    seconds = {}
    for kind, option in options.items():
        trial = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, **option)
        seconds[kind] = min(timed(trial.step) for _ in range(4))
    fastest = min(seconds, key=seconds.__getitem__)
    said = ", ".join(f"{kind} {1e3 * value:.1f} ms" for kind, value in seconds.items())
    print(f"torch AdamW: {said}; taking {fastest}")
    decay = setting.weight_decay
    return torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, weight_decay=decay, **options[fastest])


def jax_step(setting: Setting) -> Step:
    """A full training step of the same model in mmjax; it returns the loss. It is the step that `mmjax train` runs."""
    import jax.numpy as jnp

    from mmjax.models import Multimodal
    from mmjax.models.encoders import TextTransformer, ViT
    from mmjax.models.fusion import Dual
    from mmjax.objectives import Contrastive

    tower: dict[str, Any] = {
        "width": setting.width,
        "depth": setting.layers,
        "heads": setting.heads,
        "mlp_width": setting.mlp_width,
        "activation": "gelu_tanh",
        "unroll": True,
    }
    side = (setting.image, setting.image)
    dual = Dual(
        width=setting.width,
        pool={"image": "attention", "text": "last"},
        project=("text",),
        bias=True,
        heads=setting.heads,
        mlp_width=setting.mlp_width,
        activation="gelu_tanh",
        bias_init=-10.0,
    )
    model = Multimodal(
        encoders={
            "image": ViT(image_size=side, patch=(setting.patch, setting.patch), **tower),
            "text": TextTransformer(vocab_size=setting.vocabulary, max_length=setting.tokens, **tower),
        },
        fusions={"dual": dual},
        dtype=setting.dtype,
    )
    train_step, state = training(model, Contrastive(kind="sigmoid"), setting)
    image_BHWC, text_BT = map(jnp.asarray, setting.data())
    batch = {"image": image_BHWC, "text": text_BT, "index": jnp.arange(setting.batch, dtype=jnp.int32)}

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, {"train": batch})
        return float(metrics["loss"])

    return step


def training(model: Any, objective: Any, setting: Setting, params: Any = None, **adamw: Any) -> tuple[Any, Any]:
    """The jitted step that `mmjax train` runs on one objective, which takes its state over, and the first state.

    Args:
      params: those to start from, taken over as well; None for random ones.
      adamw: fields of AdamW other than the setting's.
    """
    import jax
    import jax.numpy as jnp

    from mmjax.models import param_shapes
    from mmjax.train import AdamW, Task
    from mmjax.train.state import init_state
    from mmjax.train.step import make_step
    from mmjax.train.weighting import Fixed

    tasks, weighting = {"task": Task(objective)}, Fixed()
    optimizer = AdamW(
        learning_rate=setting.learning_rate,
        schedule="constant",
        weight_decay=setting.weight_decay,
        no_decay=(),
        clip_norm=0.0,
        **adamw,
    )
    tx = optimizer.build(param_shapes(model), 1000)

    def first(params: Any) -> Any:
        state = init_state(model, optimizer, 1000, weighting, {"task": 1.0}, jnp.zeros((), jnp.uint32))
        return state if params is None else dataclasses.replace(state, params=params)

    step = make_step(model, tasks, weighting, optimizer, tx, optimizer.rate(1000))
    return jax.jit(step, donate_argnums=0), jax.jit(first, donate_argnums=0)(params)


def timed(fn: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def alternate(sides: dict[str, Step], steps: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each step of each side. The sides take turns, in the warm-up too, whose steps are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warmup + steps):
        for name, step in sides.items():
            seconds[name].append(timed(step))
    return {name: values[warmup:] for name, values in seconds.items()}


def summarise(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and minima; and, with both sides, ratios peer / ours, above 1 where ours is faster.

    `ratio_of_pairs` is the median over the pairs of neighbouring steps: what drifts slowly cancels in it.
    """
    summary: dict[str, Any] = {
        name: {"median_s": statistics.median(values), "min_s": min(values), "steps_s": values}
        for name, values in seconds.items()
    }
    if {"torch", "mmjax"} <= seconds.keys():
        peer, ours = summary["torch"], summary["mmjax"]
        pairs = zip(seconds["torch"], seconds["mmjax"], strict=True)
        summary["ratio_of_medians"] = peer["median_s"] / ours["median_s"]
        summary["ratio_of_minima"] = peer["min_s"] / ours["min_s"]
        summary["ratio_of_pairs"] = statistics.median(theirs / mine for theirs, mine in pairs)
    return summary


def table(summary: dict[str, Any], batch: int) -> str:
    """The summary as a person reads it."""
    lines = [f"{'':8}{'median':>12}{'minimum':>12}{'examples/s':>14}"]
    for name, side in summary.items():
        if isinstance(side, dict):
            median, minimum = side["median_s"], side["min_s"]
            lines.append(f"{name:8}{median:10.3f} s{minimum:10.3f} s{batch / median:14.1f}")
    if "ratio_of_pairs" in summary:
        lines.append(f"{'ratio':8}{summary['ratio_of_medians']:11.3f}x{summary['ratio_of_minima']:11.3f}x")
        lines.append(f"median of {summary['ratio_of_pairs']:.3f}x over pairs of neighbouring steps; above 1, mmjax is faster")
    return "\n".join(lines)


def allow_threads(threads: int) -> int:
    """Keep this process, so both sides, to that many cores; returns how many it has."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return len(cores)


def processor() -> str:
    """What the system calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    if "model name" not in named:
        return platform.processor() or platform.machine()
    family = f"family {named['cpu family']}, model {named['model']}" if "cpu family" in named and "model" in named else ""
    return f"{named['model name']}{f' ({family})' if family else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="counted steps of each side (default: 12)")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each side before counting (default: 3)")
    parser.add_argument("--batch", type=int, default=64, help="examples in a batch (default: 64)")
    parser.add_argument("--threads", type=int, default=2, help="threads that each side may use (default: 2)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="computed in (default: float32)")
    parser.add_argument("--only", choices=("torch", "mmjax"), help="run one side alone")
    args = parser.parse_args()
    if min(args.steps, args.batch, args.threads) < 1 or args.warmup < 0:
        parser.error("--steps, --batch and --threads take 1 or more, --warmup 0 or more")

    # Before either framework is imported: both size their thread pools by the cores that they may use.
    threads = allow_threads(args.threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    import torch

    torch.set_num_threads(threads)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "jax", "jaxlib")}
    print(f"{processor()}; computing in {args.dtype}")
    print(f"{threads} cores; torch: {torch.get_num_threads()} threads, jax: a pool of {threads} threads")
    print(", ".join(f"{name} {version}" for name, version in versions.items()), f"Python {platform.python_version()}", sep=", ")

    setting = Setting(batch=args.batch, dtype=args.dtype)
    builders = {"torch": torch_step, "mmjax": jax_step}
    chosen = [args.only] if args.only else list(builders)
    summary = summarise(alternate({name: builders[name](setting) for name in chosen}, args.steps, args.warmup))
    print(table(summary, args.batch))
    about = {"setting": dataclasses.asdict(setting), "threads": threads, "versions": versions}
    about["processor"] = processor()
    print(json.dumps(summary | about))


if __name__ == "__main__":
    main()
