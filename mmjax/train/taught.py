"""Teachers held against the student: classes by name and order, tokenizers, sizes and normalisation of what both read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.core.errors import UserError
from mmjax.data.making import text_spec
from mmjax.models.forward import BoundForward
from mmjax.train.classes import some, uses
from mmjax.train.setup import Setup
from mmjax.train.teacher import Known
from mmjax.train.teachers import fingerprint, normalised


def taught_classes(setup: Setup, evaluators: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Head -> the names of its classes as its teacher has them, of the heads that one teaches.

    Raises:
      UserError: two teachers of one head that have them otherwise; data with a class that its head's teacher does not know.
    """
    found: dict[str, tuple[str, ...]] = {}
    for task, teacher, head, theirs in _pairs(setup):
        names = setup.teachers[teacher].classes.get(theirs, ())
        if not names:
            continue
        if found.setdefault(head, names) != names:
            raise UserError(
                f"tasks.{task}: teachers.{teacher} has the classes {some(names)}, and another teacher of heads.{head} "
                f"{some(found[head])}: they must be the same in the same order"
            )
        for use in uses(setup.experiment, evaluators):
            own = setup.datasets[use.data].names.get(use.label, ()) if use.data in setup.datasets else ()
            stranger = next((name for name in own if name not in names), None)
            if use.head == head and stranger is not None:
                raise UserError(
                    f"tasks.{task}: teachers.{teacher} does not know the class {stranger!r} of data.{use.data}: its "
                    f"classes are {some(names)}, and those are {some(own)}"
                )
    return found


def check_teachers(setup: Setup, asked: Mapping[str, Mapping[str, BoundForward]]) -> list[str]:
    """Hold what teachers have read against what they were trained on; lines about what nobody can tell.

    Args:
      asked: stream -> teacher -> its forward, once the tasks are traced.

    Raises:
      UserError: it would be another thing to them than to the student.
    """
    lines: dict[str, None] = {}
    for data, forwards in asked.items():
        for name, forward in forwards.items():
            for modality in sorted(forward.used()):
                for line in _inputs(setup, data, name, modality, forward):
                    lines[line] = None
    for task, teacher, head, theirs in _pairs(setup):
        if theirs in setup.teachers[teacher].numbers:
            raise UserError(
                f"tasks.{task}: heads.{theirs} of teachers.{teacher} was trained to give numbers (Regression) or classes "
                "that do not exclude each other, and the task compares classes that do; a student of numbers takes what it "
                "predicts as a Regression's target"
            )
        names, own = setup.teachers[teacher].classes.get(theirs, ()), setup.classes.get(head, ())
        if own and names and own != names:
            raise UserError(
                f"tasks.{task}: heads.{head} has the classes {some(own)}, and those of teachers.{teacher} are {some(names)}: "
                "they must be the same in the same order"
            )
        if not names:
            lines[
                f"tasks.{task}: nothing says what the classes of teachers.{teacher} are; they are taken as those of {head}"
            ] = None
    return list(lines)


def _pairs(setup: Setup) -> Iterator[tuple[str, str, str, str]]:
    """(task, teacher, head, the teacher's head) of each task that teaches a head its classes; a head that projects has none."""
    for name, task in setup.experiment.tasks.items():
        teacher, head = getattr(task.objective, "teacher", ""), getattr(task.objective, "head", "")
        projects = hasattr(task.objective, "teacher_input")
        if teacher in setup.teachers and head in setup.experiment.model.heads and not projects:
            yield name, teacher, head, getattr(task.objective, "teacher_head", "") or head


def _inputs(setup: Setup, data: str, name: str, modality: str, forward: BoundForward) -> Iterator[str]:
    """What is to be said of one modality that a teacher has read."""
    known, spec, dataset = setup.teachers[name], setup.experiment.teachers[name], setup.datasets[data]
    own = spec.inputs.get(modality, modality)
    if own in dataset.texts():
        named = getattr(text_spec(setup.experiment.data[data].columns, own), "tokenizer", "")
        field = f"tokenizers.{named}" if named else "tokenizer"
        yield from _text(known, f"teachers.{name}", modality, dataset.texts()[own][0], f"{own!r} of data.{data}", field)
        return
    shape, encoder = dataset.spec()[own][0], forward.model.encoders.get(modality)
    size = getattr(encoder, "image_size", None)
    if size is None:
        return
    if tuple(shape[-3:-1]) != tuple(size):
        raise UserError(
            f"teachers.{name}: it reads {modality!r} of {size[0]}x{size[1]}, and {own!r} of data.{data} is "
            f"{'x'.join(map(str, shape[-3:-1]))}; give the data a second image of that size and name it in inputs"
        )
    augment = setup.experiment.model.augment
    if own != modality and (own in augment or modality in augment):
        raise UserError(
            f"teachers.{name}.inputs: it reads {own!r}, and model.augment draws for each image anew: the "
            "two would see different pictures; augment by transforms, or let both read one image"
        )
    theirs, ours = known.images.get(modality), normalised(setup.experiment.data[data]).get(own)
    if theirs and not ours:
        raise UserError(
            f"teachers.{name}: it was trained on {modality!r} normalised by mean {theirs[0]} and deviation {theirs[1]}, and "
            f"nothing says how {own!r} of data.{data} is: add Normalise to its transforms"
        )
    if ours and not theirs:
        yield f"teachers.{name}: nothing says how its {modality} was normalised; that of data.{data} is taken as it is"
    elif ours and theirs and theirs != ours:
        yield f"teachers.{name}: takes {own} of data.{data} normalised by mean {theirs[0]}, deviation {theirs[1]}"


def _text(known: Known, who: str, modality: str, tokenizer: Any, own: str, field: str) -> Iterator[str]:
    """The same of a text."""
    parts = [known.model.encoders.get(modality), *(d for d in known.model.decoders.values() if d.writes == modality)]
    sizes = [part.vocab_size for part in parts if hasattr(part, "vocab_size")]
    mark = fingerprint(tokenizer)
    theirs = known.texts.get(modality, mark)
    least = min(sizes, default=tokenizer.vocab_size)
    if theirs != mark or least < tokenizer.vocab_size:
        marks = (f", fingerprint {theirs}", f", fingerprint {mark}") if theirs != mark else ("", "")
        raise UserError(
            f"{who}: it reads {modality!r} by another tokenizer (a table of {least} words{marks[0]}) than {own} is made with, "
            f"{field} ({tokenizer.vocab_size} words{marks[1]}); give the student its tokenizer: {field}=Pretrained(FOLDER)"
        )
    if modality not in known.texts:
        yield f"{who}: nothing says which tokenizer its {modality} was made with; {own} is taken as it is"
