"""What the tests know of a family of HuggingFace's: a `Case`, which is data. `test_families.py` has the checks.

A case makes small random models of the family's classes (`Made`) and a batch, and says what both sides answer by one set of
names: heads and decoders by their own, `dual` (the similarities of a dual fusion; `scaled` without their bias, `cosine`
without their scale too, `unit.text` of one modality), `tokens.text` (what an encoder or a fusion gives).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from parity import bound, hidden_states, part, randomise

from mmjax.convert.config_paths import put
from mmjax.core.types import Params
from mmjax.models import Multimodal

Batch = Mapping[str, np.ndarray]
Answers = Mapping[str, Any]

WORDS, LENGTH = 37, 9
MASK = np.arange(LENGTH)[None] < np.array([[9], [5], [7]])
SEGMENTS = (np.arange(LENGTH)[None] >= np.array([[4], [3], [9]])).astype(np.int32)
PIXELS = np.random.default_rng(1).normal(size=(3, 40, 40, 4)).astype(np.float32)
# Our batch keys -> HuggingFace's arguments.
ARGUMENTS = {
    "text": "input_ids",
    "text_mask": "attention_mask",
    "text_segments": "token_type_ids",
    "audio": "input_values",
    "audio_mask": "attention_mask",
    "audio_segments": "mask_time_indices",
    "image": "pixel_values",
    "image_mask": "pixel_mask",
    "image_segments": "bool_masked_pos",
}
FLAGS = ("image_segments", "audio_segments")  # which HuggingFace takes as they are
PER_WORD = ("masked_lm", "token_classes", "spans", "caption", "tokens.text", "cross")  # what the text's mask counts for


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Made:
    """A HuggingFace model to be made.

    Attributes:
      name: its class.
      answers: our name of what it answers -> the field of its output; or (model, batch) -> answers by our names.
      changes: dotted config field -> another value than the case's.
      weights: name of a parameter -> the number that fills it.
    """

    name: str
    answers: Mapping[str, str] | Callable[[Any, Batch], Answers]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, changes: Mapping[str, Any]) -> Made:
        """The same with more changes."""
        return dataclasses.replace(self, changes={**self.changes, **changes})


@dataclasses.dataclass(frozen=True)
class Together:
    """A value of a config field, and other fields that must change with it."""

    value: Any
    also: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Layers:
    """Where the outputs of each layer are.

    Attributes:
      theirs: our name of an encoder or fusion -> where the hidden states are in the model's output; or (model, batch) -> lists
        [L] of arrays by our names.
      normed: HuggingFace's last state is the one after the last norm.
      ours: (model, parameters, batch) -> the same of ours, where it is more than running a stack on the batch.
    """

    made: Made
    theirs: Mapping[str, str] | Callable[[Any, Batch], Mapping[str, list[Any]]]
    normed: bool = False
    ours: Callable[[Multimodal, Params, Batch], Mapping[str, list[Any]]] | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Older:
    """A folder as another version of `transformers` wrote it.

    Attributes:
      config: config.json as written now -> as it was then.
      tensors: (a model, the tensors of its file) -> what the file held then.
      usual: what `config` is compared with: HuggingFace's own reading must differ from its reading of this one. By default
        `config` means what it did before, and so do the answers.
      written: dotted field -> its value in config.json when we write the model back, which HuggingFace then reads alike.
    """

    made: Made
    config: Callable[[dict[str, Any]], dict[str, Any]] = dict
    tensors: Callable[[Any, dict[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda model, tensors: tensors
    usual: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    written: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Published:
    """A public checkpoint: its class, its config.json, its tensors' names and shapes, and how many numbers they hold."""

    name: str
    config: Mapping[str, Any]
    listed: Mapping[str, tuple[int, ...]]
    numbers: int = 0


