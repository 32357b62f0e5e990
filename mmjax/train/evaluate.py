"""A run, evaluated again, also on other data and other machines; a config's data, looked at."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax.core.config import differences, to_json
from mmjax.core.errors import UserError, nearest
from mmjax.core.files import write_whole
from mmjax.core.flags import pairs
from mmjax.core.strict_json import lines
from mmjax.core.trees import leaves_by_path
from mmjax.data import Data, Dataset, Folder, Tokenizer
from mmjax.data.inspect import Looked, look
from mmjax.evaluate import Report
from mmjax.evaluate.evaluation import data_of
from mmjax.models import Multimodal, param_shapes
from mmjax.parallel.mesh import batch_ways, use_mesh
from mmjax.parallel.multihost import agree, is_main
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.config_file import apply_flags
from mmjax.train.experiment import Checkpoint, Experiment
from mmjax.train.finish import asked_on, at_the_end, data_troubles, run_evaluators
from mmjax.train.run import Run
from mmjax.train.setup import set_up
from mmjax.train.sources import Sources
from mmjax.train.startup import agree_on_data
from mmjax.train.teachers import Foreign, no_foreign
from mmjax.train.validate import validated

READ = ("data", "evaluate", "mesh", "model", "test_data")  # what evaluation reads of an experiment

logger = logging.getLogger("mmjax")


def evaluate_run(
    path: str | Path, data: str | None = None, flags: Sequence[str] = (), predictions: str | Path | None = None
) -> dict[str, float]:
    """A run's evaluators with its best checkpoint, on `data` (default: its test data, where it has any).

    Args:
      flags: `--any.field value ...` words, on top of the run's experiment; the run stays as it is.
      predictions: a new file for what the evaluators say of each example, one JSON object a line.

    Returns:
      `evaluator/metric` -> value, and `step`, the checkpoint's.

    Raises:
      UserError: no run, no checkpoint, no such data, no evaluator, a file that is there already, a flag that evaluation does
        not read or the run's parameters do not fit.
    """
    if predictions is not None and Path(predictions).exists():
        raise UserError(f"--predictions {predictions}: the file is there already; give another name")
    run = Run(path)
    trained = run.experiment()
    experiment = _flagged(trained, flags)
    if not experiment.evaluate:
        raise UserError(f"{path}: it has no evaluators (evaluate is empty); add one by --evaluate.NAME")
    changed = None if experiment.test_data == trained.test_data else experiment.test_data
    for flag, name in (("data", data), ("test_data", changed)):
        if name is not None and name not in experiment.data:
            raise UserError(f"--{flag} {name}: the run has {', '.join(experiment.data)}{nearest(name, experiment.data)}")
    experiment = at_the_end(experiment) if data is None else _asked_on(experiment, data)
    checkpoints = Checkpoints(run.checkpoints, trained.checkpoint, read_only=True) if run.has_checkpoint() else None
    step = checkpoints.best_step() if checkpoints else None
    if checkpoints is None or step is None:
        raise UserError(f"{path}: the run has no checkpoint yet")
    read = tuple(dict.fromkeys(data for evaluator in experiment.evaluate.values() for data in data_of(evaluator)))
    mesh = _mesh(experiment, trained)
    experiment = _fitted(experiment, batch_ways(mesh), read)
    agree("the experiment", to_json(experiment))
    with use_mesh(mesh):
        setup = validated(set_up(experiment, run, mesh, only=read), run)
        for line in setup.notes if is_main() else ():
            logger.info("%s", line)
        agree_on_data(setup)
        params, _ = checkpoints.params(step, mesh)
        examples: list[dict[str, Any]] | None = None if predictions is None else []
        metrics = run_evaluators(experiment, setup.evaluation(), params, examples)
        if examples and is_main():
            write_whole(Path(str(predictions)), lines(examples))
        elif predictions is not None and is_main():
            silent = ", ".join(f"{name} ({type(one).__name__})" for name, one in experiment.evaluate.items())
            logger.warning("--predictions %s: no such file is written: %s says nothing of single examples", predictions, silent)
        for line in data_troubles(setup) if is_main() else ():
            logger.warning("%s", line)
    checkpoints.close()
    return {**metrics, "step": step}


def example() -> Experiment:
    """An experiment of one set of data and one evaluator: the fields that evaluation reads, for the help."""
    data = {"NAME": Data(Folder("DIR"))}
    return Experiment(model=Multimodal(encoders={}), data=data, tasks={}, evaluate={"NAME": Report()})


def inspect_data(
    experiment: Experiment,
    say: Callable[[str], None] = print,
    foreign: Foreign = no_foreign,
    take: Callable[[str, Dataset, Looked], None] = lambda *_: None,
) -> str:
    """Look at all data of an experiment, and say what it really holds as soon as each is known.

    Args:
      foreign: that of `set_up`.
      take: is given the name of each set of data that can be opened, the dataset, and what was found in it.

    Returns:
      The last line.

    Raises:
      UserError: the experiment does not fit together; or, after all has been said, what would end a run.
    """
    mesh = experiment.mesh.build()
    faults: dict[str, None] = {}
    tokenizers: Mapping[str, Tokenizer] = {}
    missing = ""
    with use_mesh(mesh):
        try:
            tokenizers = set_up(experiment, None, mesh, only=()).tokenizers
        except UserError as error:
            if not (error.path.startswith("data.") or str(error).startswith("tokenizer")):
                raise
            missing = str(error)  # the texts that it learns from cannot be had: the other data is looked at without it
            faults[missing] = None
    sources = Sources(experiment)
    for name in experiment.data:
        try:
            dataset = sources.dataset(name, tokenizers)
            looked = look(dataset)
        except UserError as error:
            reason = f"not looked at without a tokenizer: {missing}" if missing and "tokenizer" in str(error) else str(error)
            say(f"{name}:\n{reason}\n")
            faults |= {} if missing and missing in reason else {reason: None}
        else:
            say(f"{name}:\n{looked.text}\n")
            faults |= {f"data.{name}: {fault}": None for fault in looked.faults}
            take(name, dataset, looked)
    if not faults:  # then the experiment as a whole, as a run would look at it
        with use_mesh(mesh):
            for line in validated(set_up(experiment, None, mesh, foreign=foreign)).notes:
                say(line)
    if faults:
        raise UserError(f"{next(iter(faults))}{f' (and {len(faults) - 1} more, see above)' if len(faults) > 1 else ''}")
    return f"nothing that would end a run was found in {', '.join(experiment.data)}"


def _flagged(trained: Experiment, flags: Sequence[str]) -> Experiment:
    """The run's experiment with flags on top. Raises `UserError` for one that could not be honoured."""
    experiment = apply_flags(trained, flags)
    for path, values in pairs(flags):
        if path.split(".")[0] not in READ:
            known = ", ".join(f"--{name}" for name in READ)
            raise UserError(f"--{path} {' '.join(values)}: evaluation does not read it; it reads {known}")
        if path.split(".")[-1] == "share_in_training":
            raise UserError(f"--{path} {' '.join(values)}: evaluation asks the whole of the data, and not a share")
    if not any(path.split(".")[0] == "model" for path, _ in pairs(flags)):
        return experiment
    old, new = (leaves_by_path(param_shapes(e.model)) for e in (trained, experiment))
    shapes = {path: (old.get(path), new.get(path)) for path in old | new}
    for path, (was, now) in shapes.items():
        if was is None or now is None or was.shape != now.shape:
            changed = "; ".join(differences(trained.model, experiment.model)[:3])
            there, wanted = (
                "no array" if x is None else f"an array of {'x'.join(map(str, x.shape)) or 'one number'}" for x in (was, now)
            )
            raise UserError(f"model.{changed}: the run has {there} at {path}, and this model {wanted}")
    return experiment


