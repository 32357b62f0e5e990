"""From an experiment to what runs: mesh, tokenizer, datasets, sharded state, compiled steps."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.core.config import check_ranges, children
from mmjax.core.errors import UserError, within
from mmjax.core.flops import flops_of, step_flops_of
from mmjax.core.types import Batch, Params
from mmjax.data import Dataset, Text, Tokenizer
from mmjax.data.making import MAKERS
from mmjax.evaluate.evaluation import Evaluation, encoded
from mmjax.models.casting import compute_dtype
from mmjax.models.forward import LENGTHS, BoundForward
from mmjax.models.teaching import Teaching
from mmjax.nn.stack import StackFields
from mmjax.parallel.mesh import batch_sharding, batch_ways, replicated
from mmjax.parallel.multihost import is_main
from mmjax.parallel.rows import local_rows, place_rows
from mmjax.parallel.rules import shardings
from mmjax.train.experiment import Experiment, Task
from mmjax.train.run import Run
from mmjax.train.sources import Sources, readers
from mmjax.train.state import State, evaluated, init_state, teachers_of, with_teachers
from mmjax.train.step import make_step, task_losses
from mmjax.train.teacher import Known
from mmjax.train.teachers import Foreign, known_teachers, no_foreign, read_teachers, teachings
from mmjax.train.text_rows import check_buckets, check_packed
from mmjax.train.trained import Trained, check_whole_batches

# What a step is compiled for: the streams it trains on, and of each the tokens of its texts where these are in buckets, else 0.
Kind = tuple[tuple[str, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything an experiment's loop needs. Nothing here changes while it runs.

    Attributes:
      tokenizers: by name; "" is that of texts which name no other.
      datasets: every stream of the experiment, built.
      abstract: shapes and shardings of the state.
      flops: the model's FLOPs in a step over each group of streams, of the longest texts, where that was counted already.
      classes: head -> the names of its classes in the order of its logits, where data or model say them.
      notes: what the user should see of all this before the first step.
      teachers: what is known of the experiment's; {} where nothing is trained.
    """

    experiment: Experiment
    mesh: jax.sharding.Mesh
    tokenizers: Mapping[str, Tokenizer]
    datasets: Mapping[str, Dataset]
    abstract: State
    flops: Mapping[tuple[str, ...], int] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    teachers: Mapping[str, Known] = dataclasses.field(default_factory=dict)

    @property
    def teachings(self) -> dict[str, Teaching]:
        """What forwards are told of the teachers."""
        return teachings(self.experiment, self.teachers)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """That of texts which name no other; None where there is none."""
        return self.tokenizers.get("")

    def init(self) -> State:
        """The first state, made on the mesh; teachers are read from where they are."""
        e, abstract = self.experiment, self.abstract
        make = functools.partial(_init, e, task_shapes(e, self.datasets))
        layout = jax.tree.map(lambda leaf: leaf.sharding, with_teachers(abstract, {}))
        state = jax.jit(make, out_shardings=layout)(np.uint32(e.seed))
        return with_teachers(state, read_teachers(e, self.teachers, teachers_of(abstract), self.mesh))

    def place(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """This process's rows of a batch -> the global batch, rows over the mesh."""
        return place_rows(self.mesh, batch)

    def batches(self, name: str, start_step: int) -> Iterator[Mapping[str, np.ndarray]]:
        """This process's rows of the training batches of one stream, from its own step `start_step` on."""
        dataset = self.datasets[name]
        return dataset.batches(start_step, local_rows(self.mesh, dataset.batch_size))

    def kinds(self, group: tuple[str, ...]) -> list[Kind]:
        """What steps over the streams of `group` are compiled for: all lengths of their texts, of several streams with each
        other; the longest last."""
        return [(group, found) for found in itertools.product(*(self.datasets[name].lengths or (0,) for name in group))]

    def kind_of(self, batches: Mapping[str, Batch]) -> Kind:
        """What the step on such batches was compiled for."""
        keys = {name: self.datasets[name].bucketed for name in batches}
        return tuple(batches), tuple(batches[name][key].shape[1] if key else 0 for name, key in keys.items())

    def compile_step(self, group: tuple[str, ...], lengths: tuple[int, ...] = ()) -> tuple[Callable[..., Any], int]:
        """The compiled step over the streams of `group`, and the model's FLOPs in it.

        Args:
          lengths: of a `Kind`; () for the longest.
        """
        return self.lower_step(group, lengths).compile(), self.step_flops(group, lengths)

    def lower_step(self, group: tuple[str, ...], lengths: tuple[int, ...] = ()) -> jax.stages.Lowered:
        """The training step over the streams of `group`, traced for this mesh and not yet compiled."""
        return self.jit_step(group).lower(self.abstract, self.batch_shapes(group, lengths))

    def jit_step(self, group: tuple[str, ...]) -> Any:
        """The training step over the streams of `group`: (state, batches) -> (state, figures); the state is donated."""
        e = self.experiment
        tx, rate = e.updating.build(self.abstract.params, e.steps), e.optimizer.rate(e.steps)
        tasks = self.tasks_of(group)
        step = make_step(e.model, tasks, e.weighting, e.updating, tx, rate, self.group_number(group), self.teachings)
        check_needs(tasks, self.batch_shapes(group))
        layout = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        return jax.jit(step, donate_argnums=0, out_shardings=(layout, replicated(self.mesh)))

    def group_number(self, group: tuple[str, ...]) -> int | None:
        """Which of the groups that alternate it is; None where there is one."""
        different = tuple(dict.fromkeys(self.experiment.groups()))
        return None if len(different) == 1 else different.index(group)

    def trained(self) -> Trained:
        """Which parameters are trained."""
        return self.experiment.updating.trained(self.abstract.params)

    def trained_shapes(self) -> Params:
        """Shapes and shardings of the trained ones alone."""
        return self.trained().of(self.abstract.params)

    def evaluated(self, state: State) -> Params:
        """The parameters to evaluate and export, with what the modules keep beside them."""
        return evaluated(state, self.trained())

    def step_flops(self, group: tuple[str, ...], lengths: tuple[int, ...] = ()) -> int:
        """The model's FLOPs in a step: those of the forward's matrix products, and twice that for the backward; where something
        is frozen, of the backward what the trained ones need."""
        if group in self.flops and (not lengths or (group, lengths) == self.kinds(group)[-1]):
            return self.flops[group]
        model, tasks, trained, teachers = self.experiment.model, self.tasks_of(group), self.trained(), self.teachings

        def forward(own: Params, params: Params, batches: Any, key: Any, variables: Any) -> Any:
            bound = trained.bind(own, params)
            return task_losses(model, tasks, bound, batches, key, variables=variables, teachers=teachers)

        key, own = jax.eval_shape(lambda: jax.random.key(0)), self.trained_shapes()
        shapes = (own, self.abstract.params, self.batch_shapes(group, lengths), key, self.abstract.variables)
        return self.flops_to_train(jax.make_jaxpr(forward)(*shapes).jaxpr)

    def flops_to_train(self, jaxpr: Any) -> int:
        """The same of the losses of a step, traced with the trained parameters as the first argument."""
        if not self.trained().rest(self.abstract.params) and not self.teachers:
            return 3 * flops_of(jaxpr)
        count = len(jax.tree.leaves(self.trained_shapes()))
        return step_flops_of(jaxpr, [i < count for i in range(len(jaxpr.invars))])

    def evaluation(self) -> Evaluation:
        """What evaluators are handed."""
        model = self.experiment.model
        return Evaluation(
            bind=lambda params, batch: BoundForward(model, params, batch),
            datasets=self.datasets,
            texts=self.texts(),
            place=self.place,
            rows=functools.partial(local_rows, self.mesh),
        )

    def texts(self) -> dict[str, tuple[Tokenizer, int]]:
        """Modality of text -> its tokenizer, and the most tokens that any data gives it."""
        found: dict[str, tuple[Tokenizer, int]] = {}
        for data in self.experiment.data.values():
            columns: dict[str, Any] = {"text": Text()}
            columns |= {key: spec for key, spec in data.columns.items() if isinstance(spec, Text)}
            columns |= {spec.of: spec for spec in data.columns.values() if isinstance(spec, MAKERS)}
            for key, spec in columns.items():
                if (tokenizer := self.tokenizers.get(spec.tokenizer)) is not None:
                    longest = found[key][1] if key in found else 0
                    found[key] = (tokenizer, max(longest, spec.max_length or data.max_length))
        return found

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        """The experiment's tasks; an objective that reads texts of its own has their ids, where its data is at hand.

        Raises:
          UserError: what the objective finds wrong with its classes, or no tokenizer.
        """
        found = dict(self.experiment.tasks)
        for name, task in found.items():
            if hasattr(task.objective, "bound") and task.data in self.datasets:
                dataset, encode = self.datasets[task.data], functools.partial(encoded, self.texts())
                own = getattr(dataset, "names", {}).get(task.objective.label, ())
                with within(f"tasks.{name}.objective"):
                    objective = task.objective.bound(own, task.data, encode)
                found[name] = dataclasses.replace(task, objective=objective)
        return found

    def tasks_of(self, group: tuple[str, ...]) -> dict[str, Task]:
        """The tasks that train on the streams of `group`."""
        return {name: task for name, task in self.tasks.items() if task.data in group}

    def batch_shapes(self, group: tuple[str, ...], lengths: tuple[int, ...] = ()) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Shapes, dtypes and shardings of a batch of each stream of `group`; `lengths` of a `Kind`, () for the longest."""
        sharding = batch_sharding(self.mesh)
        return {
            name: {
                key: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
                for key, (shape, dtype) in self.datasets[name].train_spec(length).items()
            }
            for name, length in zip(group, lengths or (0,) * len(group), strict=True)
        }


def set_up(
    experiment: Experiment,
    run: Run | None,
    mesh: jax.sharding.Mesh,
    only: tuple[str, ...] | None = None,
    foreign: Foreign = no_foreign,
) -> Setup:
    """Check an experiment against its data and this machine, and build what runs.

    Args:
      only: names of the data to build, without the teachers; None for all.
      foreign: knows teachers that are no runs, see `known_teachers`.

    Raises:
      UserError: anything in the experiment that does not fit together.
    """
    check_mesh(experiment, mesh)
    sources = Sources(experiment)
    tokenizers = _tokenizers(experiment, run, sources)
    names = experiment.data if only is None else only
    datasets = {name: sources.dataset(name, tokenizers) for name in names}
    check_vocabularies(experiment, datasets, tokenizers)
    check_packed(experiment, datasets)
    teachers = known_teachers(experiment, run, foreign) if only is None else {}
    check_buckets(experiment, datasets, teachers)
    abstract = abstract_state(experiment, mesh, task_shapes(experiment, datasets), teachers)
    still = experiment.updating.trained(abstract.params).still(abstract.params)
    check_whole_batches(experiment.model, still, experiment.optimizer.accumulate)
    return Setup(experiment, mesh, tokenizers, datasets, abstract, teachers=teachers)


def check_mesh(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """What can be seen of an experiment and a mesh without data.

    Raises:
      UserError: anything in the experiment that does not fit together, or on this mesh.
    """
    check_ranges(experiment)
    experiment.check()
    experiment.check_batches(batch_ways(mesh))
    compute_dtype(experiment.model.dtype)
    _check_tensor(experiment.model, mesh.shape["tensor"])


def abstract_state(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    shapes: Mapping[str, Any] | None = None,
    teachers: Mapping[str, Known] | None = None,
) -> State:
    """Shapes and shardings of the state; `shapes` of the tasks' batches, for objectives that keep variables."""
    abstract = jax.eval_shape(functools.partial(_init, experiment, shapes or {}), jax.ShapeDtypeStruct((), np.uint32))
    kept = {name: known.shapes(experiment.teachers[name].dtype) for name, known in (teachers or {}).items()}
    abstract = with_teachers(abstract, kept)
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, shardings(abstract, mesh)
    )


