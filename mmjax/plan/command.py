"""`mmjax plan`: from an experiment and the name of a topology to a report."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping

from mmjax.core.config import setting
from mmjax.core.errors import UserError
from mmjax.parallel.mesh import AXES, BATCH
from mmjax.plan import budget, decoding_report
from mmjax.plan.batches import Spec, batch_shapes, with_batch_per_chip
from mmjax.plan.compile import Measured, measure, worker
from mmjax.plan.fit import too_large
from mmjax.plan.ranking import ranking, ranking_json
from mmjax.plan.report import as_json, table
from mmjax.plan.roofline import predict
from mmjax.plan.search import Search
from mmjax.plan.topology import Topology, parse_topology
from mmjax.train.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Options:
    """The command's own flags, as they were written.

    Attributes:
      topology: v5e:4x4, v5p:2x2x4 and the like; gpu:8 without memory and time.
      slices: how many of them, joined by the data centre's network.
      batch_per_chip: examples a chip in every batch that tasks train on.
      search: find the best mesh, batch and rematerialisation there; `batch_per_chip` keeps the batch.
      minutes: how long to search (15).
      decode: price writing texts instead of a step: so many at once, on all chips, of so many tokens after prompts of so many.
      compile: with `decode`, compile the program too, to hold the counts against.
      write_budget: keep the figures there, for the tests of `benchmarks/budgets`.
      words: the whole command.
    """

    topology: str | None = setting(everyday=True, metavar="KIND:SHAPE", default=None)
    slices: str | None = setting(everyday=True, metavar="N", default=None)
    batch_per_chip: str | None = setting(everyday=True, metavar="N", default=None)
    search: bool = setting(everyday=True, default=False)
    minutes: str | None = setting(everyday=True, metavar="N", default=None)
    decode: str | None = setting(everyday=True, metavar="BATCH,PROMPT,NEW", default=None)
    compile: bool = setting(everyday=True, default=False)
    write_budget: str | None = setting(everyday=True, metavar="FILE", default=None)
    words: tuple[str, ...] = setting(metavar="", default=())


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be planned: an experiment as the flags leave it, where, and the shapes of its batches."""

    name: str
    experiment: Experiment
    topology: Topology
    shapes: Mapping[str, Spec]
    shapes_from: str


def plan(name: str, experiment: Experiment, options: Options) -> str:
    """The report: a table and, on its last line, one JSON object.

    Raises:
      UserError: anything wrong with the experiment or the flags, and a step that does not fit.
    """
    if options.decode is not None:
        return decoding_report.report(name, experiment, _topology(options), _alone(options), options.compile)
    if options.compile:
        raise UserError("--compile goes with --decode; a step is compiled always")
    job = prepare(name, experiment, options)
    if options.search:
        batches = (_number("--batch_per_chip", options.batch_per_chip, 0),) if options.batch_per_chip else ()
        return _search(job, _number("--minutes", options.minutes, 15), batches)
    measured = measured_step(job)
    if options.write_budget:
        budget.write(options.write_budget, options.words, measured)
    predicted = predict(measured, job.topology, job.experiment.steps) if job.topology.kind != "gpu" else None
    said = (name, job.topology, measured, predicted, job.shapes_from)
    return f"{table(*said)}\n\n{json.dumps(as_json(*said))}"


def prepare(name: str, experiment: Experiment, options: Options) -> Job:
    """What the flags ask for, checked as far as it can be without compiling."""
    topology = _topology(options)
    if options.search and topology.kind == "gpu":
        raise UserError("--search compiles, and nothing is compiled for a gpu: name a TPU topology")
    experiment.check()
    axes = dict(zip(AXES, experiment.mesh.shape(topology.chips, topology.slices), strict=True))
    per_chip = _number("--batch_per_chip", options.batch_per_chip, 0)
    if per_chip:
        experiment = with_batch_per_chip(experiment, topology.chips, per_chip)
    if not options.search:
        experiment.check_batches(math.prod(axes[axis] for axis in BATCH))
    return Job(name, experiment, topology, *batch_shapes(experiment))


def _topology(options: Options) -> Topology:
    if not options.topology:
        raise UserError("plan needs --topology, for instance --topology v5e:4x4")
    return parse_topology(options.topology, _number("--slices", options.slices, 1))


def _alone(options: Options) -> str:
    """What `--decode` says, where no flag is there that speaks of a step."""
    others = ("search", "minutes", "batch_per_chip", "write_budget")
    if wrong := [name for name in others if getattr(options, name)]:
        raise UserError(f"--decode prices the writing of texts, and --{wrong[0]} is about a step: use one of them")
    assert options.decode is not None
    return options.decode


def measured_step(job: Job) -> Measured:
    """The compiled step's figures. Raises `UserError` where it does not fit."""
    with worker(job.topology) as compiling:
        measured = measure(compiling, job.experiment, job.shapes, job.topology)
    if measured.exceeds:
        raise too_large(job.name, measured, job.topology)
    return measured


def _search(job: Job, minutes: int, batches: tuple[int, ...]) -> str:
    def say(line: str) -> None:
        print(line, file=sys.stderr)

    with worker(job.topology) as compiling:
        found = Search(job.experiment, job.shapes, job.topology, compiling, minutes, say, batches).run()
    best = found[0]
    flags = best.candidate.flags(job.experiment, job.topology)
    said = (job.name, job.topology, best.measured, best.predicted, job.shapes_from)
    report = as_json(*said) | {"flags": flags, "ranking": ranking_json(job.experiment, job.topology, found)}
    paste = f"mmjax train {job.name} {flags}".rstrip()
    return "\n\n".join((ranking(found), f"The best, {best.kind}:\n{table(*said)}", paste, json.dumps(report)))


def _number(flag: str, word: str | None, default: int) -> int:
    if word is None:
        return default
    if not word.isdecimal() or int(word) < 1:
        raise UserError(f"{flag} {word}: use a whole number from 1 up")
    return int(word)
