"""What a few examples of new classes are worth, by method: a table for k = 1, 2, 4, 8 and 16 examples a class.

    python benchmarks/few_shot.py --stamps FOLDER [--folder runs/few_shot_table] [--seeds 3] [--shots 1 2 4 8 16]

Two small towers are trained on most folders of Tux Paint's stamps (the config `stamps`) unless --folder holds them already;
then each method of the config `few_shot` sees k stamps of each of seven folders that are new. A seed chooses the stamps and all
that is drawn in training. A figure is the mean over the classes of the share of their test stamps that are right, so that
chance is one in seven whatever the sizes of the classes; +- is the standard deviation over the seeds. `*`: below zero-shot with
one prompt.
Settings of the methods are those of the config and of `METHODS`, the same for every k and chosen before any was measured.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax.adapt import Prompt
from mmjax.convert.average import average
from mmjax.core.config import leaves, replace
from mmjax.evaluate import Report, TipAdapter, ZeroShot
from mmjax.models.cached import CachedClassifier
from mmjax.models.heads import Classifier
from mmjax.objectives import Classification, Prompted
from mmjax.train import AdamW, Experiment, Log, Task, train
from mmjax.train.config_file import load_config
from mmjax.train.evaluate import evaluate_run
from mmjax.train.finish import run_evaluators
from mmjax.train.run import Run
from mmjax.train.session import set_up

QUIET = Log(every=1000, tensorboard=False, progress=False)
CONTEXT = ("{}.",)  # what CoOp's learned tokens stand before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", default="", help="the unpacked package tuxpaint-stamps-default; installed, it is found")
    parser.add_argument("--folder", type=Path, default=Path("runs/few_shot_table"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    asked = parser.parse_args()
    logging.getLogger("mmjax").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    jax.config.update("jax_compilation_cache_dir", str((asked.folder / "compiled").absolute()))
    began = time.monotonic()
    towers = asked.folder / "stamps"
    if not Run(towers).has_checkpoint():
        train(at(load_config("stamps"), asked.stamps), towers)
        print(f"towers trained in {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    base = dataclasses.replace(at(load_config("few_shot"), asked.stamps), init_from=str(towers), log=QUIET)
    table: dict[str, dict[int, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for seed in range(asked.seeds):
        for shots in asked.shots:
            cell = asked.folder / f"{seed}_{shots}"
            for name, score in measured(few(base, shots, seed), cell, towers):
                table[name][shots].append(score)
                print(f"seed {seed}, k = {shots}: {name} {score:.3f} ({time.monotonic() - began:.0f} s)", flush=True)
    print_table(table, asked.shots, len(base.data["test"].source.only))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes in all")


def at(experiment: Experiment, stamps: str) -> Experiment:
    """The experiment with the stamps in this folder, where one is given."""
    for path in leaves(experiment) if stamps else ():
        if path.endswith("source.path"):
            experiment = put(experiment, path.split("."), stamps)
    return experiment


def put(spec: Any, path: list[str], value: Any) -> Any:
    """The same spec with one leaf replaced."""
    first, *rest = path
    inner = spec[first] if isinstance(spec, Mapping) else getattr(spec, first)
    return replace(spec, first, put(inner, rest, value) if rest else value)


def few(base: Experiment, shots: int, seed: int) -> Experiment:
    """The experiment with other shots."""
    source = dataclasses.replace(base.data["train"].source, shots=shots, seed=seed)
    train = dataclasses.replace(base.data["train"], source=source)
    return dataclasses.replace(base, data={**base.data, "train": train}, seed=seed)


def measured(base: Experiment, cell: Path, towers: Path) -> Iterable[tuple[str, float]]:
    """(method, score) of one choice of shots."""
    templates = base.evaluate["prompted"].templates
    yield from untrained(base, templates)
    for name, (evaluator, change) in METHODS.items():
        folder = cell / name.replace(" ", "_")
        train(change(base), folder)
        yield name, balanced(folder / "predictions.jsonl", evaluator)
    run, mean = cell / "fine-tuning", cell / "wise"
    if not Run(mean).has_checkpoint():
        average([run, towers], mean, (0.5, 0.5))
    found = cell / "wise.jsonl"
    found.unlink(missing_ok=True)
    evaluate_run(mean, predictions=found)
    yield "WiSE-FT, half and half", balanced(found, "prompted")


def untrained(base: Experiment, templates: tuple[str, ...]) -> Iterable[tuple[str, float]]:
    """The methods that train nothing."""
    evaluate = {
        "zero-shot, one prompt": ZeroShot(templates[:1], data="test"),
        "zero-shot, five prompts": ZeroShot(templates, data="test"),
        "Tip-Adapter": TipAdapter(templates, data="test"),
    }
    experiment = dataclasses.replace(base, evaluate=evaluate)
    with set_up(experiment) as session:
        examples: list[dict[str, Any]] = []
        run_evaluators(experiment, session.setup.evaluation(), session.setup.evaluated(session.state), examples)
    for name in evaluate:
        yield name, macro(one for one in examples if one["evaluator"] == name)


def balanced(predictions: Path, evaluator: str) -> float:
    """The score that a file of predictions comes to."""
    examples = map(json.loads, predictions.read_text().splitlines())
    return macro(one for one in examples if one["evaluator"] == evaluator)


def macro(examples: Iterable[Mapping[str, Any]]) -> float:
    """The mean over classes of the share of their examples that are right."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    for one in examples:
        right[one["label"]].append(one["label"] == one["predicted"])
    return statistics.mean(statistics.mean(own) for own in right.values())


