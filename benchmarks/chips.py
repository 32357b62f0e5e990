"""How the cost of a step grows from 1 to 256 chips at the same examples a chip, by the account of the TPU compiler.

    python benchmarks/chips.py [CONFIG] [--per-chip 128] [--topologies v5e:1x1 v5e:2x2 ...]

Needs libtpu (`pip install 'mmjax[tpu]'`) and no TPU; nothing is run. Collective bytes are what a chip sends, read in the
optimized program (`mmjax.plan`). The exponent p is fitted on the logarithms of bytes and chips, from the second topology on: 0
is a cost that does not grow, 1 one that grows with the chips. A ring over n chips sends 2 (n - 1) / n of what it reduces, so a
cost that is bounded has an exponent just above 0.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # TPUs are for the process that compiles

from mmjax.plan.batches import batch_shapes, with_batch_per_chip
from mmjax.plan.compile import measure, worker
from mmjax.plan.roofline import predict
from mmjax.plan.topology import parse_topology
from mmjax.train.config_file import load_config

FLAT = ["v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16"]


def main() -> None:
    """Compile for each topology, print a row each, and fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="siglip_b16")
    parser.add_argument("--per-chip", type=int, default=128, help="examples a chip")
    parser.add_argument("--topologies", nargs="+", default=FLAT)
    args = parser.parse_args()
    heads = ("chips", "sent MB a chip", "HBM GB", "HBM traffic GB", "compute ms", "traffic ms", "links ms", "examples/s/chip")
    print(
        f"predicted, {args.config}, {args.per_chip} examples a chip\n" + "".join(head.rjust(17) for head in heads), flush=True
    )
    rows = [row(args.config, name, args.per_chip) for name in args.topologies]
    many = [one for one in rows if one["chips"] > 1]
    exponents = {name: exponent(many, name) for name in ("sent_mb", "hbm_gb", "traffic_gb")} if len(many) > 1 else {}
    print("  ".join(f"{name} ~ chips^{power:.3f}" for name, power in exponents.items()))
    print(json.dumps({"config": args.config, "per_chip": args.per_chip, "exponents": exponents, "rows": rows}))


def row(config: str, name: str, per_chip: int) -> dict[str, Any]:
    """One topology's figures, a chip."""
    topology = parse_topology(name)
    sized = with_batch_per_chip(load_config(config), topology.chips, per_chip)
    with worker(topology) as process:
        measured = measure(process, sized, batch_shapes(sized)[0], topology)
    predicted = predict(measured, topology, sized.steps)
    seconds = predicted.seconds
    links = sum(value for resource, value in seconds.items() if resource not in ("compute", "hbm"))
    found = {
        "chips": topology.chips,
        "sent_mb": sum(measured.collectives.values()) / 1e6,
        "hbm_gb": measured.hbm / 1e9,
        "traffic_gb": sum(measured.traffic.values()) / 1e9,
        "compute_ms": 1e3 * seconds["compute"],
        "traffic_ms": 1e3 * seconds["hbm"],
        "links_ms": 1e3 * links,
        "examples_per_second_per_chip": predicted.examples_per_second,
    }
    print("".join(f"{value:17.2f}" for value in found.values()), flush=True)
    return found | {"collectives": dict(measured.collectives)}


def exponent(rows: list[dict[str, Any]], name: str) -> float:
    """p of name ~ chips^p, by least squares on logarithms."""
    return float(np.polyfit(np.log([one["chips"] for one in rows]), np.log([one[name] for one in rows]), 1)[0])


if __name__ == "__main__":
    main()