def task_shapes(experiment: Experiment, datasets: Mapping[str, Any]) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Task -> the shapes of its batches, of those whose data is at hand."""
    return {
        name: {key: jax.ShapeDtypeStruct(*spec) for key, spec in datasets[task.data].train_spec().items()}
        for name, task in experiment.tasks.items()
        if task.data in datasets
    }


def _init(experiment: Experiment, shapes: Mapping[str, Any], seed: Any) -> State:
    e = experiment
    weights = {name: task.weight for name, task in e.tasks.items()}

    objectives = {name: task.objective for name, task in e.tasks.items()}
    groups = len(set(e.groups()))
    kept = (e.frozen_dtype, not e.init_from)
    return init_state(e.model, e.updating, e.steps, e.weighting, weights, seed, groups, objectives, shapes, e.adapt, *kept)


def _tokenizers(experiment: Experiment, run: Run | None, sources: Sources) -> dict[str, Tokenizer]:
    """The run's own once it has a checkpoint; else those that its config names; else that of the run it starts from.

    Of several processes only process 0 makes them; the others read them from the run.
    """
    kept = run.tokenizers() if run is not None and (run.has_checkpoint() or not is_main()) else {}
    if kept:
        return kept
    found: dict[str, Tokenizer] = {}
    for name, spec in {"": experiment.tokenizer, **experiment.tokenizers}.items():
        if spec is None:
            continue
        texts = (text for data in experiment.task_data() for text in sources.texts(data, name))
        with within(f"tokenizers.{name}" if name else "tokenizer"):
            found[name] = spec.train(texts)
    begins = [experiment.init_parts[path] for path, _, _ in readers(experiment.model) if path in experiment.init_parts]
    for folder in [one for one in (experiment.init_from, *begins) if one]:
        found = {**Run(folder).tokenizers(), **found}
    return found


def check_vocabularies(experiment: Experiment, datasets: Mapping[str, Dataset], tokenizers: Mapping[str, Tokenizer]) -> None:
    """Hold each part that reads or writes a text against that text's own tokenizer.

    Raises:
      UserError: a table too small for the words, or an objective with another mask token.
    """
    texts = {key: tokenizer for dataset in datasets.values() for key, (tokenizer, _) in dataset.texts().items()}
    if "text" not in texts and "" in tokenizers:
        texts["text"] = tokenizers[""]
    model = experiment.model
    for path, key, part in readers(model):
        size = getattr(part, "vocab_size", None)
        if size is not None and key in texts and size < texts[key].vocab_size:
            raise UserError(
                f"model.{path}.vocab_size={size} is smaller than the tokenizer's vocabulary of {texts[key].vocab_size}"
            )
    for name, task in experiment.tasks.items():
        table = getattr(model.encoders.get(getattr(task.objective, "modality", "")), "vocab_size", None)
        asked = getattr(task.objective, "vocab_size", None)
        if table is not None and asked is not None and asked > table:
            raise UserError(
                f"tasks.{name}.objective.vocab_size={asked}: model.encoders.{task.objective.modality}.vocab_size={table}"
            )
        said, tokenizer = getattr(task.objective, "mask_id", None), texts.get(getattr(task.objective, "modality", "text"))
        if tokenizer is None:
            continue
        if said is not None and said != tokenizer.mask_id:
            raise UserError(f"tasks.{name}.objective.mask_id={said}, and the tokenizer's is {tokenizer.mask_id}")
        words = getattr(task.objective, "vocab_size", None)
        if words is not None and words < tokenizer.vocab_size:
            raise UserError(f"tasks.{name}.objective.vocab_size={words}, and the tokenizer has {tokenizer.vocab_size} words")


def _check_tensor(model: Any, ways: int) -> None:
    """Heads of every stack against the mesh's `tensor` axis."""

    def walk(spec: Any, path: str) -> None:
        if isinstance(spec, StackFields) and spec.depth:
            for field in ("heads", "kv_heads"):
                if getattr(spec, field) % ways:
                    raise UserError(f"{path}.{field}={getattr(spec, field)} does not divide over mesh.tensor={ways}")
        for name, child in children(spec).items():
            walk(child, f"{path}.{name}")

    walk(model, "model")


def check_needs(tasks: Mapping[str, Any], batches: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where a task reads a key that its data does not give."""
    for name, task in tasks.items():
        for key in getattr(task.objective, "needs", ()):
            if key not in batches[task.data]:
                held = ", ".join(batches[task.data])
                why = _why_not(key, batches[task.data])
                raise UserError(f"tasks.{name} needs {key!r} in the batch, and data.{task.data} gives {held}{why}")


def _why_not(key: str, batch: Iterable[str]) -> str:
    """Why a batch does not have a key, where that can be seen."""
    if key.endswith("_words"):
        return f"; columns={{{key.removesuffix('_words')!r}: Text(words=...)}} adds it"
    if any(own.endswith(f"_{LENGTHS}") for own in batch):
        return "; data.packing puts several texts into a row, which then has nothing of one example"
    return ""
