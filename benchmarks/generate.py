"""Texts written by mmjax against `transformers.generate` with the same weights, on the CPU in float32, in one process.

    python benchmarks/generate.py [--only gpt2_1 ...]

Cases: a GPT-2 of 12 layers and width 768 at batch 1 and 8, a prompt of 32 tokens; a captioner, BLIP's, of a ViT-S/16 and 6
layers of width 384, at batch 1 and 8. Each writes 128 tokens, greedily, without an end, with the cache of its library. The two
sides take turns, so that a change in the machine's mood hits both, with as many threads. What is compiled is timed apart and
said. Both must write the same tokens: a figure for other tokens would mean nothing.

`read` is the share of this machine's read bandwidth (two threads summing 1 GiB) that one token reads: the weights once and the
live part of the cache. The bandwidth is measured before and after each text anew, for as long as a text takes, since on a
shared machine it changes by half within minutes; given are the median share, the least and the most. `room` (`--only room`) is
the time of a text of 64 slots where the cache has room for 512, over that where it has room for 64.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

NEW, PROMPT, ROUNDS = 128, 32, 5


@dataclasses.dataclass(frozen=True)
class Case:
    """Two functions that write the same tokens [B, new]; `first_s` is the first call of ours, compiling included."""

    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]
    weights: int  # bytes that a token reads
    cached: int  # bytes of one slot of the cache of all rows


def gpt2(batch: int, prompt: int = PROMPT, new: int = NEW) -> Case:
    """A GPT-2 of the first published size with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(attn_implementation="sdpa")
    hf = transformers.GPT2LMHeadModel(config).eval()
    ids = np.random.default_rng(0).integers(5, config.vocab_size, (batch, prompt)).astype(np.int32)
    weights = sum(p.numel() for p in hf.parameters())
    weights -= hf.transformer.wpe.weight.numel()  # of which a token reads one row
    slot = 2 * config.n_layer * config.n_embd * batch
    return _case(hf, ids, {}, new, 4 * weights, 4 * slot)


