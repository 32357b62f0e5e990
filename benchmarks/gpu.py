"""Is mmjax right and fast on this NVIDIA card? One command, under ten minutes.

    pip install -e '.[gpu]' && python benchmarks/gpu.py

Four parts, each with its time; `--parts` takes some of them:

- digits: 40 steps of configs/digits.py on the card beside the same on the CPU in float32, run meanwhile.
- attention: every kernel against float64, values and gradients (bounds: `gpu_attention.py`).
- siglip, captioner: a training step in bfloat16 beside the same model in PyTorch `transformers`, compiled; the same weights,
  batch, loss and AdamW (`gpu_steps.py`). The two live in processes of their own that take turns, a few steps each, the first of
  which is not counted; nor is compiling. Memory is the most that each framework had allocated.

The bands of digits are of each step's loss, relative to the CPU's. Measured on a CPU over 40 steps: two ways of compiling
(XLA's passes on and off) differ by 2e-7 in float32 and 4e-4 in bfloat16, and bfloat16 differs from float32 by 8e-4 and 6e-4
(seeds 0 and 1); that grows to 7e-3 within 50 steps and 2e-2 within 60, so 40 it is. A card sums in yet another order. Exact
float32 is held to 1e-4; bfloat16, and float32 with products of TF32 (whose operands are rounded less), to 5e-3. The two sides
of a step must agree in the first loss to 1%, in the norm of the first gradient to 3%, and in the loss after all steps to 5%
(seen on a CPU, tiny: 0.13%, 0.23%, 0.6%).

Prints tables and, on the last line, one JSON object. Exit status: 0; 1 and one line if something failed or is outside its
bound; 2 and one line for a mistake, for instance no GPU and no `--cpu`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from gpu_processes import Child, ChildError, device_env, driver, probe, start
from train_step import summarise, table

PARTS = ("digits", "attention", "siglip", "captioner")
FLOAT32_BAND, HALF_BAND = 1e-4, 5e-3
FIRST_LOSS, FIRST_GRADIENT, LAST_LOSS = 0.01, 0.03, 0.05
BLOCK = 5  # steps of a side's turn, of which the first is not counted

Report = tuple[dict[str, Any], list[str]]  # figures of a part, and what is outside its bound


def digits(args: argparse.Namespace, about: dict[str, Any]) -> Report:
    """The card's losses against the CPU's."""
    extra = ["--steps", "4" if args.cpu else "40", *["--tiny"] * args.cpu]
    half = "bfloat16" if args.cpu else "auto"
    bands = {f"{half}:default": HALF_BAND}
    if not args.cpu:  # there, exact float32 is the reference itself
        bands = {"float32:highest": FLOAT32_BAND, "float32:default": HALF_BAND, **bands}
    with (
        start("gpu_digits.py", ["--variants", "float32:highest", *extra], {"JAX_PLATFORMS": "cpu"}) as reference,
        start("gpu_digits.py", ["--variants", *bands, *extra], device_env(args.cpu)) as device,
    ):
        found, expected = device.result(), reference.result()["float32:highest"]
    result: dict[str, Any] = {}
    wrong: list[str] = []
    print(f"{'':24}{'first loss':>12}{'last loss':>12}{'off by':>10}{'band':>9}")
    print(f"{'CPU float32':24}{expected[0]:12.5f}{expected[-1]:12.5f}")
    for name, band in bands.items():
        apart_by = [abs(a - b) / abs(b) for a, b in zip(found[name], expected, strict=True)]
        off = max(apart_by) if all(map(math.isfinite, apart_by)) else math.inf
        within = off <= band
        print(f"{name:24}{found[name][0]:12.5f}{found[name][-1]:12.5f}{off:10.1e}{band:9.0e}{'' if within else '  OUTSIDE'}")
        result[name] = {"off": off, "band": band, "losses": found[name]}
        wrong += [] if within else [f"digits {name} is off by {off:.1e}, its band is {band:.0e}"]
    return {"cpu_float32": expected, **result}, wrong


def attention(args: argparse.Namespace, about: dict[str, Any]) -> Report:
    """Kernels against float64."""
    with start("gpu_attention.py", ["--tiny"] * args.cpu, device_env(args.cpu)) as child:
        rows = child.result()
    wrong, kinds = [], list(dict.fromkeys(row["kind"] for row in rows))
    print("largest error / bound: " + "; ".join(kinds) + "; what auto takes in bfloat16")
    for case in dict.fromkeys(row["case"] for row in rows):
        own = {row["kind"]: row for row in rows if row["case"] == case}
        cells = [
            f"{own[k]['error']:.1e}/{own[k]['bound']:.0e}{'' if own[k]['within'] else '!'}" if k in own else "-" for k in kinds
        ]
        print(f"{case:32}" + "".join(f"{cell:>17}" for cell in cells) + f"  {next(iter(own.values()))['auto']}")
        off = [row for row in own.values() if not row["within"]]
        wrong += [f"attention, {case}, {row['kind']}: {row['error']:.1e}, bound {row['bound']:.0e}" for row in off]
    return {"rows": rows}, wrong


def steps(name: str) -> Callable[[argparse.Namespace, dict[str, Any]], Report]:
    """The comparison of one model's step."""

    def compare(args: argparse.Namespace, about: dict[str, Any]) -> Report:
        why = peerless(args, about)
        if why:
            print(f"{why}: ours is measured alone")
        sides = ["mmjax"] if why else ["torch", "mmjax"]
        with tempfile.TemporaryDirectory() as folder:
            words = ["--model", name, "--weights", folder, "--batch", str(args.batch or batch_that_fits(about))]
            words += ["--cpu"] * args.cpu + ["--eager"] * (args.eager or args.cpu)
            children: dict[str, Child] = {}
            try:
                for side in sides:  # PyTorch first: it writes the weights. One after the other: both measure kernels to choose
                    children[side] = start("gpu_steps.py", [*words, "--side", side], device_env(args.cpu), lines=True)
                    children[side].first = children[side].answer()
                return measured(name, children, args.rounds)
            finally:
                for child in children.values():
                    child.close()

    return compare


