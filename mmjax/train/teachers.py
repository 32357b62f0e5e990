"""The teachers of an experiment: found where its config says, written down in the run, held against the student's data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax

from mmjax.adapt import merged
from mmjax.core.errors import UserError, nearest, within
from mmjax.core.strict_json import pages
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Params
from mmjax.data import Data, Normalise, Text, Tokenizer
from mmjax.data.making import MAKERS, text_spec
from mmjax.models import Multimodal
from mmjax.models.forward import VARIABLES
from mmjax.models.teaching import Affine, Teaching
from mmjax.objectives import Ranking, Regression
from mmjax.parallel.rules import shardings
from mmjax.train import kept_code
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.classes import from_huggingface, outcome
from mmjax.train.experiment import Experiment
from mmjax.train.run import Run
from mmjax.train.teacher import Known, Normalised, kept_params

FOLDER, ABOUT = "teachers", "teacher.json"  # of a run: what it knows of its teachers, RUN/teachers/NAME/teacher.json
PROBE = "A probe, of Straße 12's words: été?"  # tells apart tokenizers of one vocabulary that cut or fold otherwise

Foreign = Callable[[str], Known | None]  # what a path that is no run of ours holds; None where it is not known either


def no_foreign(path: str) -> Known | None:
    """For `Foreign`: knows of nothing but runs."""
    return None


def known_teachers(experiment: Experiment, run: Run | None, foreign: Foreign = no_foreign) -> dict[str, Known]:
    """Each teacher of an experiment: as the run has written it down once it has a checkpoint, else from its path.

    Args:
      foreign: asked first of each path; `mmjax.convert.teacher` knows HuggingFace folders.

    Raises:
      UserError: there is nothing at a path that could teach.
    """
    found = {}
    for name, spec in experiment.teachers.items():
        with within(f"teachers.{name}"):
            kept = _kept(run, name) if run is not None and run.has_checkpoint() else None
            found[name] = kept or foreign(spec.path) or of_run(spec.path)
    return found


def of_run(path: str) -> Known:
    """What a run that is to teach says of itself.

    Raises:
      UserError: it is no run, or has no checkpoint.
    """
    run = Run(path)
    if not (run.path / "config.json").is_file():
        raise UserError(
            f"path={path!r}: there is no config.json, so it is neither a run nor a HuggingFace folder (of an adapter's folder "
            "make one: mmjax convert from-peft)"
        )
    try:
        experiment = run.experiment()
    except UserError as error:
        raise UserError(
            f"path={path!r} is no run ({error}); of a HuggingFace folder make one: mmjax convert from-hf {path} RUN"
        ) from None
    if not run.has_checkpoint():
        raise UserError(f"path={path!r}: the run has no checkpoint yet")
    beside = {type(method).__name__ for method in experiment.adapt.values() if method.slot != "kernel"}
    if beside:
        raise UserError(
            f"path={path!r}: its {' and '.join(sorted(beside))} cannot be merged into its model, and what adapts a teacher is: "
            "teach by a run without"
        )
    data, objectives = experiment.asked_data(), [task.objective for task in experiment.tasks.values()]
    return Known(
        model=experiment.model,
        classes=run.classes() or from_huggingface(experiment),
        texts=_texts(experiment, data, run.tokenizers()),
        images=normalised(data),
        numbers=tuple(one.head for one in objectives if isinstance(one, Regression | Ranking) or outcome(one) != "one"),
        read=lambda mesh, dtype, parts: _read(run, mesh, dtype, parts),
    )


def write_down(run: Run, teachers: Mapping[str, Known], experiment: Experiment) -> None:
    """Keep in the run what it takes to go on without the teachers' folders, but for their parameters."""
    for name, known in teachers.items():
        folder = run.path / FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        kept_code.write(folder, kept_code.read(kept_code.collect(known.model)[0]))
        run.write(f"{FOLDER}/{name}/{ABOUT}", pages({"path": experiment.teachers[name].path, **known.to_json()}))


def teachings(experiment: Experiment, teachers: Mapping[str, Known]) -> dict[str, Teaching]:
    """What forwards are told of the teachers. Pixels that are normalised otherwise are brought to what each was trained on."""
    found = {}
    for name, known in teachers.items():
        spec = experiment.teachers[name]
        with within(f"teachers.{name}"):
            _check_inputs(spec.inputs, known.model)
        model = _tapped(experiment, name, known.model).copy(dtype=spec.dtype, augment={})
        found[name] = Teaching(model, dict(spec.inputs), dict(_pixels(experiment, name, known)))
    return found


def read_teachers(
    experiment: Experiment, teachers: Mapping[str, Known], abstract: Mapping[str, Params], mesh: jax.sharding.Mesh
) -> dict[str, Params]:
    """The parameters of the teachers, on the mesh.

    Args:
      abstract: their shapes, dtypes and places, of the parts that are kept.

    Raises:
      UserError: a checkpoint that holds other arrays than its model has.
    """
    found = {}
    for name, known in teachers.items():
        with within(f"teachers.{name}"):
            if known.read is None:
                raise UserError(f"path={experiment.teachers[name].path!r}: only what it was is known, not its parameters")
            params = known.read(mesh, experiment.teachers[name].dtype, abstract[name].keys())
            own, wanted = leaves_by_path(params), leaves_by_path(abstract[name])
            for path in own | wanted:
                shapes = [None if leaf is None else tuple(leaf.shape) for leaf in (own.get(path), wanted.get(path))]
                if shapes[0] != shapes[1]:
                    raise UserError(f"its checkpoint has {path} {shapes[0]}, and its config makes it {shapes[1]}")
            found[name] = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, abstract[name])
    return found


