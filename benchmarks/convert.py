"""What an import and an export cost: time and peak memory of mmjax beside `from_pretrained`, on a model of 1 GB.

    python benchmarks/convert.py [--layers 20] [--rounds 3]

A randomly initialised BERT (width 1024) is written once. Then each side works in a process of its own, taking turns: PyTorch
opens the folder with `from_pretrained` and touches every weight (it maps the file, so that nothing is read before); mmjax loads
it into JAX arrays, and writes it back. Peak memory is the largest resident size of the process, its imports included; it counts
the pages of a mapped file that were touched. Time is of the call alone, imports left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTS = "import resource, time, sys, pathlib\n"
PEAK = "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
SIDES = {
    "torch from_pretrained": """
import torch, transformers
torch.set_num_threads(2)
transformers.utils.logging.disable_progress_bar()
start = time.perf_counter()
model = transformers.BertForMaskedLM.from_pretrained(sys.argv[1])
total = sum(float(p.detach().view(-1)[::1024].sum()) for p in model.parameters())
seconds = time.perf_counter() - start
""",
    "mmjax load": """
import jax, mmjax
from mmjax.convert import load
jax.numpy.zeros(1).block_until_ready()
start = time.perf_counter()
model, params = load(sys.argv[1])
jax.block_until_ready(params)
seconds = time.perf_counter() - start
""",
    "mmjax load and save_hf": """
import jax, mmjax, tempfile
from mmjax.convert import load, save_hf
model, params = load(sys.argv[1])
jax.block_until_ready(params)
with tempfile.TemporaryDirectory(dir=pathlib.Path(sys.argv[1]).parent) as folder:
    start = time.perf_counter()
    save_hf(model, params, folder + "/back")
    seconds = time.perf_counter() - start
""",
}
MAKE = """
import sys, transformers
sizes = dict(hidden_size=1024, num_hidden_layers=int(sys.argv[2]), num_attention_heads=16, intermediate_size=4096)
transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).save_pretrained(sys.argv[1])
"""


def run(code: str, *words: str) -> str:
    """The last line that a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(MAKE, f"{folder}/hf", str(args.layers))
        size = (Path(folder) / "hf" / "model.safetensors").stat().st_size
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
        for _ in range(args.rounds):
            for name, code in SIDES.items():
                seconds, peak = json.loads(run(IMPORTS + code + PEAK + "print([seconds, peak])", f"{folder}/hf"))
                found[name].append((seconds, peak))
    print(f"weights: {size / 1e6:,.0f} MB; allowed at the peak: {(1.2 * size + 500e6) / 1e6:,.0f} MB")
    result = {"weights_bytes": size}
    for name, values in found.items():
        seconds, peak = [v[0] for v in values], max(v[1] for v in values)
        result[name] = {"median_s": statistics.median(seconds), "min_s": min(seconds), "peak_bytes": peak}
        print(
            f"{name:24} median {statistics.median(seconds):6.2f} s  minimum {min(seconds):6.2f} s  peak {peak / 1e6:7,.0f} MB"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
