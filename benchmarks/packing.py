"""Texts packed into rows, and in buckets, against texts padded one by one: padding, tokens a second, and whether the loss is
the same.

    python benchmarks/packing.py [--stamps DIR] [--language en] [--batch 32] [--max-length 64] [--steps 30] [--rounds 5]
        [--lengths 8 16 32] [--window 16]

The captions are those of the package `tuxpaint-stamps-default` (DIR: where it is, or was unpacked), without their pictures; or,
without it, sentences of random words whose number is log-normal. A causal language model (4 layers of 256, float32) is trained
on all, in turn; a padded batch has as many rows, each of one text, a packed one as many of the same length, one of a bucket as
many of one text each, cut to the smallest of `--lengths` that holds them. Tokens are real ones: special tokens count, padding
does not. Every step is compiled before the clock starts. Then the loss of the texts of one packed batch, and of one of the
shortest bucket, is computed both ways.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data import BPE, Buckets, Data, Manifest, Packed, Stamps
from mmjax.models.decoders.text import TextDecoder
from mmjax.models.forward import BoundForward
from mmjax.models.multimodal import Multimodal, init_params
from mmjax.objectives import CausalLM

VOCABULARY = 2000


def captions(folder: str, language: str) -> list[str]:
    """Of the stamps, or made."""
    if folder:
        return list(Stamps(folder, "all", language=language).build().texts())
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(800)]
    return [" ".join(rng.choice(words, max(1, int(rng.lognormal(2.2, 0.6))))) for _ in range(5000)]


def streams(texts: list[str], batch: int, longest: int, buckets: Buckets) -> dict[str, Any]:
    """The data, padded, packed and in buckets."""
    path = Path(tempfile.mkdtemp()) / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = BPE(VOCABULARY).train(iter(texts))
    padded = Data(Manifest(str(path), "all"), batch_size=batch, max_length=longest)
    packings = {"padded": None, "packed": Packed(), "buckets": buckets}
    return {name: dataclasses.replace(padded, packing=own).build(tokenizer, 0) for name, own in packings.items()}


def model(longest: int) -> Multimodal:
    """A language model."""
    text = TextDecoder(vocab_size=VOCABULARY, max_length=longest, width=256, depth=4, heads=4, context=())
    return Multimodal(encoders={}, decoders={"caption": text}, dtype="float32")


def a_step(spec: Multimodal) -> Any:
    """(params, batch) -> (params, loss), plain gradient descent."""

    def loss(params: Any, batch: Any) -> Any:
        found = CausalLM(context=())(BoundForward(spec, params, batch), batch, jax.random.key(0))
        return found.sum / found.count

    def step(params: Any, batch: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), value

    return jax.jit(step)


def compile_all(step: Any, params: Any, dataset: Any) -> None:
    """Run a step of each shape that may come."""
    for length in dataset.lengths or (0,):
        spec = {key: np.zeros(shape, dtype) for key, (shape, dtype) in dataset.train_spec(length).items()}
        jax.block_until_ready(step(params, spec))


def round_of(step: Any, params: Any, dataset: Any, steps: int, first: int) -> float:
    """Real tokens a second."""
    tokens, began = 0, time.perf_counter()
    with dataset.batches(first) as batches:
        for _ in range(steps):
            batch = next(batches)
            tokens += int(batch["text_mask"].sum())
            params, value = step(params, batch)
        jax.block_until_ready(value)
    return tokens / (time.perf_counter() - began)


def both_losses(spec: Multimodal, params: Any, packed: Any) -> tuple[float, float]:
    """The summed loss of the texts of one packed batch: as they are packed, and each in a row of its own."""
    batch = packed.batch(3)
    rows = []
    for ids, own in zip(batch["text"], batch["text_lengths"], strict=True):
        ends = np.cumsum(own)
        rows += [ids[end - length : end] for end, length in zip(ends, own, strict=True) if length]
    return total(spec, params, batch), total(spec, params, padded(rows, batch["text"].shape[1]))


def bucket_losses(spec: Multimodal, params: Any, dataset: Any) -> tuple[float, float]:
    """The summed loss of the texts of one batch of the shortest bucket that comes: as it is, and padded to the longest."""
    batch = min((dataset.batch(step) for step in range(16)), key=lambda one: one["text"].shape[1])
    rows = [ids[mask] for ids, mask in zip(batch["text"], batch["text_mask"], strict=True)]
    return total(spec, params, batch), total(spec, params, padded(rows, dataset.lengths[-1]))


def padded(rows: list[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """A batch of texts, each in a row of its own."""
    alone = {"text": np.zeros((len(rows), length), np.int32), "text_mask": np.zeros((len(rows), length), bool)}
    for n, row in enumerate(rows):
        alone["text"][n, : len(row)], alone["text_mask"][n, : len(row)] = row, True
    return alone


def total(spec: Multimodal, params: Any, batch: Any) -> float:
    """The summed loss of a batch."""

    def summed(params: Any, given: Any) -> Any:
        return CausalLM(context=())(BoundForward(spec, params, given), given, jax.random.key(0)).sum

    return float(jax.jit(summed)(params, {key: jnp.asarray(x) for key, x in batch.items()}))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--stamps", default="")
    ask.add_argument("--language", default="en")
    ask.add_argument("--batch", type=int, default=32)
    ask.add_argument("--max-length", type=int, default=64)
    ask.add_argument("--steps", type=int, default=30)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32])
    ask.add_argument("--window", type=int, default=16)
    own = ask.parse_args()
    texts = captions(own.stamps, own.language)
    sides = streams(texts, own.batch, own.max_length, Buckets(tuple(own.lengths), own.window))
    spec, step = model(own.max_length), a_step(model(own.max_length))
    params = init_params(spec, jax.random.key(0))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for dataset in sides.values():
        compile_all(step, params, dataset)
    share = []
    for number in range(own.rounds):
        first = number * own.steps
        for name, dataset in sides.items():
            rates[name].append(round_of(step, params, dataset, own.steps, first))
        share.append(1 - sides["padded"].batch(first)["text_mask"].mean())
    told = {name: round(statistics.median(found)) for name, found in rates.items()}
    fill = sides["packed"].fill
    padding = {name: 1 - one.fill.tokens / one.fill.slots for name, one in sides.items() if one.fill.slots}
    print(f"{len(texts):,} texts, rows of {own.max_length} tokens, {own.batch} a batch; buckets of {sides['buckets'].lengths}")
    print(f"padding: {statistics.mean(share):.1%} of a row of one text, {padding['packed']:.2%} of packed rows, ", end="")
    print(f"{padding['buckets']:.1%} in buckets")
    print(f"packed: of {fill.texts:,} texts {fill.waited:,} waited for a later window, and {fill.left_out:,} were left out")
    for name, found in rates.items():
        times = told[name] / told["padded"]
        print(f"{name}: {told[name]:,} tokens/s, {times:.2f}x (median of {own.rounds}; {min(found):,.0f} to {max(found):,.0f})")
    apart = {}
    losses = {"packed": both_losses(spec, params, sides["packed"]), "buckets": bucket_losses(spec, params, sides["buckets"])}
    for name, (one, other) in losses.items():
        apart[name] = abs(one / other - 1)
        print(f"loss of one batch {one:.4f} {name}, {other:.4f} padded: {apart[name]:.1e}")
    print(json.dumps({"padding": padding, "left_out": fill.left_out, **told, "apart": apart}))


if __name__ == "__main__":
    main()
