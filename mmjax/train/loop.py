"""The loop on the host: feed the steps, write figures, evaluate, save, stop. It never waits for the step it just started."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.core.config import to_json
from mmjax.core.errors import UserError
from mmjax.core.trees import count
from mmjax.parallel.mesh import use_mesh
from mmjax.parallel.multihost import is_main, processes, told
from mmjax.train.checkpoint import Checkpoints, load_matching
from mmjax.train.experiment import Experiment
from mmjax.train.finish import at_the_end, check_best, finish, finished, run_evaluators, test_data
from mmjax.train.kept_code import refuse_while_loading
from mmjax.train.local import LocalCheckpoints
from mmjax.train.metrics import open_writer, read_lines
from mmjax.train.profile import Profile
from mmjax.train.run import Run
from mmjax.train.setup import Setup
from mmjax.train.speed import Speed
from mmjax.train.startup import compile_steps, open_run
from mmjax.train.state import State, evaluated
from mmjax.train.stop import stop_requested
from mmjax.train.watchdog import Watchdog

LAG = 2  # steps whose figures may still be on the device


def train(experiment: Experiment, workdir: str | Path, profile: bool = False) -> dict[str, float]:
    """Run an experiment in a folder, from its last checkpoint where it has one.

    Args:
      workdir: the run folder; made when missing.
      profile: write a trace of a few steps to `workdir/profile`.

    Returns:
      The metrics of the finished run, with the best checkpoint: each evaluator on the data it names, those of `validation` on
      the test data where the experiment has it. {} when the run was stopped by a signal. Among several processes all call
      this, and all return the same.

    Raises:
      UserError: a mistake in the experiment or its data, a loss that is not finite, a full disk, a folder that another process
        is training in.
      UnreachableError: storage that does not answer; nothing is lost, and the same call goes on.
    """
    refuse_while_loading()
    run = Run(workdir)
    mesh = experiment.mesh.build()
    done = finished(run, experiment)
    if done is not None:
        if is_main():
            print(f"{run.name} is finished: {done[0]} steps are done; more --steps extend it", file=sys.stderr)
        return done[1]
    with use_mesh(mesh), contextlib.ExitStack() as held:
        notes: list[str] = []
        return _Loop(open_run(experiment, run, mesh, held, notes.append), run, profile, notes).run_all()


class _Loop:
    """One call of `train`: the host's side of a run."""

    def __init__(self, setup: Setup, run: Run, profile: bool, notes: list[str]):
        self.setup, self.experiment, self.run = setup, setup.experiment, run
        self.notes = notes
        self.say: Callable[[str], None] = self.notes.append  # until there is a terminal to say it on
        self.checkpoints = Checkpoints(run.checkpoints, self.experiment.checkpoint, lambda line: self.say(line))
        self.config = to_json(self.experiment)
        self.local = self._local()
        self.evaluation = setup.evaluation()
        self.state, self.step = self._start()
        e = self.experiment
        self.writer = open_writer(run.path, e.log, self.step, e.steps, self.config, run.identity())
        self.say = self.writer.say
        for note in self.notes:
            self.say(note)
        self.profile = Profile(run.path / "profile", self.step if profile else None)
        self.watchdog = Watchdog(self.experiment.log.watchdog)
        self.pending: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()

    def run_all(self) -> dict[str, float]:
        try:
            with stop_requested() as stop_at:
                ended = self._steps(stop_at)
            metrics = self._final() if ended else {}
        except BaseException as error:
            for what, close in self._closings(broken_off=True):
                try:
                    close()
                except Exception as second:  # it must not hide why the run ended
                    error.add_note(f"and then {what}: {second}")
            raise
        for _, close in self._closings(broken_off=False):
            close()
        return metrics

    def _closings(self, broken_off: bool) -> list[tuple[str, Callable[[], None]]]:
        closings = [
            ("ending the watchdog", self.watchdog.close),
            ("ending the profile", self.profile.close),
            ("counting what the data lost", self._say_data_troubles),
            ("closing the metrics", self.writer.close),
        ]
        if not broken_off or processes() == 1:  # else to close is to wait for peers that may be gone
            closings.append(("closing the checkpoints", self.checkpoints.close))
            if self.local is not None:
                closings.append(("closing the local checkpoints", self.local.close))
        return [*closings, ("sending the run", self.run.send)]

    def _local(self) -> LocalCheckpoints | None:
        spec = self.experiment.checkpoint
        if not spec.local:
            return None
        folder = Path(spec.local) / self.run.identity()
        return LocalCheckpoints(folder, self.setup.abstract, self.config, lambda line: self.say(line))

    def _start(self) -> tuple[State, int]:
        """From the newest good checkpoint, or from another run's parameters, or from the seed."""
        saved = max(self.checkpoints.steps(), default=0)
        near = self.local.restore(newer_than=saved) if self.local is not None else None
        if near is not None:
            self.say(f"going on from step {near[1]} in {self.experiment.checkpoint.local}")
            return near
        restored = self.checkpoints.restore(self.setup.abstract)
        if restored is not None:
            self.say(f"going on from step {restored[1]} in {self.run.name}")
            return restored[:2]
        state = self.setup.init()
        if self.experiment.init_from:
            state = self._init_from(state)
        return state, 0

    def _init_from(self, state: State) -> State:
        source = Run(self.experiment.init_from)
        kept = Checkpoints(source.checkpoints, source.experiment().checkpoint, self.say, read_only=True)
        step = kept.best_step()
        if step is None:
            raise UserError(f"init_from={source.name}: the run has no checkpoint")
        params, _ = kept.params(step, self.setup.mesh)
        loaded, new, left = load_matching(state.params, params, self.experiment.init_fresh)
        self.say(f"init_from {source.name} at step {step}: {_sorted_out('loaded', list(loaded))}")
        self.say(f"  {_sorted_out('new', new)}")
        self.say(f"  {_sorted_out('left over', left)}")
        self.run.write_json(
            "init_from.json", {"run": source.name, "step": step, "loaded": list(loaded), "new": new, "left_over": left}
        )
        taken = jax.tree_util.tree_map_with_path(
            lambda path, x: jax.device_put(loaded.get(jax.tree_util.keystr(path, simple=True, separator="/"), x), x.sharding),
            state.params,
        )
        return dataclasses.replace(state, params=taken, ema=jax.tree.map(jax.numpy.copy, taken) if state.ema else {})

    def _steps(self, stop_at: Callable[[int], bool]) -> bool:
        """All that is left to do. False when a signal ended it early."""
        e = self.experiment
        if self.step >= e.steps or self._out_of_patience():
            return True
        groups = e.groups()
        compiled, how = compile_steps(self.setup, groups)
        self.speed = Speed({group: flops for group, (_, flops) in compiled.items()}, jax.devices())
        self.say(
            f"{count(self.state.params):,} parameters, {e.steps - self.step:,} steps on {self.setup.mesh.size} "
            f"{jax.devices()[0].device_kind} device(s); {how}"
        )
        with contextlib.ExitStack() as closing:
            streams = self._streams(groups, closing)
            while self.step < e.steps:
                group = groups[self.step % len(groups)]
                with self.watchdog.watch(f"step {self.step + 1} has waited for a batch of {', '.join(group)}"):
                    batches = {name: self.setup.place(next(streams[name])) for name in group}
                with self.watchdog.watch(f"step {self.step + 1} has hung"), self.profile.step(self.step):
                    self.state, figures = compiled[group][0](self.state, batches)
                    self.step += 1
                    self.pending.append((self.step, figures))
                    self.speed.tick(group, sum(len(b["index"]) for b in batches.values()))
                    self._write_figures(LAG)
                if self._boundary():
                    break
                if stop_at(self.step):
                    if self.step not in self.checkpoints.steps():
                        self._save({}, wait=True)
                    self.checkpoints.wait()
                    self.say(f"stopped by a signal; saved step {self.step}; the same command goes on from there")
                    return False
        self.checkpoints.wait()
        return True

    def _streams(self, groups: tuple[tuple[str, ...], ...], closing: contextlib.ExitStack) -> dict[str, Iterator[Any]]:
        """Each stream from where this step finds it: a stream advances only in the steps that take it."""
        streams = {}
        for name in self.experiment.task_data():
            whole, part = divmod(self.step, len(groups))
            taken = whole * sum(name in group for group in groups) + sum(name in group for group in groups[:part])
            streams[name] = self.setup.batches(name, taken)
            closing.callback(streams[name].close)  # type: ignore[attr-defined]
        return streams

    def _write_figures(self, lag: int) -> None:
        """Read the figures of all but the last `lag` steps; write those that are due; stop at a bad one."""
        while len(self.pending) > lag:
            step, figures = self.pending.popleft()
            due = step % self.experiment.log.every == 0 or step == self.experiment.steps
            read = {name: float(value) for name, value in jax.device_get(figures).items()} if due else {}
            bad = read["bad_step"] if due else float(figures["bad_step"])
            if bad:
                self._bad_step(step, {name: float(value) for name, value in jax.device_get(figures).items()})
            if due:
                read |= self.speed.figures()
                self.writer.write(step, read)
            self.writer.advance(step, read)

    def _bad_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Name the task and the step; stop the run, or say that the step was skipped."""
        broken = [name.removeprefix("loss/") for name, v in figures.items() if name.startswith("loss/") and not np.isfinite(v)]
        if broken:
            what = f"the loss of task {', '.join(broken)} is not finite"
        elif not np.isfinite(figures["gradient_norm"]):
            what = "the gradient is not finite"
        else:
            what = f"the loss jumped to {figures['loss']:.4g}"
        if self.experiment.optimizer.on_bad_step == "skip":
            self.say(f"step {step}: {what}; the step was skipped")
            return
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        last = f"the last good checkpoint is step {kept[-1]}" if kept else "no checkpoint had been saved yet"
        raise UserError(f"step {step}: {what}; {last} (optimizer.on_bad_step=skip goes on)")

    def _boundary(self) -> bool:
        """Evaluate and save where it is due. True when patience has run out."""
        e, step = self.experiment, self.step
        last = step == e.steps
        evaluate = bool(e.evaluate) and e.evaluate_every > 0 and (step % e.evaluate_every == 0 or last)
        metrics: dict[str, float] = {}
        stop = False
        if evaluate:
            self._write_figures(0)
            metrics = self._evaluate(evaluated(self.state), e)
            self.writer.write(step, metrics)
            self.say(f"step {step}: " + _shown(metrics))
            stop = self._out_of_patience()
        if evaluate or last or step % e.checkpoint.every == 0:
            self._save(metrics, wait=last or stop)
        elif self.local is not None and step % e.checkpoint.local_every == 0:
            self._write_figures(0)
            self.local.save(step, self.state)
        if evaluate:
            check_best(e, metrics, step)
        return stop

    def _save(self, metrics: Mapping[str, float], wait: bool) -> None:
        """Save with the metrics measured at this very step, so that the best checkpoint is one that was measured."""
        self._write_figures(0)
        self.run.send()  # before the checkpoint, since it tells whether another process writes this run now
        self.checkpoints.save(self.step, self.state, metrics, self.config, wait)

    def _out_of_patience(self) -> bool:
        """Whether the best value is `patience` evaluations old; read off the written metrics, so a resumed run agrees."""
        c = self.experiment.checkpoint
        if not c.patience:
            return False
        sign = 1.0 if c.mode == "max" else -1.0
        found = [line[c.best] for line in read_lines(self.run.metrics) if c.best in line]
        values = [sign * value if math.isfinite(value) else -math.inf for value in found]
        out = bool(values) and len(values) - 1 - int(np.argmax(values)) >= c.patience
        out = told("patience", out)  # process 0 writes the file, so it alone has surely read all of it
        if out:
            self.say(f"{c.best} has not improved for {c.patience} evaluations: stopping at step {self.step}")
        return out

    def _say_data_troubles(self) -> None:
        """What the data lost on its way to the model: captions cut to length, files that could not be read."""
        for name, dataset in self.setup.datasets.items():
            if dataset.truncated:
                cut, length = dataset.truncated, self.experiment.data[name].max_length
                self.say(f"data.{name}: {cut:,} captions were longer than max_length={length} tokens and were cut")
            if dataset.bad:
                first, reason = next(iter(dataset.bad.items()))
                self.say(
                    f"data.{name}: {len(dataset.bad):,} records could not be read and were replaced, first {first} ({reason})"
                )

    def _evaluate(self, params: Any, experiment: Experiment) -> dict[str, float]:
        return run_evaluators(experiment, self.evaluation, params)

    def _final(self) -> dict[str, float]:
        """The finished run on the test data, with the checkpoint that is kept as the best."""
        step, metrics = None, {}
        if self.experiment.evaluate:
            step = told("the best checkpoint", self.checkpoints.best_step())
            params, _ = self.checkpoints.params(step, self.setup.mesh)
            metrics = self._evaluate(params, at_the_end(self.experiment))
            self.say(f"final, checkpoint {step} on {test_data(self.experiment) or 'validation'}: " + _shown(metrics))
        finish(self.run, self.experiment, self.step, step, metrics)
        return metrics


def _shown(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.count("/") == 1)


def _sorted_out(word: str, paths: list[str]) -> str:
    """ "12 loaded (encoders_image 12)": how many arrays of each part."""
    parts = collections.Counter(path.split("/")[0] for path in paths)
    return f"{len(paths)} {word}" + (f" ({', '.join(f'{part} {n}' for part, n in parts.items())})" if paths else "")