def peerless(args: argparse.Namespace, about: dict[str, Any]) -> str:
    """Why there is no peer; "" where there is one."""
    if not about["versions"]["torch"]:
        return "PyTorch is not installed"
    return "" if args.cpu or about["torch_cuda"] else f"PyTorch {about['versions']['torch']} here has no CUDA device"


def measured(name: str, children: dict[str, Child], rounds: int) -> Report:
    """Turns of both sides; what they took, and whether they agree."""
    seconds: dict[str, list[float]] = {side: [] for side in children}
    last: dict[str, float] = {}
    for _ in range(rounds):
        for side, child in children.items():
            turn = child.ask(f"steps {BLOCK}")
            seconds[side] += turn["seconds"][1:]
            last[side] = turn["losses"][-1]
    summary = summarise(seconds)
    first = {side: child.first for side, child in children.items()}
    batch = first["mmjax"]["batch"]
    print(table(summary, batch))
    for side, child in children.items():
        summary[side] |= {"examples_per_second": batch / statistics.median(seconds[side]), "last_loss": last[side]}
        summary[side] |= {**first[side], **child.ask("memory")}
        memory = f"{summary[side]['peak_bytes'] / 1e9:7.2f} GB" if summary[side]["peak_bytes"] else "unknown"
        loss = (
            f"loss {first[side]['loss']:.4f} -> {last[side]:.4f}, norm of the first gradient {first[side]['gradient_norm']:.4f}"
        )
        print(f"{side:8}peak memory {memory}; {loss}; set up in {first[side]['set_up_s']:.0f} s")
    return {"batch": batch, **summary}, apart(name, first, last)


def apart(name: str, first: dict[str, dict[str, float]], last: dict[str, float]) -> list[str]:
    """Where the two sides do not agree."""
    if "torch" not in first:
        return []
    checks = [
        ("first losses", first["mmjax"]["loss"], first["torch"]["loss"], FIRST_LOSS),
        ("norms of the first gradient", first["mmjax"]["gradient_norm"], first["torch"]["gradient_norm"], FIRST_GRADIENT),
        ("losses after all steps", last["mmjax"], last["torch"], LAST_LOSS),
    ]
    return [
        f"{name}: {what} {ours:.5g} and PyTorch's {theirs:.5g} are more than {bound:.0%} apart"
        for what, ours, theirs, bound in checks
        if not abs(ours - theirs) <= bound * abs(theirs)
    ]


def batch_that_fits(about: dict[str, Any]) -> int:
    """Examples in a batch of which both sides fit on the card together: by estimate 0.25 GB an example, and 8 GB."""
    return next((size for size in (128, 64, 32) if 0.25 * size + 8 < 0.8 * about["memory_gb"]), 16)


RUN = {"digits": digits, "attention": attention, "siglip": steps("siglip"), "captioner": steps("captioner")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to run (default: all)")
    parser.add_argument("--batch", type=int, default=0, help="examples in a batch of siglip and captioner (default: by memory)")
    parser.add_argument("--rounds", type=int, default=6, help=f"turns of {BLOCK} steps of each side (default: 6)")
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    parser.add_argument("--cpu", action="store_true", help="tiny shapes on the CPU: a test of this script, not of a card")
    args = parser.parse_args()
    if args.batch < 0 or args.rounds < 1:
        parser.error("--rounds takes 1 or more, --batch 1 or more (0: by memory)")
    begun = time.perf_counter()
    try:
        about = probe(device_env(args.cpu)) | driver()
    except ChildError as error:
        print(f"JAX does not start here: {error}", file=sys.stderr)
        return 1
    if about["platform"] != "gpu" and not args.cpu:
        seen = f"JAX {about['versions']['jax']} sees no GPU here, only {about['platform']}"
        print(f"{seen}: install mmjax[gpu] and NVIDIA's driver, unset JAX_PLATFORMS, or try --cpu", file=sys.stderr)
        return 2
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in about["versions"].items())
    print(f"{about['device']}, driver {about['driver'] or 'unknown'}; {versions}", flush=True)
    result: dict[str, Any] = {**about, "tiny": args.cpu, "seconds": {}}
    wrong: list[str] = []
    for part in args.parts:
        print(f"\n{part}", flush=True)
        since = time.perf_counter()
        try:
            result[part], outside = RUN[part](args, about)
        except ChildError as error:
            result[part], outside = {"error": str(error)}, [f"{part} failed: {error}"]
        wrong += outside
        result["seconds"][part] = time.perf_counter() - since
        print(f"{part} took {result['seconds'][part]:.0f} s", flush=True)
    result |= {"outside": wrong, "total_s": time.perf_counter() - begun}
    print(f"\n{result['total_s']:.0f} s in all; {'something is wrong' if wrong else 'everything is within its bounds'}")
    if wrong:
        print("; ".join(wrong), file=sys.stderr)
    print(json.dumps(json.loads(json.dumps(result), parse_constant=str)))  # NaN is no JSON
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