def _asked_on(experiment: Experiment, data: str) -> Experiment:
    """The same with all its evaluators on this data; no other need be at hand."""
    return dataclasses.replace(experiment, evaluate={name: asked_on(own, data) for name, own in experiment.evaluate.items()})


def _mesh(experiment: Experiment, trained: Experiment) -> jax.sharding.Mesh:
    """The experiment's mesh; where it is the run's own and these devices are others, the nearest that fits them."""
    try:
        return experiment.mesh.build()
    except UserError as error:
        if experiment.mesh != trained.mesh:
            raise
        mesh = experiment.mesh.fitting(jax.devices())
        if is_main():
            logger.info("%s: evaluating on %s", error, mesh.said())
        return mesh.build()


def _fitted(experiment: Experiment, ways: int, read: Sequence[str]) -> Experiment:
    """The experiment with what only training needs left out, and batches that divide over a mesh: metrics do not depend on
    their size."""
    data = {}
    for name, spec in experiment.data.items():
        size = -(-spec.batch_size // ways) * ways
        data[name] = dataclasses.replace(spec, batch_size=size)
        if size != spec.batch_size and name in read and is_main():
            logger.info("data.%s.batch_size=%d: evaluating in batches of %d, for %d devices", name, spec.batch_size, size, ways)
    optimizer = dataclasses.replace(experiment.optimizer, accumulate=1)
    return dataclasses.replace(experiment, data=data, optimizer=optimizer, checkpoint=Checkpoint())
