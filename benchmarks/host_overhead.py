"""What the host costs between steps: the loop of `mmjax train` against its compiled step alone, on one unchanging batch.

    python benchmarks/host_overhead.py [CONFIG] [--rounds 5] [--steps 100]

The two take turns, and each round of the loop is held against the rounds of the step just before and after it, so that a
machine that speeds up or slows down hits both. The loop reads, transforms and places every batch, fetches every step's figures
and writes the due ones; it neither evaluates nor saves inside a round.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax

from mmjax.parallel.mesh import use_mesh
from mmjax.train import Checkpoint, Log, train
from mmjax.train.config_file import load_config
from mmjax.train.metrics import read_lines
from mmjax.train.run import Run
from mmjax.train.setup import set_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="digits")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="steps of a round")
    args = parser.parse_args()
    experiment = dataclasses.replace(
        load_config(args.config),
        evaluate={},
        evaluate_every=0,
        checkpoint=Checkpoint(every=10**9),
        log=Log(every=args.steps, tensorboard=False, progress=False),
        optimizer=dataclasses.replace(load_config(args.config).optimizer, schedule="constant"),
    )
    mesh = experiment.mesh.build()
    alone, loop = [], []  # seconds a step
    with use_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        setup = set_up(experiment, None, mesh, only=experiment.task_data())
        group = experiment.groups()[0]
        step, _ = setup.compile_step(group)
        state = setup.init()
        batches = {name: setup.place(setup.datasets[name].batch(0)) for name in group}

        def step_alone() -> float:
            nonlocal state
            start = time.perf_counter()
            for _ in range(args.steps):
                state, figures = step(state, batches)
            jax.block_until_ready(figures)
            return (time.perf_counter() - start) / args.steps

        for number in range(args.rounds):
            alone.append(step_alone())
            # Two windows of figures: the second has no compilation and no first batch in it.
            train(dataclasses.replace(experiment, steps=2 * args.steps), Path(folder) / str(number))
            loop.append(1 / read_lines(Run(Path(folder) / str(number)).metrics)[-1]["steps_per_second"])
        alone.append(step_alone())
    result = {"step_ms": 1e3 * statistics.median(alone), "loop_ms": 1e3 * statistics.median(loop)}
    result |= {"step_min_ms": 1e3 * min(alone), "loop_min_ms": 1e3 * min(loop)}
    neighbours = [(before + after) / 2 for before, after in itertools.pairwise(alone)]
    result["overhead"] = statistics.median(b / a - 1 for a, b in zip(neighbours, loop, strict=True))
    print(json.dumps({"config": args.config, "rounds": args.rounds, "steps": args.steps, **result}))


if __name__ == "__main__":
    main()
