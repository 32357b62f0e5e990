"""Do digits' four objectives help each other? Each trained alone against all together, and the ways to weigh them.

    python benchmarks/multitask.py [--seeds 3] [--steps 500] [--weightings]

Every run has the same model, data and number of steps; a run alone spends less computing on a step. Figures are of the test
fifth with the last checkpoint, mean over seeds: prompted accuracy (what the contrastive task is for) and the perplexity of
captioning and of masked language modelling. "-" where the task was not trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from mmjax.evaluate import Perplexity
from mmjax.train import Checkpoint, Experiment, Log, train
from mmjax.train.config_file import load_config
from mmjax.train.weighting import WEIGHTINGS

FIGURES = {
    "contrastive": ("prompted/accuracy", "retrieval/mean_recall"),
    "caption": ("caption/perplexity",),
    "masked_lm": ("masked_lm/perplexity",),
}


def variant(base: Experiment, tasks: list[str], steps: int, seed: int, weighting: str = "fixed") -> Experiment:
    """`base` with some of its tasks, measured on each."""
    kept = {name: base.tasks[name] for name in tasks}
    evaluate: dict[str, Any] = dict(base.evaluate) if "contrastive" in kept else {}
    evaluate |= {name: Perplexity(kept[name].objective) for name in ("caption", "masked_lm") if name in kept}
    if "matching" in kept and "contrastive" not in kept:
        raise ValueError("matching draws its hard negatives with the contrastive space")
    return dataclasses.replace(
        base,
        tasks=kept,
        steps=steps,
        seed=seed,
        evaluate=evaluate,
        evaluate_every=0,
        weighting=WEIGHTINGS[weighting](),
        checkpoint=Checkpoint(every=steps),
        log=Log(every=100, tensorboard=False, progress=False),
    )


def measure(name: str, tasks: list[str], args: argparse.Namespace, weighting: str = "fixed") -> dict[str, float]:
    """Means over seeds."""
    base, runs = load_config("digits"), []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(train(variant(base, tasks, args.steps, seed, weighting), Path(folder) / "run"))
    figures = [figure for names in FIGURES.values() for figure in names]
    means = {figure: statistics.mean(run[figure] for run in runs) for figure in figures if figure in runs[0]}
    print(f"{name:34}" + "".join(f"{means[f]:14.4f}" if f in means else f"{'-':>14}" for f in figures), flush=True)
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--weightings", action="store_true", help="also every weighting, on all tasks")
    args = parser.parse_args()
    every = list(load_config("digits").tasks)
    print(
        f"{'':34}"
        + "".join(f"{figure.split('/')[0] + ' ' + figure.split('/')[1][:4]:>14}" for n in FIGURES.values() for figure in n)
    )
    results = {"all together": measure("all together", every, args)}
    for tasks in (["contrastive"], ["contrastive", "matching"], ["caption"], ["masked_lm"]):
        name = " + ".join(tasks)
        results[name] = measure(name, tasks, args)
    for weighting in sorted(set(WEIGHTINGS) - {"fixed"}) if args.weightings else ():
        results[weighting] = measure(f"all together, {weighting}", every, args, weighting)
    print(json.dumps({"seeds": args.seeds, "steps": args.steps, **results}))


if __name__ == "__main__":
    main()
