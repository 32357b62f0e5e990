"""Every kernel of `mmjax.nn.attend` on this machine against attention written out in float64, in values and in gradients.

    python benchmarks/gpu_attention.py [--tiny]

An error is the largest difference over the largest number of the exact result; a row shows the worst of the output and of the
gradients of q, k and v. Bounds: what rounding does, not what was seen. A result in bfloat16 is off by half a unit in the last
place, 2^-9 of itself, and the weights that multiply the values by as much again; gradients pass through two products more. A
kernel may be off by 2^-6 of the largest number, or by three times what the plain form in bfloat16 is off on the same inputs.
The plain form is held to 2^-6 in bfloat16, to 2^-8 in float32 with products of TF32 (2^-11 each), and to 1e-5 in float32.
Prints one JSON object: its rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.nn.attend import attend, choose
from mmjax.parallel.mesh import Mesh, platform, use_mesh

BFLOAT16, TF32, FLOAT32, TIMES = 2**-6, 2**-8, 1e-5, 3.0


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of attention: T queries, S keys, H heads over G heads of keys, K wide.

    Attributes:
      mask: `none`; `ones`, all keys are real; `right`, texts padded at their ends; `any`, keys masked here and there; `blind`,
        padded texts of which one has no token.
      segments: two texts in a row, cut at another place in each.
    """

    name: str
    tokens: int
    attended: int
    heads: int = 12
    kv_heads: int = 12
    width: int = 64
    batch: int = 4
    mask: str = "none"
    causal: bool = False
    segments: bool = False

    def inputs(self) -> dict[str, Any]:
        """Arrays by name: q, k, v, upstream in float32, mask and ids."""
        draw = np.random.default_rng(0)
        shapes = {"q": (self.tokens, self.heads), "k": (self.attended, self.kv_heads), "v": (self.attended, self.kv_heads)}
        found: dict[str, Any] = {n: draw.normal(size=(self.batch, *s, self.width)) for n, s in shapes.items()}
        found["upstream"] = draw.normal(size=found["q"].shape)
        found = {name: np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for name, x in found.items()}
        mask = np.ones((self.batch, self.attended), bool)
        if self.mask in ("right", "blind"):
            mask = np.arange(self.attended)[None] < draw.integers(self.attended // 2, self.attended + 1, (self.batch, 1))
        if self.mask == "any":
            mask = draw.random((self.batch, self.attended)) < 0.7
        if self.mask == "blind":
            mask[0] = False
        cuts = np.arange(1, self.batch + 1)[:, None] / (self.batch + 1)
        ids = tuple((np.arange(n)[None] >= cuts * n).astype(np.int32) for n in (self.tokens, self.attended))
        return found | {"mask": mask, "ids": ids}


CASES = [
    Case("image", 196, 196),
    Case("image, a mask of ones", 196, 196, mask="ones"),
    Case("image with a class token", 197, 197, mask="right"),
    Case("text", 64, 64, mask="right"),
    Case("text, one without a token", 64, 64, mask="blind"),
    Case("caption", 40, 40, mask="right", causal=True),
    Case("caption, odd", 33, 33, mask="right", causal=True),
    Case("caption, one without a token", 40, 40, mask="blind", causal=True),
    Case("caption reads an image", 33, 197, mask="right"),
    Case("the last 16 of 80, causal", 16, 80, causal=True),
    Case("more causal queries than keys", 48, 32, causal=True),
    Case("two texts in a row", 128, 128, segments=True),
    Case("two texts in a row, causal", 129, 129, segments=True, causal=True),
    Case("few heads of keys", 256, 256, kv_heads=4, mask="any"),
    Case("wide heads", 256, 256, heads=4, kv_heads=4, width=128, causal=True),
    Case("narrow heads", 16, 16, heads=4, kv_heads=4, width=16, mask="right"),
    Case("long", 1024, 1024, heads=4, kv_heads=4, batch=2, mask="right"),
    Case("one query", 1, 196, mask="right"),
]


def tiny(case: Case) -> Case:
    """The same call on a few tokens, for a CPU that interprets kernels; odd lengths stay odd."""
    return dataclasses.replace(
        case,
        tokens=min(case.tokens, 6 + case.tokens % 2),
        attended=min(case.attended, 8 + case.attended % 2),
        heads=2,
        kv_heads=1,
    )


def exact(case: Case, x: dict[str, Any]) -> list[np.ndarray]:
    """Output and gradients of q, k, v in float64 (Vaswani 2017, eq. 1). A query that sees nothing is the mean of all values."""
    times = case.heads // case.kv_heads
    q, k, v, upstream = (x[name].astype(np.float64).transpose(0, 2, 1, 3) for name in ("q", "k", "v", "upstream"))
    k, v = (np.repeat(each, times, axis=1) for each in (k, v))
    seen = np.broadcast_to(x["mask"][:, None, None, :], (case.batch, 1, case.tokens, case.attended)).copy()
    if case.segments:
        seen &= (x["ids"][0][:, :, None] == x["ids"][1][:, None, :])[:, None]
    if case.causal:
        seen &= np.tril(np.ones((case.tokens, case.attended), bool), case.attended - case.tokens)
    scale = case.width**-0.5
    logits = np.where(seen, q @ k.swapaxes(2, 3) * scale, -1e300)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    through = upstream @ v.swapaxes(2, 3)
    d_logits = np.where(seen, weights * (through - (weights * through).sum(-1, keepdims=True)), 0.0) * scale
    d_k, d_v = (
        each.reshape(case.batch, case.kv_heads, times, case.attended, case.width).sum(2)
        for each in (d_logits.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ upstream)
    )
    return [each.transpose(0, 2, 1, 3) for each in (weights @ v, d_logits @ k, d_k, d_v)]


def run(case: Case, x: dict[str, Any], kind: str, dtype: Any, precision: str) -> list[np.ndarray]:
    """The same by one kind of attention."""
    mask = None if case.mask == "none" else jnp.asarray(x["mask"])
    ids = tuple(map(jnp.asarray, x["ids"])) if case.segments else None

    @jax.jit
    def both(q: Any, k: Any, v: Any, upstream: Any, mask: Any, ids: Any) -> Any:
        out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, mask, ids, case.causal, kind), q, k, v)
        return (out, *vjp(upstream))

    with jax.default_matmul_precision(precision):
        results = both(*(jnp.asarray(x[name], dtype) for name in ("q", "k", "v", "upstream")), mask, ids)
    return [np.asarray(each.astype(jnp.float32), np.float64) for each in results]