def captioner(batch: int, new: int = NEW) -> Case:
    """BLIP's captioner with ViT-S/16 at 224 pixels and 6 layers of width 384."""
    import torch
    import transformers

    torch.manual_seed(0)
    tower = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
    text = tower | {"num_hidden_layers": 6, "encoder_hidden_size": 384, "max_position_embeddings": 256}
    config = transformers.BlipConfig(
        text_config=text | {"bos_token_id": 30522, "eos_token_id": 2, "sep_token_id": 102, "pad_token_id": 0},
        vision_config=tower | {"num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
    )
    hf = transformers.BlipForConditionalGeneration(config).eval()
    ids = np.full((batch, 1), 30522, np.int32)
    image = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
    decoder = sum(p.numel() for p in hf.text_decoder.parameters())
    slot = 2 * 6 * 384 * batch
    return _case(hf, ids, {"image": image}, new, 4 * decoder, 4 * slot)


def _case(hf: Any, ids: np.ndarray, inputs: dict[str, np.ndarray], new: int, weights: int, slot: int) -> Case:
    import jax
    import jax.numpy as jnp
    import torch

    import mmjax
    from mmjax.generate import Rules, decode, settings_of

    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder)
        model, params = mmjax.load(folder)
    (name,) = model.decoders
    settings, end = settings_of({"max_new_tokens": new, "min_new_tokens": new}), hf.generation_config.eos_token_id
    end = hf.config.text_config.sep_token_id if inputs else end  # which BLIP takes, whatever else it is told
    write = jax.jit(functools.partial(decode, model, decoder=name, rules=Rules(settings, (end,), 0)))
    batch = {key: jnp.asarray(x) for key, x in inputs.items()}
    given = {"ids_BT": jnp.asarray(ids), "mask_BT": jnp.ones(ids.shape, bool)}
    given_them: dict[str, Any] = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.ones(ids.shape).long()}
    given_them |= {"pad_token_id": 0}
    if inputs:  # BLIP begins by itself, and says how it pads
        given_them = {"pixel_values": torch.tensor(inputs["image"].transpose(0, 3, 1, 2))}

    def ours() -> np.ndarray:
        return np.asarray(write(params, batch=batch, **given).ids)

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            out = hf.generate(**given_them, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        return np.asarray(out)[:, -new:]

    return Case(ours, theirs, weights, slot)


def room(slots: int = 64, roomy: int = 512) -> dict[str, Any]:
    """Seconds of a GPT-2's text that ends at slot `slots`, where the cache has room for as many or for `roomy`, in turns."""
    import jax
    import jax.numpy as jnp
    import transformers

    import mmjax
    from mmjax.generate import Rules, decode, settings_of

    end, last = 7, slots - PROMPT - 1
    with tempfile.TemporaryDirectory() as folder:
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
        model, params = mmjax.load(folder)
    (name,) = model.decoders
    ids = jnp.asarray(np.random.default_rng(0).integers(8, 50000, (1, PROMPT)), jnp.int32)

    def ends(logits_RV: Any, written: Any) -> Any:
        is_end = jnp.arange(logits_RV.shape[1])[None] == end
        return jnp.where(is_end == (written.count == last), logits_RV, -jnp.inf)

    def text(most: int) -> Callable[[], np.ndarray]:
        settings = settings_of({"max_new_tokens": most - PROMPT})
        write = jax.jit(functools.partial(decode, model, decoder=name, rules=Rules(settings, (end,), 0, own=[ends])))
        return lambda: np.asarray(write(params, batch={}, ids_BT=ids, mask_BT=jnp.ones(ids.shape, bool)).lengths)

    small, large = text(slots), text(roomy)
    assert small().tolist() == large().tolist() == [last + 1]
    pairs = [(timed(small)[0], timed(large)[0]) for _ in range(2 * ROUNDS)]
    ratio = statistics.median(b / a for a, b in pairs)
    return {"case": "room", "small_s": min(a for a, _ in pairs), "large_s": min(b for _, b in pairs), "room": round(ratio, 3)}


def bandwidth(x: Any, seconds: float = 1.5) -> float:
    """Bytes a second that two threads read, summing an array again and again for so long.

    A text takes seconds too: the best of a few sums of 30 ms is a burst that no text could hold.
    """
    start, sums = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        x.sum()
        sums += 1
    return sums * x.numel() * 4 / (time.perf_counter() - start)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gave."""
    start = time.perf_counter()
    out = call()
    return time.perf_counter() - start, out


def compare(case: Case) -> dict[str, Any]:
    """Seconds of both sides, in turns, and what ours reads of the bandwidth before each."""
    import torch

    x = torch.ones(1 << 28)
    first, ours = timed(case.ours)
    _, theirs = timed(case.theirs)
    same = float(np.mean(ours == theirs))
    turns = [(bandwidth(x), timed(case.ours)[0], bandwidth(x), timed(case.theirs)[0]) for _ in range(ROUNDS)]
    before, own, after, other = zip(*turns, strict=True)
    speeds = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
    tokens, pairs = ours.size, list(zip(own, other, strict=True))
    whole = (case.weights + case.cached * (PROMPT + NEW / 2)) * ours.shape[1]
    read = [whole / seconds / speed for speed, seconds in zip(speeds, own, strict=True)]
    return {
        "tokens_equal": same,
        "first_call_s": round(first, 2),
        "ours_tokens_s": round(tokens / statistics.median(own), 1),
        "theirs_tokens_s": round(tokens / statistics.median(other), 1),
        "ours_best_s": round(min(own), 3),
        "theirs_best_s": round(min(other), 3),
        "times_theirs": round(statistics.median(b / a for a, b in pairs), 3),
        "read": round(statistics.median(read), 3),
        "read_least_most": [round(min(read), 3), round(max(read), 3)],
        "bandwidth_GB_s": [round(speed / 1e9, 1) for speed in speeds],
    }


CASES: dict[str, Callable[[], Case]] = {
    "gpt2_1": lambda: gpt2(1),
    "gpt2_8": lambda: gpt2(8),
    "captioner_1": lambda: captioner(1),
    "captioner_8": lambda: captioner(8),
}


def main() -> None:
    """Run the cases and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*CASES, "room"], default=[*CASES, "room"])
    for name in parser.parse_args().only:
        if name == "room":
            print(json.dumps(room()), flush=True)
            continue
        print(json.dumps({"case": name, **compare(CASES[name]())}), flush=True)


if __name__ == "__main__":
    main()
