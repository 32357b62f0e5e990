"""The shipped SigLIP-B/16 step against the plainest one, both compiled here for a TPU that is not here.

    python benchmarks/tpu_step.py [--topology v5e:4x4] [--batch 128]

The plain side is built from the same modules with everything switched off: layers laid out, no attention kernel, nothing
recomputed, and the contrastive loss on gathered embeddings. Ours comes twice, as shipped and with `remat="lean"`, which trades
FLOPs for a larger batch. All have the same mesh. Needs libtpu (`pip install 'mmjax[tpu]'`), no TPU, and about 25 minutes on
two cores; every figure is the compiler's account or a prediction from it, nothing was run.

HBM traffic is read in the optimized program (`mmjax.plan.traffic`), a loop's body times its trips; that of the plain side,
whose layers are laid out, in programs of one and two layers, extrapolated to twelve (`mmjax.plan.depths`). A Pallas kernel
counts with its operands and results, which it reads and writes once (its blocks cover them), and with the FLOPs of the products
in its body (`mmjax.core.flops`). The largest batch is the largest multiple of 16 that the compiler takes at full depth; near
the limit it recomputes and reorders by itself, on the plain side as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # TPUs are for the process that compiles

from mmjax.plan.batches import batch_shapes, with_batch_per_chip
from mmjax.plan.compile import Worker, measure, measure_cut, worker
from mmjax.plan.depths import laid_out, map_stacks, plainest
from mmjax.plan.roofline import predict
from mmjax.plan.topology import Topology, parse_topology
from mmjax.train import Experiment
from mmjax.train.config_file import load_config

STEP = 16  # examples a chip between the batches that are tried


def main() -> None:
    """Compile every side at the batch, find the largest that each takes, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--batch", type=int, default=128, help="examples a chip")
    options = parser.parse_args()
    topology = parse_topology(options.topology)
    shipped = load_config("siglip_b16")
    sides = {
        "plain": changed(plainest(shipped), unroll=True),
        "mmjax": shipped,
        "mmjax lean": changed(shipped, remat="lean"),
    }
    with worker(topology) as process:
        found = {name: compare(process, side, topology, options.batch) for name, side in sides.items()}
    print(f"\npredicted, SigLIP-B/16 on {topology}, {options.batch} examples a chip")
    print(" " * 20 + "".join(name.rjust(14) for name in found))
    for figure in found["plain"]:
        print(f"{figure:20}" + "".join(str(side[figure]).rjust(14) for side in found.values()))
    plain = found["plain"]
    lower = {name: 1 - side["hbm_mb_an_example"] / plain["hbm_mb_an_example"] for name, side in found.items()}
    times = {name: side["largest_batch"] / plain["largest_batch"] for name, side in found.items()}
    print("HBM traffic lower by" + "".join(f"{value:14.1%}" for value in lower.values()))
    print("batch, times plain's" + "".join(f"{value:14.2f}" for value in times.values()))
    print(json.dumps({"topology": str(topology), "batch": options.batch, "hbm_lower": lower, "batch_times": times, **found}))


def changed(experiment: Experiment, **fields: Any) -> Experiment:
    """With fields of every stack set."""
    return dataclasses.replace(experiment, model=map_stacks(experiment.model, lambda stack: fields))


def compare(process: Worker, experiment: Experiment, topology: Topology, batch: int) -> dict[str, Any]:
    """One side's figures, by name."""
    sized = with_batch_per_chip(experiment, topology.chips, batch)
    shapes, _ = batch_shapes(sized)
    if laid_out(sized.model):
        measured = measure_cut(process, sized, shapes, sized.groups()[0])
    else:
        measured = measure(process, sized, shapes, topology)
    prediction = predict(measured, topology, experiment.steps)
    largest, taken = largest_batch(process, experiment, topology)
    return {
        "hbm_mb_an_example": round(sum(measured.traffic.values()) / batch / 1e6, 1),
        "hbm_gb_a_step": round(sum(measured.traffic.values()) / 1e9, 2),
        "tflop_a_chip": round(measured.hardware_flops / topology.chips / 1e12, 2),
        "compute_ms": round(1e3 * prediction.seconds["compute"], 1),
        "hbm_ms": round(1e3 * prediction.seconds["hbm"], 1),
        "bound_by": prediction.bound,
        "largest_batch": largest,
        "memory_gb_there": round(taken / 1e9, 2),
    }


def largest_batch(process: Worker, experiment: Experiment, topology: Topology) -> tuple[int, float]:
    """The largest multiple of `STEP` a chip that compiles, and its bytes a chip.

    A program that does not fit is refused in seconds and one that fits takes minutes, so this comes from above.
    """
    batch, refused = 1024, 0
    while True:
        used = compiled_bytes(process, experiment, topology, batch)
        print(f"{batch} a chip: {used / 1e9:.2f} GB", flush=True)
        if used <= topology.chip.usable:
            assert refused == batch + STEP, f"{batch} fits and {batch + STEP} was not tried"
            return batch, used
        refused = batch
        over = used / topology.chip.usable
        batch = batch - STEP if over < 1.3 else round(batch / over**0.5) // STEP * STEP


def compiled_bytes(process: Worker, experiment: Experiment, topology: Topology, batch: int) -> float:
    """Bytes a chip of the whole program, or those that it would need."""
    sized = with_batch_per_chip(experiment, topology.chips, batch)
    reply = process.ask(sized, batch_shapes(sized)[0], sized.groups()[0], ["memory"])
    return float(reply.get("exceeds") or sum(reply["memory"].values()))


if __name__ == "__main__":
    main()
