"""The loop on the host: feed the steps, call the hooks, stop. It never waits for the step it just started."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from mmjax.core.trees import count
from mmjax.parallel.mesh import use_mesh
from mmjax.parallel.multihost import is_main, told
from mmjax.train.experiment import Experiment
from mmjax.train.feed import Feed
from mmjax.train.finish import at_the_end, finish, finished, run_evaluators, shown, test_data
from mmjax.train.hooks.hook import Hook
from mmjax.train.hooks.patience import stop_if_out
from mmjax.train.hooks.start import start_hooks
from mmjax.train.kept_code import refuse_while_loading
from mmjax.train.run import Run
from mmjax.train.setup import Kind, Setup
from mmjax.train.startup import Step, compile_steps, open_run
from mmjax.train.stop import Stop, stop_requested
from mmjax.train.teachers import Foreign, no_foreign
from mmjax.train.training import Training
from mmjax.train.watchdog import Watchdog

Closing = tuple[str, Callable[[], None]]  # what it is called, what does it


def train(
    experiment: Experiment,
    workdir: str | Path,
    profile: bool = False,
    look: Callable[[Setup], list[str]] = lambda setup: [],
    foreign: Foreign = no_foreign,
) -> dict[str, float]:
    """Run an experiment in a folder, from its last checkpoint where it has one.

    Args:
      workdir: the run folder; made when missing.
      profile: write a trace of a few steps to `workdir/profile`.
      look: called with what is about to be trained; the lines it gives are said before the first step. The command line gives
        `mmjax.convert.export.obstacle`, which says why a model from HuggingFace will not go back.
      foreign: knows teachers that are no runs; the command line gives `mmjax.convert.teacher`, which opens HuggingFace folders.

    Returns:
      The metrics of the finished run, with the best checkpoint: each evaluator on the data it names, those of `validation` on
      the test data where the experiment has it. {} when the run was stopped by a signal. Among several processes all call
      this, and all return the same.

    Raises:
      UserError: a mistake in the experiment or its data, a loss that is not finite, a full disk, a folder that another process
        is training in.
      UnreachableError: storage that does not answer; nothing is lost, and the same call goes on.
    """
    began = time.monotonic()
    refuse_while_loading()
    run = Run(workdir)
    experiment = run.continued(experiment)
    mesh = experiment.mesh.build()
    done = finished(run, experiment)
    if done is not None:
        if is_main():
            print(f"{run.name} is finished: {done[0]} steps are done; more --steps extend it", file=sys.stderr)
        return done[1]
    with use_mesh(mesh), contextlib.ExitStack() as held:
        notes: list[str] = []
        setup = open_run(experiment, run, mesh, held, notes.append, foreign)
        notes += look(setup)
        return _run_all(Training(setup, run, notes, began), profile)


def _run_all(training: Training, profile: bool) -> dict[str, float]:
    hooks: dict[str, Hook] = {}

    def closings(broken_off: bool) -> Iterable[Closing]:
        """The hooks' in the opposite of their order, then those of what they all use."""
        for name, hook in reversed(hooks.items()):
            yield f"closing {name}", functools.partial(hook.close, broken_off)
        yield from training.closings(broken_off)

    try:
        with stop_requested() as stop:
            ended = _steps(training, hooks, stop, profile)
        metrics = _final(training) if ended else {}
    except BaseException as error:
        _close(closings(broken_off=True), error)
        raise
    in_closing = _close(closings(broken_off=False))
    if in_closing is not None:
        raise in_closing
    return metrics


def _close(closings: Iterable[Closing], error: BaseException | None = None) -> BaseException | None:
    """Close all, whatever some of them raise: that must not hide why the run ended. Returns the first error there was."""
    for what, close in closings:
        try:
            close()
        except Exception as second:
            if error is None:
                error = second
            else:
                error.add_note(f"and then {what}: {second}")
    return error


def _steps(training: Training, hooks: dict[str, Hook], stop: Stop, profile: bool) -> bool:
    """All that is left to do. False when it was interrupted.

    Args:
      hooks: where they are put as they are started, by what they are called.
    """
    if not training.last:
        stop_if_out(training)
    if training.last or training.stopping:
        return True
    e, setup = training.experiment, training.setup
    compiled, how = compile_steps(setup, e.groups())
    saving = start_hooks(training, hooks, {kind: flops for kind, (_, flops) in compiled.items()}, profile)
    total, own = count(setup.abstract.params), count(setup.trained_shapes())
    training.say(
        f"{total:,} parameters, {f'{own:,} of them trained, ' * (own < total)}{e.steps - training.step:,} steps on "
        f"{setup.mesh.size} {jax.devices()[0].device_kind} device(s); {how}"
    )
    interrupted = False
    with contextlib.closing(Feed(setup, training.step)) as feed, contextlib.closing(Watchdog(e.log.watchdog)) as watchdog:
        while not (training.last or training.stopping or interrupted):
            _step(training, hooks, feed, watchdog, compiled)
            if training.interrupted:
                stop.ask()
            interrupted = not training.stopping and stop(training.step)
    saving.settle(training)
    if interrupted:
        why = training.interrupted or "by a signal"
        training.say(f"stopped {why}; saved step {training.step}; the same command goes on from there")
    return not interrupted


def _step(training: Training, hooks: dict[str, Hook], feed: Feed, watchdog: Watchdog, compiled: dict[Kind, Step]) -> None:
    """One step, and what is due between it and the next."""
    group, step = feed.group, training.step + 1
    with watchdog.watch(f"step {step} has waited for a batch of {', '.join(group)}"):
        batches = feed.take()
    with watchdog.watch(f"step {step} has hung"):
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            kind = training.setup.kind_of(batches)
            training.take(compiled[kind][0], kind, batches)
        for hook in hooks.values():
            hook.after_step(step, training)
    for hook in hooks.values():
        hook.at_boundary(step, training)


def _final(training: Training) -> dict[str, float]:
    """The finished run on the test data, with the checkpoint that is kept as the best."""
    e, step, metrics = training.experiment, None, {}
    examples: list[dict[str, Any]] = []
    if e.evaluate:
        step = told("the best checkpoint", training.checkpoints.best_step())
        params, _ = training.checkpoints.params(step, training.setup.mesh)
        metrics = run_evaluators(at_the_end(e), training.evaluation, params, examples)
        training.say(f"final, checkpoint {step} on {test_data(e) or 'validation'}: " + shown(metrics))
    finish(training.run, e, training.step, step, metrics, examples)
    return metrics
