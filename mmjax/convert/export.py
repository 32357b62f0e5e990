"""From a run's model to the HuggingFace class that answers as it does: which class, at which size, with whose ids and names.

Everything that could keep a run from going back is decided by `prepare`, which needs no parameters: so it is asked before
training as well (`obstacle`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.adapt.adaptation import given_places, is_adapter
from mmjax.adapt.places import places_of
from mmjax.convert.bottleneck.layout import check_beside, check_bottlenecks
from mmjax.convert.config_paths import get, parts
from mmjax.convert.family import Family, check_exact, explicit
from mmjax.convert.huggingface import family_of
from mmjax.convert.letters import writes_letters
from mmjax.convert.peft.tensors import check_modules
from mmjax.convert.peft.virtual import SLOTS, check_virtual
from mmjax.convert.sounds import check_extractor
from mmjax.convert.tokenizer import text_part, with_ids
from mmjax.convert.towers import same_class
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path
from mmjax.core.types import Params
from mmjax.data import Audio, Tokenizer
from mmjax.data.making import MAKERS
from mmjax.models import Multimodal
from mmjax.models.resize import position_tables, resized_model
from mmjax.train import Experiment
from mmjax.train.classes import NAMED, uses
from mmjax.train.measured import Measured, measured
from mmjax.train.setup import Setup


@dataclasses.dataclass(frozen=True)
class Whole:
    """A model as one HuggingFace class.

    Attributes:
      model: what is written, with its config.json in `huggingface`; at the size of its images.
      architecture: the name of the class.
      left: parts of the run's model that this class has not.
      numbers: the heads that say numbers -> their unit, which the class knows nothing of (see `in_units`).
    """

    model: Multimodal
    architecture: str
    left: tuple[str, ...]
    numbers: Mapping[str, Measured] = dataclasses.field(default_factory=dict)


def prepare(
    model: Multimodal,
    tokenizer: Tokenizer | None,
    sizes: Mapping[str, tuple[int, int]],
    names: Mapping[str, tuple[str, ...] | None],
    outcomes: Mapping[str, str] | None = None,
    numbers: Mapping[str, Measured] | None = None,
) -> Whole | None:
    """The model as the HuggingFace class that answers as it does; None where no class is the whole of it.

    Args:
      tokenizer: of its texts; None leaves the ids that it came with.
      sizes: modality -> (height, width) of the images that it was trained with.
      names: head -> names of its classes; None where they have none, and those it came with are another head's.
      outcomes: head -> what its logits are trained for, see `train.classes.Use`.
      numbers: the heads that were trained on numbers instead.

    Raises:
      UserError: it came from HuggingFace, and no class has its parts; a class that would answer otherwise, and why.
    """
    kept, left = _kept(model)
    numbers = {head: own for head, own in (numbers or {}).items() if head in NAMED and head in model.heads}
    if kept is None or any(head in model.heads and (outcomes or {}).get(head) == "ordered" for head in NAMED):
        return None  # C - 1 logits of ordered classes would be taken for classes
    if "token_classes" in numbers or any(own.variance for own in numbers.values()):
        return None  # a number a token, or a variance, would be taken for a class
    family, architecture = _class_of(kept)
    kept = resized_model(kept, {} if family.any_size else sizes)
    kept = _with_outcomes(_named(kept, names), {**(outcomes or {}), **dict.fromkeys(numbers, "number")})
    if text_part(kept) is None and not writes_letters(kept):
        pass
    elif tokenizer is not None:
        kept = with_ids(family, kept, architecture, tokenizer)
    elif family.pools_at_end and not _says_end(family, kept):
        raise UserError(f"{architecture} finds the end of a text by its id, and the run has no tokenizer that says it")
    config = family.config(explicit(kept)) | {"architectures": [architecture]}
    check_exact(family, explicit(kept), config, architecture)
    for head, own in numbers.items():
        if own.mean and not getattr(kept.heads[head], "bias", True):
            raise UserError(f"{architecture}'s head has no bias, which Number(mean={own.mean}) needs: train on Number(mean=0)")
    return Whole(kept, architecture, tuple(left), numbers)


def _kept(model: Multimodal) -> tuple[Multimodal | None, list[str]]:
    """What is written as one class, and what is left behind for it: encoders and fusions that no head and no decoder of the
    class needs (a CLIP's text tower beside a classifier of images)."""
    try:
        _class_of(model)
        return model, []
    except UserError as error:
        reason = error
    found = same_class(model)
    if found is not None:
        return found[0], []
    smaller = _pruned(model)
    if smaller is not None:
        return smaller, sorted(parts(model) - parts(smaller))
    if model.huggingface:
        raise reason
    return None, []


def _class_of(model: Multimodal) -> tuple[Family, str]:
    family = family_of(model)
    own = explicit(model)
    architecture = family.architecture(own)
    check_exact(family, own, family.config(own) | {"architectures": [architecture]}, architecture)
    return family, architecture


def _pruned(model: Multimodal) -> Multimodal | None:
    """The model with what its heads and decoders read and no more, where that is a class; None where it is none."""
    if not model.heads and not model.decoders:
        return None
    read: set[str] = set()
    for head in model.heads.values():
        read |= {head.input} if isinstance(head.input, str) else set(head.input)
    for decoder in model.decoders.values():
        read |= set(decoder.context)
    read = {name.partition(":")[0] for name in read}
    for name, fusion in model.fusions.items():
        read |= set(fusion.modalities) if name in read else set()
    smaller = model.copy(
        encoders={name: part for name, part in model.encoders.items() if name in read},
        fusions={name: part for name, part in model.fusions.items() if name in read},
        unread={},
    )
    if parts(smaller) == parts(model):
        return None
    try:
        _class_of(smaller)
        return smaller
    except (UserError, KeyError):
        found = same_class(smaller)
        return None if found is None else found[0]


def _named(model: Multimodal, names: Mapping[str, tuple[str, ...] | None]) -> Multimodal:
    """The names of the classes in the order of the logits, where they are known."""
    for head in NAMED:
        if head not in model.heads or head not in names:
            continue
        own, count = names[head], model.heads[head].classes
        if own is not None and len(own) != count:
            continue
        own = tuple(f"LABEL_{i}" for i in range(count)) if own is None else own
        labels = {"id2label": {str(i): name for i, name in enumerate(own)}, "label2id": {name: i for i, name in enumerate(own)}}
        model = model.copy(huggingface={**model.huggingface, **labels})
    return model


PROBLEMS = {"several": "multi_label_classification", "number": "regression", "one": "single_label_classification"}


def _with_outcomes(model: Multimodal, outcomes: Mapping[str, str]) -> Multimodal:
    """The same, with what HuggingFace's pipelines are told of its logits, which they take for those of one class otherwise."""
    for head in NAMED:
        kind = outcomes.get(head) if head in model.heads else None
        said = "one" if model.heads and "problem_type" not in model.huggingface else ""  # what needs no saying
        if kind in PROBLEMS and kind != said:
            model = model.copy(huggingface={**model.huggingface, "problem_type": PROBLEMS[kind]})
    return model


def in_units(whole: Whole, params: Params) -> Params:
    """The parameters with the last layer of each head that says numbers in the unit of the data: `logit * deviation + mean`."""
    found = dict(params)
    for head, (mean, deviation, _) in whole.numbers.items():
        layers = dict(found[f"heads_{head}"])
        for name in [name for name in layers if name.endswith("logits")]:
            layers[name] = {slot: np.asarray(value) * np.float32(deviation) for slot, value in layers[name].items()}
            if "bias" in layers[name]:
                layers[name]["bias"] += np.float32(mean)
        found[f"heads_{head}"] = layers
    return found


def head_outcomes(experiment: Experiment) -> dict[str, str]:
    """Head -> what its logits are for, of the heads that some task trains on labels."""
    return {use.head: use.outcome for use in uses(experiment, {})}


def _says_end(family: Family, model: Multimodal) -> bool:
    """Whether config.json says by which id a text ends, or leaves it to the default of the class that it came from."""
    places = [f"{group}.eos_token_id" if group else "eos_token_id" for group in family.texts]
    return all(get(model.huggingface, place, 0) is not None for place in places)


def class_names(experiment: Experiment, known: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...] | None]:
    """Head -> the names of its classes, of the heads that some task trains; None where its data has no names."""
    trained = {use.head for use in uses(experiment, {})}
    return dict.fromkeys(trained) | dict(known)


