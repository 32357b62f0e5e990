"""Muon and schedule-free AdamW against AdamW on a shipped config, each tuned by the same budget.

    python benchmarks/optimizers.py digits_finetune --steps 150

Each optimizer has the same number of trials of its learning rate, of the same number of steps, from the same parameters and on
the same batches. The rate of the best accuracy on the validation data (of two, the lower training loss) is trained anew with
other seeds, and only those runs are measured on the test data. Nothing else is tuned: all that the optimizers have in common is
the config's, but for `init_from` and `rates`, because every run starts from nothing. AdamW and Muon are measured with the
config's moving average and without it, each by its own best rate; schedule-free has an average of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import numpy as np

from mmjax.core.random import fold_name
from mmjax.models import init_params
from mmjax.parallel.mesh import Mesh, use_mesh
from mmjax.train import AdamW, Experiment, Muon, ScheduleFree
from mmjax.train.config_file import load_config
from mmjax.train.finish import run_evaluators
from mmjax.train.optimizer import Optimizer
from mmjax.train.run import Run
from mmjax.train.schedule_free import averaged
from mmjax.train.setup import Setup, abstract_state, set_up, task_shapes
from mmjax.train.state import State
from mmjax.train.step import make_step

FACTOR = 3.0  # between the learning rates that are tried
KINDS = {"adamw": AdamW, "muon": Muon, "schedule_free": ScheduleFree}
MIDDLE = {"adamw": 1.0, "muon": 1.0, "schedule_free": 3.0}  # times the config's rate: around it lie the trials
Figures = dict[str, float]


def optimizer_of(own: Optimizer, name: str) -> Optimizer:
    """The optimizer of that name with all that it has in common with the config's own."""
    shared = {f.name: getattr(own, f.name) for f in dataclasses.fields(Optimizer)} | {"rates": {}}
    if name == "schedule_free":
        shared |= {"schedule": "constant", "ema": 0.0}
    return KINDS[name](**shared)


class Bench:
    """What all trials share: data, the evaluators' compiled functions, and the parameters that each seed starts from."""

    def __init__(self, experiment: Experiment, steps: int):
        self.experiment = dataclasses.replace(experiment, steps=steps)
        self.mesh = Mesh(data=1).build(jax.devices()[:1])
        with use_mesh(self.mesh):
            self.setup: Setup = set_up(self.experiment, Run("nowhere"), self.mesh)
        self.evaluation = self.setup.evaluation()
        self._init = jax.jit(functools.partial(init_params, experiment.model))
        self._sets: dict[int, dict[str, Any]] = {}

    def params(self, seed: int) -> Any:
        return self._init(fold_name(jax.random.key(seed), "params"))

    def sets(self, seed: int) -> dict[str, Any]:
        if seed not in self._sets:
            tokenizers = self.setup.tokenizers
            self._sets[seed] = {
                name: self.experiment.data[name].build(tokenizers.get(""), seed, name, tokenizers)
                for name in self.experiment.task_data()
            }
        return self._sets[seed]