def error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The worst of output and gradients; infinite where something is not a number."""
    worst = max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9)) for a, b in zip(found, expected, strict=True))
    return worst if np.isfinite(worst) else float("inf")


def rows(case: Case) -> list[dict[str, Any]]:
    """What each kind that is possible here is off by, beside its bound."""
    x = case.inputs()
    expected = exact(case, x)

    def off(kind: str, dtype: Any, precision: str = "default") -> float:
        return error(run(case, x, kind, dtype, precision), expected)

    plain = off("plain", jnp.bfloat16)
    found = [
        ("plain float32, exact products", off("plain", jnp.float32, "highest"), FLOAT32),
        ("plain float32", off("plain", jnp.float32), TF32 if platform() == "gpu" else FLOAT32),
        ("plain bfloat16", plain, BFLOAT16),
    ]
    for kind in {"gpu": ("cudnn",), "tpu": ("fused", "splash")}.get(platform(), ("fused", "splash")):
        if possible(case, kind):
            found.append((f"{kind} bfloat16", off(kind, jnp.bfloat16), max(BFLOAT16, TIMES * plain)))
    auto = choose("auto", x["q"].shape, x["k"].shape, jnp.bfloat16, case.segments)
    about = {"case": case.name, "auto": auto}
    return [about | {"kind": name, "error": value, "bound": bound, "within": value <= bound} for name, value, bound in found]


def possible(case: Case, kind: str) -> bool:
    """Whether these shapes can have this kernel."""
    shapes = (case.batch, case.tokens, case.heads, case.width), (case.batch, case.attended, case.kv_heads, case.width)
    try:
        choose(kind, *shapes, jnp.bfloat16, case.segments)
    except ValueError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a few small cases, for a test of this script")
    args = parser.parse_args()
    cases = [tiny(case) for case in CASES if case.name in ("text, one without a token", "caption, odd")] if args.tiny else CASES
    with use_mesh(Mesh().build(jax.devices()[:1])):
        print(json.dumps([row for case in cases for row in rows(case)]))


if __name__ == "__main__":
    main()