def text_tokenizer(experiment: Experiment, tokenizers: Mapping[str, Tokenizer]) -> Tokenizer | None:
    """The tokenizer of the texts that a task reads; None where nothing was trained here, or nothing on texts."""
    if not experiment.tasks:
        return None
    for task in experiment.tasks.values():
        columns = getattr(experiment.data.get(task.data), "columns", {})
        made = ((column.of if isinstance(column, MAKERS) else key, column) for key, column in columns.items())
        named = [getattr(column, "tokenizer", None) for key, column in made if key in ("text", "caption")]
        for name in filter(None, named):
            if name in tokenizers:
                return tokenizers[name]
    return tokenizers.get("")


def image_sizes(experiment: Experiment, shapes: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Modality -> (height, width) of the images that were trained on, of those whose encoder keeps positions for a size.

    Args:
      shapes: name of data -> key -> shape of an example.
    """
    sizes = {}
    tables = {path.split("/")[0] for path in position_tables(experiment.model)}
    for modality in experiment.model.encoders:
        names = [name for name in experiment.task_data() if modality in shapes.get(name, {})]
        if names and f"encoders_{modality}" in tables:
            shape = shapes[names[0]][modality]
            sizes[modality] = (int(shape[-3]), int(shape[-2]))
    return sizes


def obstacle(setup: Setup) -> list[str]:
    """A line that says why what is about to be trained, or what adapts it, will not go back where it came from; else none."""
    e = setup.experiment
    shapes = {name: {key: shape[1:] for key, (shape, _) in d.spec().items()} for name, d in setup.datasets.items()}
    said = class_names(e, setup.classes), head_outcomes(e), measured(e)
    try:
        whole = prepare(e.model, text_tokenizer(e, setup.tokenizers), image_sizes(e, shapes), *said)
    except UserError as error:
        if not e.model.huggingface:  # it is written tower by tower, if at all
            return []
        hint = "; mmjax.convert.load_classifier makes a classifier that goes back" * ("classes" in e.model.heads)
        hint += "; mmjax.convert.load_extractor makes a model that goes back" * ("spans" in e.model.heads)
        hint += "; mmjax.convert.load_tagger makes a tagger that goes back" * ("token_classes" in e.model.heads)
        return [f"convert to-hf will refuse this model, which came from HuggingFace: {error}{hint}"]
    try:
        for name in e.task_data() if whole is not None else ():
            column = e.data[name].columns.get("audio")
            if isinstance(column, Audio) and "audio" in e.model.encoders:
                check_extractor(column, e.model)
    except UserError as error:
        return [f"convert to-hf will refuse this model: {error}"]
    if whole is None or not e.adapt:
        return []
    family, given = family_of(whole.model), given_places(e.adapt, places_of(e.model))
    rooms = {path.rpartition("/")[0] for path, slot in given if slot == "kernel"}
    thin = {path.rpartition("/")[0] for path, slot in given if slot == "bottleneck"}
    kinds = {path: SLOTS[slot] for path, slot in given if slot in SLOTS}
    word = "to-adapters" if thin else "to-peft"
    try:
        if thin:
            check_bottlenecks(whole.model, whole.architecture, thin, rooms | {*kinds})
            trained = leaves_by_path(setup.trained().of(setup.abstract.params))
            check_beside(whole.model, whole.architecture, {path for path in trained if not is_adapter(path)})
            return []
        if kinds:
            check_virtual(
                whole.architecture, kinds, max(getattr(one.method, "after", 0) for own in given.values() for one in own)
            )
        check_modules(family, whole.architecture, family.rows(whole.model, whole.architecture), rooms)
    except UserError as error:
        return [f"convert {word} will refuse what adapts this model: {error}"]
    return []
