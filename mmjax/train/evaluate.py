"""A finished run, evaluated again; a config's data, looked at."""

from __future__ import annotations

from pathlib import Path

from mmjax.core.errors import UserError, nearest
from mmjax.data import describe
from mmjax.parallel.mesh import use_mesh
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.experiment import Experiment
from mmjax.train.finish import at_the_end, run_evaluators
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.startup import agree_on_data


def evaluate_run(path: str | Path, data: str | None = None) -> dict[str, float]:
    """A run's evaluators with its best checkpoint, on `data` (default: its test data, where it has any).

    Returns:
      `evaluator/metric` -> value, and `step`, the checkpoint's.

    Raises:
      UserError: no run, no checkpoint, no such data, no evaluator.
    """
    run = Run(path)
    experiment = run.experiment()
    if not experiment.evaluate:
        raise UserError(f"{path}: its experiment has no evaluators (evaluate is empty)")
    if data is not None and data not in experiment.data:
        raise UserError(f"--data {data}: the run has {', '.join(experiment.data)}{nearest(data, experiment.data)}")
    checkpoints = Checkpoints(run.checkpoints, experiment.checkpoint, read_only=True) if run.has_checkpoint() else None
    step = checkpoints.best_step() if checkpoints else None
    if checkpoints is None or step is None:
        raise UserError(f"{path}: the run has no checkpoint yet")
    mesh = experiment.mesh.build()
    with use_mesh(mesh):
        setup = set_up(experiment, run, mesh)
        agree_on_data(setup)
        params, _ = checkpoints.params(step, mesh)
        metrics = run_evaluators(at_the_end(experiment), setup.evaluation(), params, data)
    checkpoints.close()
    return {**metrics, "step": step}


def inspect_data(experiment: Experiment) -> str:
    """What a batch of each training stream really holds, as text."""
    mesh = experiment.mesh.build()
    with use_mesh(mesh):
        setup = set_up(experiment, None, mesh, only=experiment.task_data())
    return "\n\n".join(f"{name}:\n{describe(dataset)}" for name, dataset in setup.datasets.items())
