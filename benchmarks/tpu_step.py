"""The shipped SigLIP-B/16 step against the plainest one, both compiled here for a TPU that is not here.

    python benchmarks/tpu_step.py [--topology v5e:4x4] [--batch 128]

The plain side is built from the same modules with everything switched off: layers laid out, no attention kernel, nothing
recomputed, and the contrastive loss on gathered embeddings. Both sides have the same mesh. Needs libtpu (`pip install
'mmjax[tpu]'`) and no TPU; every figure is the compiler's account or a prediction from it, nothing was run.

HBM traffic is read in the optimized programs of one and two layers and extrapolated to twelve (`mmjax.plan.traffic`,
`mmjax.plan.depths`). A Pallas kernel counts with its operands and results, which it reads and writes once (its blocks cover
them), and with the FLOPs of the products in its body (`mmjax.core.flops`). The largest batch is the one at which memory, linear
between the batches compiled, reaches what the compiler gives a program.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # TPUs are for the process that compiles

from mmjax.plan.batches import batch_shapes, with_batch_per_chip
from mmjax.plan.compile import Measured, Worker, measure_cut, worker
from mmjax.plan.depths import map_stacks, plainest
from mmjax.plan.roofline import predict
from mmjax.plan.topology import Topology, parse_topology
from mmjax.train import Experiment
from mmjax.train.config_file import load_config


def main() -> None:
    """Compile both sides at half the batch and at the batch, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--batch", type=int, default=128, help="examples a chip")
    options = parser.parse_args()
    topology = parse_topology(options.topology)
    shipped = load_config("siglip_b16")
    plain = plainest(shipped)
    plain = dataclasses.replace(plain, model=map_stacks(plain.model, lambda stack: {"unroll": True}))
    with worker(topology) as process:
        found = {
            name: compare(process, experiment, topology, options.batch)
            for name, experiment in (("plain", plain), ("mmjax", shipped))
        }
    ours, theirs = found["mmjax"], found["plain"]
    print(f"\npredicted, SigLIP-B/16 on {topology}, {options.batch} examples a chip")
    for figure in theirs:
        print(f"  {figure:28s} plain {theirs[figure]!s:>12s}   mmjax {ours[figure]!s:>12s}")
    less = 1 - ours["hbm_mb_an_example"] / theirs["hbm_mb_an_example"]
    more = ours["largest_batch"] / theirs["largest_batch"]
    print(f"  HBM traffic an example {100 * less:.1f}% lower; largest batch {more:.2f}x")
    print(json.dumps({"topology": str(topology), "batch": options.batch, "hbm_lower": less, "batch_ratio": more, **found}))


def compare(process: Worker, experiment: Experiment, topology: Topology, batch: int) -> dict[str, float | str]:
    """One side's figures, by name."""
    half, full = (measured(process, experiment, topology, n) for n in (batch // 2, batch))
    prediction = predict(full, topology, experiment.steps)
    slope = (full.hbm - half.hbm) / (batch - batch // 2)
    largest = int((topology.chip.usable - full.hbm) / slope + batch)
    return {
        "hbm_mb_an_example": round(sum(full.traffic.values()) / batch / 1e6, 1),
        "hbm_gb_a_step": round(sum(full.traffic.values()) / 1e9, 2),
        "tflop_a_chip": round(full.hardware_flops / topology.chips / 1e12, 2),
        "compute_ms": round(1e3 * prediction.seconds["compute"], 1),
        "hbm_ms": round(1e3 * prediction.seconds["hbm"], 1),
        "bound_by": prediction.bound,
        "memory_gb": round(full.hbm / 1e9, 2),
        "largest_batch": largest,
    }


def measured(process: Worker, experiment: Experiment, topology: Topology, batch: int) -> Measured:
    """What the compiler says at a batch, from programs of one and two layers."""
    sized = with_batch_per_chip(experiment, topology.chips, batch)
    shapes, _ = batch_shapes(sized)
    found, _ = measure_cut(process, sized, shapes, sized.groups()[0])
    print(f"compiled at {batch} a chip in {found.seconds:.0f} s: {found.hbm / 1e9:.2f} GB", flush=True)
    return found


if __name__ == "__main__":
    main()
