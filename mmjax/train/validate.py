"""The one pass that an experiment is put through before its first step: everything that can be bound to shapes is.

Tasks and evaluators are traced on the shapes of the data that they will really read, the test data included. Nothing is
compiled and no batch is read; of each set of data a few records are, to see that its files are good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from mmjax.core.errors import UserError, nearest, within
from mmjax.core.spatial import image_of
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Array
from mmjax.data import Audio
from mmjax.evaluate.evaluation import data_of
from mmjax.models.forward import VALID, BoundForward
from mmjax.models.multimodal import Multimodal
from mmjax.models.parts import declared, key_of
from mmjax.train.asked import live_inputs, only_asked
from mmjax.train.classes import Use, check_outcomes, known_classes, match_classes, uses
from mmjax.train.dry import check_evaluators
from mmjax.train.experiment import Experiment
from mmjax.train.finish import at_the_end
from mmjax.train.measured import measured, units
from mmjax.train.places import check_places
from mmjax.train.run import Run
from mmjax.train.setup import Setup, check_needs
from mmjax.train.step import forwards_of, losses_of
from mmjax.train.taught import check_teachers, taught_classes
from mmjax.train.together import check_together
from mmjax.train.transcripts import check_transcripts

ROOMS = ("encoders", "fusions", "decoders", "heads")  # of a model's parts
OWN = ("index", "valid")  # keys of a batch that the pipeline itself makes
TRIED = 32  # records of each set of data that go through its transforms and columns
MOVING = ("RandomCrop", "Flip", "Rotate", "RandAugment", "TrivialAugment")  # whose draws a label map would have to share
LOOKED_AT = 128  # records of each set of data whose files are opened


def validated(setup: Setup, run: Run | None = None) -> Setup:
    """The same setup, found sound, its labels matched to the heads; `notes` say what the user should see of it.

    Raises:
      UserError: anything in the experiment that does not fit its data.
    """
    evaluators = _evaluators(setup.experiment, setup.datasets)
    check_outcomes(uses(setup.experiment, evaluators), measured(setup.experiment))
    check_together(setup)
    known = {**taught_classes(setup, evaluators), **known_classes(setup.experiment, run)}
    classes, lines = match_classes(setup.experiment, setup.datasets, known, evaluators)
    asked: dict[str, dict[str, BoundForward]] = {}
    heads, unread, flops = _check_tasks(setup, asked)
    setup = dataclasses.replace(setup, classes=classes, flops=flops)
    lines += check_teachers(setup, asked)
    check_transcripts(setup, heads)
    setup, kept = only_asked(setup)
    lines += kept
    heads |= check_evaluators(setup, evaluators)
    for name, task in setup.tasks.items():
        lines += [f"tasks.{name}: {note}" for note in getattr(task.objective, "notes", ())]
        if hasattr(task.objective, "places") and task.data in setup.datasets:
            setup.datasets[task.data].limit(task.objective.label, len(task.objective.places))
    for use in uses(setup.experiment, evaluators):
        if use.head in heads and use.data in setup.datasets:
            _check_head(use, heads[use.head], setup)
    known_shapes = {} if run is None else {name: about.get("shapes", {}) for name, about in run.about_data().items()}
    _check_columns(setup, run)
    _check_rates(setup.experiment)
    lines += [*unread, *_warm_up(setup.experiment), *_unmoved(setup), *_other_sizes(setup, evaluators, known_shapes)]
    lines += _weights(setup) + _mirrored(setup) + _unread_keys(setup) + _textless(setup) + _files(setup)
    return dataclasses.replace(setup, notes=tuple(_table(setup) + lines))


def _evaluators(experiment: Experiment, datasets: Mapping[str, Any]) -> dict[str, Any]:
    """All evaluators on the data they are asked on, while training and at the end: by name, or `name (test)`."""
    found = dict(experiment.evaluate)
    for name, spec in at_the_end(experiment).evaluate.items():
        if spec.data != experiment.evaluate[name].data:
            found[f"{name} ({spec.data})"] = spec
    return {name: spec for name, spec in found.items() if set(data_of(spec)) <= set(datasets)}


def _check_tasks(
    setup: Setup, asked: dict[str, dict[str, BoundForward]]
) -> tuple[dict[str, tuple[int, ...]], list[str], dict[tuple[str, ...], int]]:
    """Trace the losses of each step: head -> shape of its logits, a line about what no task reads, and the steps' FLOPs.

    Args:
      asked: takes the teachers' forwards that each stream has asked.
    """
    heads: dict[str, tuple[int, ...]] = {}
    read: set[str] = set()
    flops: dict[tuple[str, ...], int] = {}
    if not setup.experiment.tasks or not set(setup.experiment.task_data()) <= set(setup.datasets):
        return heads, [], flops
    if setup.teachers.keys() != setup.experiment.teachers.keys():  # an evaluation, which needs none
        return heads, [], flops
    model, teachers = setup.experiment.model, setup.teachings
    trained, params, own = setup.trained(), setup.abstract.params, setup.trained_shapes()
    paths = [*leaves_by_path(own), *leaves_by_path(params)]
    for group in dict.fromkeys(setup.experiment.groups()):
        tasks, batches = setup.tasks_of(group), setup.batch_shapes(group)
        check_needs(tasks, batches)

        def losses(
            own: Any, params: Any, batches: Any, key: Array, variables: Any, tasks: Mapping[str, Any] = tasks
        ) -> dict[str, Array]:
            forwards = forwards_of(model, trained.bind(own, params), batches, key, variables, teachers=teachers)
            found = losses_of(tasks, forwards, key, variables)
            for stream, forward in forwards.items():
                heads.update(forward.gave)
                asked.setdefault(stream, {}).update(forward.taught)
            return {name: loss.sum for name, loss in found.items()}

        key = jax.eval_shape(lambda: jax.random.key(0))
        traced = jax.make_jaxpr(losses)(own, params, batches, key, setup.abstract.variables).jaxpr
        flops[group] = setup.flops_to_train(traced)
        read |= {path for path, live in zip(paths, live_inputs(traced), strict=False) if live}
    spare = unread_parts(model, paths, read)
    told = [f"no task reads {', '.join(spare)}: nothing trains what is initialised there"] if spare else []
    return heads, told, flops


def unread_parts(model: Multimodal, paths: Iterable[str], read: Iterable[str]) -> list[str]:
    """`heads.spare`, ...: parts that have parameters, of which none is read."""
    rooms = {f"{room}_{name}": f"{room}.{name}" for room in ROOMS for name in getattr(model, room)}
    firsts = {path.split("/")[0] for path in read}
    return [place for first, place in rooms.items() if first not in firsts and any(p.startswith(f"{first}/") for p in paths)]


def _check_rates(experiment: Experiment) -> None:
    """Raises UserError where an encoder would take the sounds of some data for slower or faster ones; and for an augmentation
    of what no encoder reads."""
    for name in experiment.model.augment:
        if name not in experiment.model.encoders:
            known = experiment.model.encoders
            raise UserError(f"model.augment.{name}: there is no such encoder{nearest(name, known)}; it has {', '.join(known)}")
    for name, data in experiment.data.items():
        for key, column in data.columns.items():
            encoder = experiment.model.encoders.get(key)
            front = getattr(encoder, "spectrogram", encoder)
            if isinstance(column, Audio) and getattr(front, "rate", column.rate) != column.rate:
                part = f"{key}.spectrogram" if front is not encoder else key
                raise UserError(
                    f"data.{name}.columns.{key}.rate={column.rate}: model.encoders.{part} reads rate={front.rate}; "
                    "give both the same"
                )


def _check_columns(setup: Setup, run: Run | None) -> None:
    """Put some records of every set of data through its transforms and columns, and hold numbers of one key to one scale, which
    is that of what a run was trained on.

    Raises:
      UserError: a record that cannot be made a batch of, or a number in another unit than elsewhere.
    """
    for name, dataset in setup.datasets.items():
        with within(f"data.{name}"):
            check_places(setup, name, dataset.try_records(TRIED))
    scales = units(run.experiment()) if run is not None and run.has_checkpoint() else {}
    for name in setup.datasets:
        for key in setup.datasets[name].spec():
            spec = setup.experiment.data[name].columns.get(key)
            scale = (getattr(spec, "mean", 0.0), getattr(spec, "deviation", 1.0))
            first = scales.setdefault(key, (name, scale))
            if first[1] != scale:
                raise UserError(
                    f"data.{name}: the numbers {key!r} have mean and deviation {scale}, and data.{first[0]} has {first[1]}: "
                    "say the same, or what is measured on one is in another unit"
                )


def _warm_up(experiment: Experiment) -> list[str]:
    """A line about a learning rate that is still warming up when the run ends."""
    warmup, steps = experiment.optimizer.warmup_steps, experiment.steps
    if warmup < steps or not steps:
        return []
    return [f"optimizer.warmup_steps={warmup} of steps={steps}: the learning rate never gets to its peak"]


def _weights(setup: Setup) -> list[str]:
    """Lines about weights of classes, which stand in the order of the head's logits: each beside its name."""
    lines = []
    for name, task in setup.tasks.items():
        names = setup.classes.get(getattr(task.objective, "head", ""), ())
        for field in ("class_weights", "positive_weights", "alpha"):
            own = getattr(task.objective, field, ())
            if isinstance(own, tuple) and own and len(own) == len(names):
                said = ", ".join(f"{one} {weight:g}" for one, weight in zip(names, own, strict=True))
                lines.append(f"tasks.{name}.{field}: {said}")
    return lines


