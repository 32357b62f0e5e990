"""The losses of `digits` step by step, on the backend of this process: what `gpu.py` runs on the card and on the CPU.

    python benchmarks/gpu_digits.py --variants float32:highest auto:default [--steps 40] [--seed 0]

A variant is a compute dtype and the precision of float32 matrix products (by default a GPU rounds their operands to TF32).
Prints one JSON object: variant -> losses.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

import jax

from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.plan.depths import map_stacks
from mmjax.train import Checkpoint, Experiment
from mmjax.train.config_file import load_config
from mmjax.train.setup import set_up


def losses(experiment: Experiment, steps: int) -> list[float]:
    """The loss of each of the first steps, on one device."""
    mesh = Mesh().build(jax.devices()[:1])
    with use_mesh(mesh):
        setup = set_up(experiment, None, mesh, only=experiment.task_data())
        group = experiment.groups()[0]
        step, _ = setup.compile_step(group)
        state, found = setup.init(), []
        for number in range(steps):
            state, figures = step(state, {name: setup.place(setup.datasets[name].batch(number)) for name in group})
            found.append(float(figures["loss"]))
    return found


def variant(name: str, seed: int, tiny: bool) -> Experiment:
    """`digits` in a compute dtype; a tiny one is of one layer, 16 wide, and has one of the four tasks."""
    made = load_config("digits")
    nothing = {"evaluate": {}, "evaluate_every": 0, "checkpoint": Checkpoint()}
    made = dataclasses.replace(made, model=made.model.copy(dtype=name.split(":")[0]), seed=seed, **nothing)
    if not tiny:
        return made
    model = map_stacks(made.model, lambda stack: {"depth": 1, "width": 16, "heads": 2})
    encoders = {"image": model.encoders["image"]}
    model = model.copy(augment={}, heads={}, fusions={}, encoders=encoders)
    data = {"train": dataclasses.replace(made.data["train"], batch_size=8)}
    return dataclasses.replace(made, model=model, data=data, tasks={"caption": made.tasks["caption"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", required=True, help="dtype:precision, for instance auto:default")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for a test of this script")
    args = parser.parse_args()
    found = {}
    for name in args.variants:
        begun = time.perf_counter()
        with jax.default_matmul_precision(name.split(":")[1]):
            found[name] = losses(variant(name, args.seed, args.tiny), args.steps)
        found[f"{name} seconds"] = time.perf_counter() - begun
    print(json.dumps(found))


if __name__ == "__main__":
    main()