class Trial:
    """An optimizer on the experiment: one compiled step for any learning rate, any number of runs."""

    def __init__(self, bench: Bench, optimizer: Optimizer):
        self._bench, self._experiment = bench, dataclasses.replace(bench.experiment, optimizer=optimizer)
        e, group = self._experiment, self._experiment.groups()[0]
        with use_mesh(bench.mesh):
            abstract = abstract_state(e, bench.mesh, task_shapes(e, bench.setup.datasets))
            self._setup = dataclasses.replace(bench.setup, experiment=e, abstract=abstract)
            tasks = self._setup.tasks_of(group)

            def step(state: State, batches: Any, rate: Any) -> Any:
                made = dataclasses.replace(optimizer, learning_rate=rate)
                tx = made.build(state.params, e.steps)
                return make_step(e.model, tasks, e.weighting, made, tx, made.rate(e.steps))(state, batches)

            rate = jax.ShapeDtypeStruct((), np.float32)
            self._step = jax.jit(step, donate_argnums=0).lower(abstract, self._setup.batch_shapes(group), rate).compile()

    def run(self, rate: float, seed: int, data: str) -> dict[str, Figures]:
        """What is measured, "" or "+ema" -> the figures on that data, and the mean training loss of the last steps."""
        bench, e, losses = self._bench, self._experiment, []
        with use_mesh(bench.mesh):
            state, sets = self._start(seed), bench.sets(seed)
            for i in range(e.steps):
                batches = {name: self._setup.place(rows.batch(i)) for name, rows in sets.items()}
                state, figures = self._step(state, batches, np.float32(rate))
                losses.append(figures["loss"])
            evaluators = {name: dataclasses.replace(evaluator, data=data) for name, evaluator in e.evaluate.items()}
            asked = dataclasses.replace(e, evaluate=evaluators)
            kinds = {"": averaged(state.optimizer, state.params)} | ({"+ema": state.ema} if state.ema else {})
            measured = {kind: run_evaluators(asked, bench.evaluation, params) for kind, params in kinds.items()}
        loss = float(np.mean([float(x) for x in losses[-20:]]))
        return {kind: {**figures, "loss": loss} for kind, figures in measured.items()}

    def _start(self, seed: int) -> State:
        e, params = self._experiment, self._bench.params(seed)
        with jax.numpy_dtype_promotion("standard"):
            optimizer = e.optimizer.build(params, e.steps).init(params)
        weights = {name: task.weight for name, task in e.tasks.items()}
        state = State(
            step=np.int32(0),
            params=params,
            optimizer=optimizer,
            weighting=e.weighting.init(tuple(weights), weights),
            ema=jax.tree.map(np.array, params) if e.optimizer.ema else {},
            key=jax.random.key_data(fold_name(jax.random.key(seed), "steps")),
            watch={"mean": np.float32(0), "good": np.int32(0)},
        )
        return jax.tree.map(lambda x, leaf: jax.device_put(np.array(x), leaf.sharding), state, self._setup.abstract)


def score(figures: Figures) -> tuple[float, float]:
    """What is chosen by: the mean of all accuracies, then the loss."""
    found = [value for name, value in figures.items() if name.endswith("/accuracy")]
    return (statistics.mean(found), -figures["loss"]) if np.isfinite(figures["loss"]) else (-1.0, -np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="digits_finetune")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    experiment = dataclasses.replace(load_config(chosen.config), init_from="", init_fresh=())
    begin, bench = time.perf_counter(), Bench(experiment, chosen.steps)
    rows: list[tuple[str, float, list[Figures]]] = []
    for name in KINDS:
        optimizer = optimizer_of(experiment.optimizer, name)
        trial, tried = Trial(bench, optimizer), {}
        for i in range(chosen.trials):
            rate = float(f"{optimizer.learning_rate * MIDDLE[name] * FACTOR ** (i - (chosen.trials - 1) / 2):.2g}")
            tried[rate] = trial.run(rate, experiment.seed, "validation")
            said = ", ".join(f"{kind or 'last'} {score(f)[0]:.4f} (loss {f['loss']:.4f})" for kind, f in tried[rate].items())
            print(f"{name} at {rate:g}: validation {said}; {time.perf_counter() - begin:.0f} s", flush=True)
        for kind in tried[rate]:
            best = max(tried, key=lambda rate: score(tried[rate][kind]))
            tests = [trial.run(best, experiment.seed + 1 + i, "test")[kind] for i in range(chosen.seeds)]
            rows.append((name + kind, best, tests))
    print(f"\n{chosen.config}, {chosen.steps} steps, {chosen.trials} trials each, test data, {chosen.seeds} seeds:\n")
    print("| optimizer | rate | accuracy, mean | accuracy, each | training loss |\n|---|---|---|---|---|")
    for name, rate, tests in rows:
        each = [score(figures)[0] for figures in tests]
        loss = statistics.mean(figures["loss"] for figures in tests)
        print(f"| {name} | {rate:g} | {statistics.mean(each):.4f} | {', '.join(f'{x:.4f}' for x in each)} | {loss:.4f} |")


if __name__ == "__main__":
    main()