def _mirrored(setup: Setup) -> list[str]:
    """Lines about images that the device mirrors beside texts, which it sees as numbers alone."""
    lines = []
    for image, augment in setup.experiment.model.augment.items():
        read = {task.data for task in setup.experiment.tasks.values()}
        texts = [name for name, own in setup.datasets.items() if name in read and image in own.spec() and own.texts()]
        if getattr(augment, "flip", 0) and texts:
            lines.append(
                f"model.augment.{image}.flip={augment.flip:g} also mirrors images of data.{texts[0]} whose texts say left or "
                "right; Flip among the data's transforms does not"
            )
    return lines


def _unmoved(setup: Setup) -> list[str]:
    """Lines about label maps that stay where they are while the image is moved, since they are not called after it."""
    lines = []
    for name, task in setup.experiment.tasks.items():
        label, dataset = getattr(task.objective, "label", None), setup.datasets.get(task.data)
        spec = {} if dataset is None else dataset.spec()
        if label not in spec or len(spec[label][0]) < 3:
            continue
        for image in setup.experiment.model.encoders:
            same = image in spec and spec[image][0][1:3] == spec[label][0][1:3]
            moving = image in setup.experiment.model.augment or any(
                getattr(transform, "field", "") == image and type(transform).__name__ in MOVING
                for transform in setup.experiment.data[task.data].transforms
            )
            if same and moving and image_of(label, [image]) is None:
                lines.append(
                    f"tasks.{name}: {label!r} is as large as {image!r} and does not move with it; call it {image}_map if it "
                    "lies over it"
                )
    return lines


