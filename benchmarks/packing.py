"""Texts packed into rows against texts padded one by one: padding, tokens a second, and whether the loss is the same.

    python benchmarks/packing.py [--stamps DIR] [--language en] [--batch 32] [--max-length 64] [--steps 30] [--rounds 5]

The captions are those of the package `tuxpaint-stamps-default` (DIR: where it is, or was unpacked), without their pictures; or,
without it, sentences of random words whose number is log-normal. A causal language model (4 layers of 256, float32) is trained
on both, alternating; a padded batch has as many rows, each of one text, and a packed one as many of the same length. Tokens are
real ones: special tokens count, padding does not. Then the loss of the texts of one packed batch is computed both ways.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data import BPE, Data, Manifest, Packed, Stamps
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


def streams(texts: list[str], batch: int, longest: int) -> tuple[Any, Any]:
    """The data, padded and packed."""
    path = Path(tempfile.mkdtemp()) / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = BPE(VOCABULARY).train(iter(texts))
    padded = Data(Manifest(str(path), "all"), batch_size=batch, max_length=longest)
    packed = Data(Manifest(str(path), "all"), batch_size=batch, max_length=longest, packing=Packed())
    return padded.build(tokenizer, 0), packed.build(tokenizer, 0)


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
    alone = {"text": np.zeros((len(rows), batch["text"].shape[1]), np.int32)}
    alone["text_mask"] = np.zeros(alone["text"].shape, bool)
    for n, row in enumerate(rows):
        alone["text"][n, : len(row)], alone["text_mask"][n, : len(row)] = row, True

    def total(params: Any, given: Any) -> Any:
        return CausalLM(context=())(BoundForward(spec, params, given), given, jax.random.key(0)).sum

    given = ({key: jnp.asarray(x) for key, x in one.items()} for one in (batch, alone))
    first, second = (float(jax.jit(total)(params, one)) for one in given)
    return first, second


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--stamps", default="")
    ask.add_argument("--language", default="en")
    ask.add_argument("--batch", type=int, default=32)
    ask.add_argument("--max-length", type=int, default=64)
    ask.add_argument("--steps", type=int, default=30)
    ask.add_argument("--rounds", type=int, default=5)
    own = ask.parse_args()
    texts = captions(own.stamps, own.language)
    padded, packed = streams(texts, own.batch, own.max_length)
    spec, step = model(own.max_length), a_step(model(own.max_length))
    params = init_params(spec, jax.random.key(0))
    for dataset in (padded, packed):  # compiled
        round_of(step, params, dataset, 1, 0)
    rates: dict[str, list[float]] = {"padded": [], "packed": []}
    packed.fill, share = type(packed.fill)(), []
    for number in range(own.rounds):
        first = number * own.steps
        rates["padded"].append(round_of(step, params, padded, own.steps, first))
        rates["packed"].append(round_of(step, params, packed, own.steps, first))
        share.append(1 - padded.batch(first)["text_mask"].mean())
    fill, told = packed.fill, {name: round(statistics.median(own)) for name, own in rates.items()}
    one, other = both_losses(spec, params, packed)
    print(f"{len(texts):,} texts, rows of {own.max_length} tokens, {own.batch} a batch")
    print(f"padding: {statistics.mean(share):.1%} of a row of one text, {1 - fill.tokens / fill.slots:.2%} of packed rows")
    print(f"of {fill.texts:,} texts {fill.waited:,} waited for a later window, and {fill.left_out:,} were left out")
    for name, found in rates.items():
        print(f"{name}: {told[name]:,} tokens/s (median of {own.rounds}; {min(found):,.0f} to {max(found):,.0f})")
    apart, faster = abs(one / other - 1), told["packed"] / told["padded"]
    print(f"{faster:.2f}x; loss of one batch {one:.4f} packed, {other:.4f} padded: {apart:.1e}")
    print(json.dumps({"padding": 1 - fill.tokens / fill.slots, "left_out": fill.left_out, **told, "apart": apart}))


if __name__ == "__main__":
    main()