def normalised(data: Data | None) -> dict[str, Normalised]:
    """Image -> the mean and deviation that data brings its pixels to, for each that has one `Normalise`."""
    steps = [step for step in (data.transforms if data is not None else ()) if isinstance(step, Normalise)]
    return {step.field: (tuple(step.mean), tuple(step.std)) for step in steps}


def fingerprint(tokenizer: Tokenizer) -> str:
    """What tells tokenizers apart: their words with their ids, and what they make of a text."""
    words = sorted(tokenizer.huggingface.get_vocab().items())
    return hashlib.sha256(repr((words, tokenizer.whole(PROBE))).encode()).hexdigest()[:16]


def words_of(model: Multimodal) -> set[str]:
    """The modalities that a model reads or writes by the ids of a vocabulary."""
    keys = {name for name, part in model.encoders.items() if hasattr(part, "vocab_size")}
    return keys | {part.writes for part in model.decoders.values() if hasattr(part, "vocab_size")}


def _texts(experiment: Experiment, data: Data | None, tokenizers: Mapping[str, Tokenizer]) -> dict[str, str]:
    columns = data.columns if data is not None else {}
    named = {
        key: spec.tokenizer if isinstance(spec := text_spec(columns, key), (Text, *MAKERS)) else ""
        for key in words_of(experiment.model)
    }
    return {key: fingerprint(tokenizers[name]) for key, name in named.items() if name in tokenizers}


def _kept(run: Run, name: str) -> Known | None:
    folder = run.path / FOLDER / name
    found = run.read_json(f"{FOLDER}/{name}/{ABOUT}")
    return Known.from_json(found, kept_code.finder(folder)) if isinstance(found, dict) else None


def _read(run: Run, mesh: jax.sharding.Mesh, dtype: str, parts: Collection[str]) -> Params:
    """The parameters of a run's best checkpoint as a teacher keeps them."""
    experiment = run.experiment()
    checkpoints = Checkpoints(run.checkpoints, experiment.checkpoint, read_only=True)
    step = checkpoints.best_step()
    assert step is not None
    params, _ = checkpoints.params(step, mesh)
    checkpoints.close()
    variables = params.get(VARIABLES, {})
    whole = merged(experiment.model, {name: tree for name, tree in params.items() if name != VARIABLES})
    own = {name: tree for name, tree in whole.items() if name in parts}
    shapes = jax.eval_shape(lambda own, kept: kept_params(own, kept, dtype), own, variables)
    cast = jax.jit(lambda own, kept: kept_params(own, kept, dtype), out_shardings=shardings(shapes, mesh))
    made: Params = cast(own, variables)
    return made


def _tapped(experiment: Experiment, name: str, model: Multimodal) -> Multimodal:
    """The model, giving beside its last layer those that objectives ask for: `teacher_input="image:6"`."""
    encoders = dict(model.encoders)
    for task in experiment.tasks.values():
        objective = task.objective
        if getattr(objective, "teacher", "") != name or not hasattr(objective, "teacher_input"):
            continue
        own = experiment.model.heads.get(getattr(objective, "head", ""))
        modality, _, layer = (objective.teacher_input or str(getattr(own, "input", ""))).partition(":")
        encoder: Any = encoders.get(modality)
        if hasattr(encoder, "taps") and layer.lstrip("-").isdecimal() and int(layer) not in encoder.taps:
            encoders[modality] = encoder.copy(taps=(*encoder.taps, int(layer)))
    return model.copy(encoders=encoders)


def _check_inputs(inputs: Mapping[str, str], model: Multimodal) -> None:
    """Raises UserError for a modality that the teacher does not read: the student's own would be read in its place."""
    known = sorted({*model.encoders, *(getattr(decoder, "writes", "") for decoder in model.decoders.values())} - {""})
    for theirs in inputs:
        if theirs not in known:
            raise UserError(f"inputs={dict(inputs)}: it reads no {theirs!r}{nearest(theirs, known)}, but {', '.join(known)}")


def _pixels(experiment: Experiment, name: str, known: Known) -> Iterator[tuple[str, Affine]]:
    """Image -> what brings its pixels from the student's normalisation to the teacher's, where the two differ.

    Raises:
      UserError: streams of the student's that normalise one image differently.
    """
    for image, (mean, deviation) in known.images.items():
        own = experiment.teachers[name].inputs.get(image, image)
        streams = {data: normalised(experiment.data[data]).get(own) for data in experiment.task_data()}
        given = {value for value in streams.values() if value is not None}
        if len(given) > 1:
            raise UserError(f"teachers.{name}: streams normalise {own!r} differently ({streams}), and it can take one of them")
        for there, spread in given - {(mean, deviation)}:
            scale = tuple(s / d for s, d in zip(spread, deviation, strict=True))
            yield image, (scale, tuple((m - n) / d for m, n, d in zip(there, mean, deviation, strict=True)))