def _check_head(use: Use, logits: tuple[int, ...], setup: Setup) -> None:
    """Raises UserError for a head of other classes than its data; labels beyond it are refused from here on."""
    names, size = setup.classes.get(use.head, ()), logits[-1]
    dataset = setup.datasets[use.data]
    if use.outcome == "ordered":
        if names and len(names) != size + 1:
            raise UserError(
                f"{use.who}: model.heads.{use.head} gives {size} logits, and its {len(names)} ordered classes need "
                f"{len(names) - 1}: Classifier(classes={len(names) - 1}) or OrdinalClassifier(classes={len(names)})"
            )
        dataset.limit(use.label, size + 1)
        return
    if names and len(names) != size:
        raise UserError(
            f"{use.who}: model.heads.{use.head}.classes={size}, and data.{use.data} has {len(dataset.names[use.label])} classes"
            + (f" of the {len(names)} that the head is trained on" if len(names) != len(dataset.names[use.label]) else "")
        )
    if use.outcome == "several":
        dataset.shares(use.label)
    else:
        dataset.limit(use.label, size)


def _other_sizes(setup: Setup, evaluators: Mapping[str, Any], known: Mapping[str, Mapping[str, Sequence[int]]]) -> list[str]:
    """Lines about inputs that are of another size where they are evaluated than where they are trained.

    Args:
      known: set of data -> key -> shape of a row, of data that is not at hand: it was there when the run was trained.
    """
    lines = []
    shapes = {name: {key: tuple(shape) for key, shape in own.items()} for name, own in known.items()}
    for name, dataset in setup.datasets.items():
        shapes[name] = {key: shape[1:] for key, (shape, _) in dataset.spec().items()}
    for modality, encoder in setup.experiment.model.encoders.items():
        own_size = getattr(encoder, "image_size", None)
        for name in setup.experiment.task_data():
            size = shapes.get(name, {}).get(modality)
            if own_size is not None and size is not None and tuple(size[-3:-1]) != tuple(own_size):
                lines.append(
                    f"data.{name}: its {modality} is {_size(size)}, and encoders.{modality}.image_size={tuple(own_size)}"
                )
        trained = {name: shapes[name][modality] for name in setup.experiment.task_data() if modality in shapes.get(name, {})}
        for name in dict.fromkeys(spec.data for spec in evaluators.values()):
            is_text = modality in setup.datasets[name].texts()
            own = None if is_text else shapes[name].get(modality)
            if own is not None and trained and name not in trained and own not in trained.values():
                other, size = next(iter(trained.items()))
                lines.append(f"data.{name}: its {modality} is {_size(own)}, and that of data.{other} is {_size(size)}")
    return lines