def fine_tuned(base: Experiment) -> Experiment:
    return dataclasses.replace(base, evaluate={"prompted": base.evaluate["prompted"]})


def coop(base: Experiment) -> Experiment:
    return dataclasses.replace(
        base,
        tasks={"classes": Task(Prompted(CONTEXT))},
        adapt={"encoders_text/words/table": Prompt(n=4, after=1)},
        optimizer=AdamW(learning_rate=5e-3, warmup_steps=10),
        evaluate={"prompted": ZeroShot(CONTEXT, data="test")},
    )


def probe(base: Experiment) -> Experiment:
    classes = len(base.data["test"].source.only)
    return dataclasses.replace(
        base,
        model=base.model.copy(heads={"classes": Classifier(classes=classes, input="image")}),
        tasks={"classes": Task(Classification())},
        optimizer=AdamW(learning_rate=1e-2, warmup_steps=10, weight_decay=0.05, train=("heads_classes/*",)),
        evaluate={"report": Report(data="test")},
    )


def tip_f(base: Experiment) -> Experiment:
    classes, templates = len(base.data["test"].source.only), base.evaluate["prompted"].templates
    size = classes * base.data["train"].source.shots
    head = CachedClassifier(classes=classes, size=size, width=base.model.fusions["dual"].width, templates=templates)
    return dataclasses.replace(
        base,
        model=base.model.copy(heads={"classes": head}),
        tasks={"classes": Task(Classification())},
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=10, train=("heads_classes/cache_keys",)),
        evaluate={"report": Report(data="test")},
    )


METHODS: dict[str, tuple[str, Callable[[Experiment], Experiment]]] = {
    "linear probe": ("report", probe),
    "Tip-Adapter-F": ("report", tip_f),
    "CoOp": ("prompted", coop),
    "fine-tuning": ("prompted", fine_tuned),
}


def print_table(table: Mapping[str, Mapping[int, list[float]]], shots: list[int], classes: int) -> None:
    """The figures, with a mark where a method is below zero-shot."""
    bar = statistics.mean(score for own in table["zero-shot, one prompt"].values() for score in own)
    print(f"\nchance {1 / classes:.3f}; zero-shot with one prompt {bar:.3f}, {bar * classes:.1f} times chance\n")
    print("| method | " + " | ".join(f"k = {k}" for k in shots) + " |")
    print("|---" * (len(shots) + 1) + "|")
    for name, own in table.items():
        figures = []
        for k in shots:
            mean = statistics.mean(own[k])
            spread = statistics.stdev(own[k]) if len(own[k]) > 1 else 0.0
            figures.append(f"{mean:.3f} +- {spread:.3f}{' *' * (mean < bar)}")
        print(f"| {name} | " + " | ".join(figures) + " |")


if __name__ == "__main__":
    main()