def given(model: Any, batch: Batch, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of a HuggingFace model for a batch of ours; an image of another size than the config's is told."""
    takes = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {}
    for ours, theirs in ARGUMENTS.items():
        if ours in batch and theirs in takes and theirs not in without:
            x = np.moveaxis(batch[ours], -1, -3) if ours == "image" else np.asarray(batch[ours])
            whole = np.issubdtype(x.dtype, np.integer) or (x.dtype == bool and ours not in FLAGS)
            arguments[theirs] = torch.tensor(x.astype(np.int64) if whole else x)
    if "pixel_values" in arguments and "interpolate_pos_encoding" not in without:
        size = image_config(model.config).image_size
        if tuple(size if isinstance(size, (list, tuple)) else (size, size)) != tuple(arguments["pixel_values"].shape[-2:]):
            arguments["interpolate_pos_encoding"] = True
    return arguments


def image_config(config: Any) -> Any:
    """The config of the image tower."""
    return next((getattr(config, group) for group in ("vision_config", "image_config") if hasattr(config, group)), config)


def picture(config: Any, height: int = 0, width: int = 0) -> np.ndarray:
    """[3, height, width, channels]: pixels of the size and the channels that the config says."""
    own = image_config(config)
    size = own.image_size if isinstance(own.image_size, (list, tuple)) else (own.image_size, own.image_size)
    return PIXELS[:, : height or size[0], : width or size[1], : own.num_channels]


def words(low: int = 1, pad: int | None = None, high: int = WORDS) -> np.ndarray:
    """[3, 9] int32 ids, with the padding id where one is given and the mask says so."""
    ids = np.random.default_rng(0).integers(low, high, MASK.shape).astype(np.int32)
    return ids if pad is None else np.where(MASK, ids, np.int32(pad))


def answered(model: Multimodal, params: Params, batch: Batch, names: Any) -> Answers:
    """What our model says, by name."""
    known: dict[str, Any] = {}

    def tokens(name: str) -> Any:
        name, _, layer = name.partition(":")
        if layer:
            return tokens(name).tapped(layer, name)
        if name not in known and name in model.encoders:
            raw = {key: x for key, x in batch.items() if key.split("_")[0] == name}
            known[name] = part(encoded, model, params, (f"encoders.{name}",), raw, name=name)
        elif name not in known:
            taken = {modality: tokens(modality) for modality in model.fusions[name].modalities}
            known[name] = part(fused, model, params, (f"fusions.{name}",), taken, name=name)
        return known[name]

    def say(name: str) -> Any:
        if name in model.heads:
            head = model.heads[name]
            tied = (f"encoders.{head.tied_to}",) if getattr(head, "tied_to", "") else ()
            return part(headed, model, params, (f"heads.{name}", *tied), tokens(head.input), name=name)
        if name in model.decoders:
            text = (batch.get(name, batch["text"]), batch.get(f"{name}_mask", batch["text_mask"]))
            writes = model.decoders[name].writes
            written = dict(zip((writes, f"{writes}_mask"), text, strict=True))
            context = {source: tokens(source) for source in model.decoders[name].context}
            words_of = getattr(model.decoders[name], "words_of", "")
            read = (f"decoders.{name}", *[f"encoders.{words_of}"] * bool(words_of))
            return part(decoded, model, params, read, written, context, name=name)
        if name.startswith("tokens."):
            return tokens(name.removeprefix("tokens.")).embeddings
        dual = model.fusions["dual"]
        taken = {modality: tokens(modality) for modality in dual.pool}
        parts = ("fusions.dual", *[f"fusions.{first}" for first in dual.through.values()])
        return part(compared, model, params, parts, taken)[name]

    return {name: say(name) for name in names}


def encoded(model: Multimodal, params: Params, name: str, raw: Batch) -> Any:
    return bound(model, params, raw).encode(name)


def fused(model: Multimodal, params: Params, name: str, tokens: Mapping[str, Any]) -> Any:
    return bound(model, params, {}).fuse(name, tokens, key="x")


def headed(model: Multimodal, params: Params, name: str, tokens: Any) -> Any:
    return bound(model, params, {}).head(name, tokens, key="x")


def decoded(model: Multimodal, params: Params, name: str, written: Batch, context: Mapping[str, Any]) -> Any:
    return bound(model, params, {}).decode(name, written, context)


def compared(model: Multimodal, params: Params, tokens: Mapping[str, Any]) -> Answers:
    """Each modality's vector of unit length; of an image and a text all similarities, [images, texts]."""
    apply, forward = model.copy(dtype="float32").apply, bound(model, params, {})
    found = {f"unit.{m}": apply({"params": params}, "dual", m, own, method="embed") for m, own in tokens.items()}
    if {"image", "text"} <= tokens.keys():
        cosine = found["unit.image"] @ found["unit.text"].T
        scaled = forward.scalar("dual", "scale") * cosine
        found |= {"cosine": cosine, "scaled": scaled, "dual": scaled + forward.scalar("dual", "bias")}
    return found


def layered(model: Multimodal, params: Params, batch: Batch, name: str) -> list[Any]:
    """The outputs of each layer of an encoder on a batch, or of a fusion on what the encoders give."""
    if name in model.encoders:
        keys = {"": name} | {part: f"{name}_{part}" for part in ("mask", "segments", "keep")}
        return hidden_states(model, params, "encode", name, {part: batch[key] for part, key in keys.items() if key in batch})
    tokens = {modality: bound(model, params, batch).encode(modality) for modality in model.fusions[name].modalities}
    return hidden_states(model, params, "fuse", name, tokens)


def real_places(name: str, batch: Batch, length: int) -> np.ndarray | None:
    """Which of the first T places of an answer, or of a layer's output, count: [B, T] bool; None where all do."""
    return batch.get(f"{name}_mask", batch["text_mask"] if name in PER_WORD else None)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Case:
    """A family.

    Attributes:
      model_type: as in `mmjax.convert.FAMILIES`.
      sizes: the small config that all its models share.
      batch: a HuggingFace model -> a batch for it.
      models: those that are written back bit for bit and answer alike; every class is among them.
      honoured: models, and the config fields that are changed in them one at a time: the answers change, and alike.
      training: models, and config field -> (value, the leaves of our model that it sets): what acts in training alone.
      elsewhere: honoured fields that a test of the family's own is about.
      inherits: a case and a group of its config: every other honoured field is one of that group, and sets the same leaves.
      inert: config field -> a value that leaves HuggingFace's own answers as they were; by the models it is tried on.
      untried: inert fields of which no other value can be tried.
      refused: config field of which only some values are taken -> one that is not.
      mistakes: dotted changes of config.json -> (what they are, the line that refuses them).
      layers: see `Layers`; None where it is a test of the family's own.
      gradient: the model whose gradient is compared, of the weighted sum of its answers or of `loss`.
      loss: ((their model, batch) -> their loss, (our model, parameters, batch) -> ours).
      steps: whether to take an optimizer's step with that gradient as well.
      images: models, and (height, width) of images other than the config's.
      names: what else tensors may be called: label -> (model, (a HuggingFace model, its file) -> other tensors).
      older: label -> `Older`.
      published: public checkpoints.
      silent: arguments that HuggingFace's models are not given.
      ours: our model's answers.
      real: which places of them count, see `real_places`.
    """

    model_type: str
    sizes: Mapping[str, Any]
    batch: Callable[[Any], Batch]
    models: tuple[Made, ...]
    honoured: tuple[tuple[Made, Mapping[str, Any]], ...] = ()
    training: tuple[tuple[Made, Mapping[str, tuple[Any, tuple[str, ...]]]], ...] = ()
    elsewhere: tuple[str, ...] = ()
    inherits: tuple[Case, str] | None = None
    inert: tuple[tuple[Made, Mapping[str, Any]], ...] = ()
    untried: tuple[str, ...] = ()
    refused: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mistakes: tuple[tuple[Mapping[str, Any], str], ...] = ()
    layers: Layers | None = None
    gradient: Made | None = None
    loss: tuple[Callable[..., Any], Callable[..., Any]] | None = None
    steps: bool = False
    images: tuple[tuple[Made, tuple[tuple[int, int], ...]], ...] = ()
    names: Mapping[str, tuple[Made, Callable[[Any, dict[str, np.ndarray]], Mapping[str, Any]]]] = dataclasses.field(
        default_factory=dict
    )
    older: Mapping[str, Older] = dataclasses.field(default_factory=dict)
    published: tuple[Published, ...] = ()
    silent: tuple[str, ...] = ()
    ours: Callable[[Multimodal, Params, Batch, Any], Answers] = answered
    real: Callable[[str, Batch, int], np.ndarray | None] = real_places

    def make(self, made: Made) -> Any:
        """A random HuggingFace model, in eval mode."""
        kind, config = getattr(transformers, made.name), copy.deepcopy(dict(self.sizes))
        for field, value in made.changes.items():
            own, also = (value.value, value.also) if isinstance(value, Together) else (value, {})
            for path, setting in {field: own, **also}.items():
                put(config, path, copy.deepcopy(setting))
        model = randomise(kind(kind.config_class(**config)))
        with torch.no_grad():
            for name, value in made.weights.items():
                model.get_parameter(name).fill_(value)
        return model

    def theirs(self, made: Made, model: Any, batch: Batch) -> Answers:
        """What a HuggingFace model answers, by our names."""
        if callable(made.answers):
            return made.answers(model, batch)
        output = model(**given(model, batch, self.silent))
        return {ours: output[field] for ours, field in made.answers.items()}