def _unread_keys(setup: Setup) -> list[str]:
    """Lines about parts of a modality that its encoder does not take."""
    lines = []
    encoders = setup.experiment.model.encoders
    for name in setup.experiment.task_data():
        dataset = setup.datasets.get(name)
        if dataset is None:
            continue
        keys = dataset.spec()
        for modality, encoder in encoders.items():
            taken = {key_of(modality, part) for part in declared(type(encoder).__call__)}
            read = {key for task in setup.experiment.tasks.values() for key in getattr(task.objective, "needs", ())}
            for key in keys:
                part = key.startswith(f"{modality}_") and key not in encoders and image_of(key, [modality]) is None
                if part and key not in taken | read and not key.endswith(("_id", f"_{VALID}")):
                    lines.append(f"data.{name}: nothing reads {key}; encoders.{modality} takes {', '.join(sorted(taken))}")
    return lines


def _textless(setup: Setup) -> list[str]:
    """A line about texts that are left out."""
    names = [f"data.{name}" for name, dataset in setup.datasets.items() if getattr(dataset, "textless", False)]
    left = "the texts are left out, since nothing reads them and there is no tokenizer"
    return [f"{', '.join(names)}: {left}"] if names else []


def _files(setup: Setup) -> list[str]:
    """Open some files of every set of data. Raises UserError where more cannot be read than the data allows."""
    lines = []
    for name, dataset in setup.datasets.items():
        bad = dataset.unreadable(LOOKED_AT) if hasattr(dataset, "unreadable") else {}
        if not bad:
            continue
        path, reason = next(iter(bad.items()))
        seen, limit = min(dataset.size, LOOKED_AT), setup.experiment.data[name].bad_record_limit
        many = f"data.{name}: {len(bad)} of {seen} records looked at cannot be read, the first: {path} ({reason})"
        if len(bad) > limit * seen:
            raise UserError(f"{many}; bad_record_limit={limit} allows a share of {limit:g}")
        lines.append(many)
    return lines


def _table(setup: Setup) -> list[str]:
    """A line for each set of data: what its batches hold, and for whom."""
    lines = []
    for name, dataset in setup.datasets.items():
        tasks = [task for task, spec in setup.experiment.tasks.items() if spec.data == name]
        spec_ = dataset.train_spec() if tasks else dataset.spec()
        held = ", ".join(f"{key} {_size(shape[1:])}".strip() for key, (shape, _) in spec_.items() if key not in OWN)
        classes = "; ".join(f"{key}: {len(names)} classes" for key, names in dataset.names.items() if key in spec_)
        asked = [evaluator for evaluator, spec in at_the_end(setup.experiment).evaluate.items() if spec.data == name]
        asked += [e for e, spec in setup.experiment.evaluate.items() if spec.data == name and e not in asked]
        uses_ = ", ".join(
            filter(None, [f"trains {', '.join(tasks)}" * bool(tasks), f"evaluates {', '.join(asked)}" * bool(asked)])
        )
        lines.append(
            f"data.{name}: {dataset.size:,} records ({held}{f'; {classes}' if classes else ''}); {uses_ or 'not read'}"
        )
        if tasks and dataset.lengths:
            shorter = ", ".join(map(str, dataset.lengths[:-1])) or "no other length"
            lines.append(f"data.{name}: batches of shorter texts have {dataset.bucketed} {shorter} (packing.lengths)")
    for head, names in setup.classes.items():
        lines.append(f"heads.{head}: {len(names)} classes, {names[0]} first and {names[-1]} last")
    return lines


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
