"""What a family of HuggingFace models is to us: a table of its config fields, a model for each of its classes, rows of tensors.

A family file holds data. Building our model from a config, writing a config for our model, and moving tensors either way are
done here and in `api`, the same for all.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmjax.convert.config_paths import MISSING, Config, get, get_leaf, parts, put, set_leaf, thaw
from mmjax.convert.layout import Row
from mmjax.convert.weights import Weights
from mmjax.core.config import children, has_children, leaves, replace
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import SpectrogramViT, WaveformTransformer
from mmjax.nn.stack import StackFields

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


@dataclasses.dataclass(frozen=True)
class Honoured:
    """A config field that the model holds.

    Attributes:
      default: what `transformers` takes where config.json lacks the field.
      paths: dotted paths of the model's leaves it sets; those of parts that this class of model lacks are passed over.
      names: HuggingFace's value -> ours, for values written otherwise; the first of several is the one written back.
      read, write: HuggingFace's value -> ours and back, where it is more than a name.
      kind: the type of its values, by a name in `config_json.KINDS`; "": that of the default. null is one where it is that.
    """

    default: Any
    paths: tuple[str, ...]
    names: Mapping[Any, Any] = dataclasses.field(default_factory=dict)
    read: Callable[[Any], Any] | None = None
    write: Callable[[Any], Any] | None = None
    kind: str = ""

    def ours(self, field: str, value: Any) -> Any:
        """Raises `UserError` for a value that the model cannot have."""
        if self.names:
            if value not in self.names:
                raise UserError(f"{field}={value!r} is not supported here; use one of {', '.join(map(repr, self.names))}")
            return self.names[value]
        return self.read(value) if self.read else value

    def theirs(self, value: Any, before: Any) -> Any:
        """The value to write; `before`, what the model came with, where that means the same."""
        if before is not None and self._same(before, value):
            return before
        if self.names:
            return next(theirs for theirs, ours in self.names.items() if ours == value)
        return self.write(value) if self.write else value

    def _same(self, before: Any, value: Any) -> bool:
        return (self.names.get(before) if self.names else self.read(before) if self.read else before) == value


@dataclasses.dataclass(frozen=True)
class Only:
    """A config field of which we can represent these values alone; any other is refused. The first is the default."""

    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Inert:
    """A config field that does not change what the model computes from its inputs, and why."""

    reason: str


# What `towers.same_class` says of a model of our own: a family to try, and that the ids of its tokenizer are not known.
UNSAID = frozenset({"model_type", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id"})
ConfigField = Honoured | Only | Inert

# Fields that every HuggingFace config has, none of which changes what a forward pass computes.
SHARED: dict[str, ConfigField] = {
    "architectures": Inert("names the class; it chooses among ours"),
    "model_type": Inert("names the family"),
    "transformers_version": Inert("who wrote the file"),
    "dtype": Inert("the weights' own dtype; kept for export"),
    "return_dict": Inert("the form of the output"),
    "output_hidden_states": Inert("the form of the output"),
    "output_attentions": Inert("the form of the output"),
    "id2label": Inert("names of classes; their number is the head's"),
    "label2id": Inert("names of classes"),
    "problem_type": Inert("chooses a loss; objectives do that here"),
    "chunk_size_feed_forward": Inert("the same numbers, computed in parts"),
    "is_encoder_decoder": Only((False,)),
    "initializer_range": Inert("only initialises"),
    "use_cache": Inert("speed of generation"),
    "bos_token_id": Inert("the tokenizer's"),
    "eos_token_id": Inert("the tokenizer's"),
    "sep_token_id": Inert("the tokenizer's"),
    "pad_token_id": Inert("the tokenizer's; padding is masked"),
}


@dataclasses.dataclass(frozen=True)
class Tie:
    """An output matrix that is the word table unless the files hold two that differ, whatever config.json says: `transformers`
    5 reads them so.

    Attributes:
      output, words: names of the two tensors, as the files of that class have them.
      fields: the flags of config.json that say it.
      always: the files alone decide, also where config.json says that it is not tied (ViLT).
    """

    output: str
    words: str
    fields: tuple[str, ...] = ("tie_word_embeddings",)
    always: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
      model_type: as config.json says it.
      models: HuggingFace class -> our model of that class, given the (completed) config; sizes in it do not matter where
        `fields` sets them.
      fields: every field of the HuggingFace config, dotted for nested ones (`text_config.hidden_size`).
      rows: our model and its HuggingFace class -> all its tensors.
      unread: our model and its HuggingFace class -> regular expressions of further tensors of that class that no forward pass
        reads (see `Row.copies` for the ones that have a shape to copy); they come back bit for bit.
      constants: parameters that HuggingFace has not, with the value that leaves them without effect.
      prefix: what comes before the names of the base model's tensors in the other classes' files ("bert.").
      renames: (regular expression, replacement), applied in order to names in files: what older or other versions wrote.
      modules: its HuggingFace class -> (regular expression, replacement), applied in order to names in files: what the modules
        that hold those tensors are called in memory, where that differs.
      beside: (end of a name, end), of tensors that files name beside the module which holds them (VideoMAE's biases).
      dropped: regular expressions of tensors in files that carry nothing (buffers, copies of tied tensors).
      complete: the config as read -> with the fields filled in that depend on others.
      observe: the config as read, the weights beside it -> with the fields that the weights overrule; None where none is.
      restore: the config of our model -> as HuggingFace has it, for what `complete` changed.
      derive: our model -> fields that follow from several of its leaves, for a model that came without them.
      aliases: other names that a file may give a field -> the name in `fields`.
      ties: see `Tie`; for models whose output matrix may be the word table.
      texts: the groups of config.json that say a tokenizer's ids, "" for its top; () for a family without texts.
      reads: what of a tokenizer's results its classes take, as `transformers` calls them.
      ends_with_sep: whether its classes end what they write with `sep_token_id` (BLIP).
      first_token: (config field, its default) of the token with which its classes begin what they write, over the tokenizer's
        first one, whose last they leave away (BLIP); None where a prompt stays as the tokenizer gives it.
      starts_apart: whether its classes are told by `decoder_start_token_id`, and what follows it, how a text begins (Whisper).
      pools_at_end: whether its classes find a text's vector by `eos_token_id` (CLIP).
      any_size: whether its classes resize positions to the image they are given, whatever `image_size` says.
    """

    model_type: str
    models: Mapping[str, Callable[[Config], Multimodal]]
    fields: Mapping[str, ConfigField]
    rows: Callable[[Multimodal, str], list[Row]]
    unread: Callable[[Multimodal, str], tuple[str, ...]] = lambda model, architecture: ()
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    modules: Callable[[str], tuple[tuple[str, str], ...]] = lambda architecture: ()
    beside: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    complete: Callable[[Config], Config] = lambda config: config
    observe: Callable[[Config, Weights], Config] | None = None
    restore: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
    derive: Callable[[Multimodal], Config] = lambda model: {}
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ties: tuple[Tie, ...] = ()
    texts: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("input_ids", "attention_mask")
    ends_with_sep: bool = False
    first_token: tuple[str, int] | None = None
    starts_apart: bool = False
    pools_at_end: bool = False
    any_size: bool = False

    def shared(self, field: str) -> ConfigField | None:
        """What a field means wherever in a config it stands; None where that depends on the place."""
        return SHARED.get(field)

    def module_rows(self, model: Multimodal, architecture: str) -> list[Row]:
        """`rows`, each named by the module that holds it."""
        rows = self.rows(model, architecture)
        for end, other in self.beside:
            own = [row.theirs.removesuffix(end) + other if row.theirs.endswith(end) else row.theirs for row in rows]
            rows = [dataclasses.replace(row, theirs=name) for row, name in zip(rows, own, strict=True)]
        return rows

    def table(self) -> dict[str, ConfigField]:
        """Every config field, the shared ones included."""
        return {**SHARED, **self.fields}

    def build(self, config: Config, architecture: str) -> Multimodal:
        """Our model for a config.json of this family.

        Raises:
          UserError: a class or a value that we cannot represent exactly, by the field's name.
        """
        if architecture not in self.models:
            known = ", ".join(self.models)
            raise UserError(f"architectures={architecture!r} is not supported for {self.model_type}; there are {known}")
        config = self.complete(config)
        model = self.models[architecture](config)
        for name, field in self.table().items():
            if isinstance(field, Inert):
                continue
            value = get(config, name, field.values[0] if isinstance(field, Only) else field.default)
            if isinstance(field, Only):
                if value not in field.values:
                    allowed = " or ".join(repr(v) for v in field.values)
                    raise UserError(f"{name}={value!r} is not supported by {self.model_type} here; it must be {allowed}")
                continue
            for path in field.paths:
                model = set_leaf(model, path, field.ours(name, value))
        return model

    def config(self, model: Multimodal) -> dict[str, Any]:
        """The config.json of our model: the fields that it holds, over those it came with."""
        config: dict[str, Any] = thaw(model.huggingface)
        config["model_type"] = self.model_type
        if model.huggingface.keys() <= UNSAID:
            config |= self.derive(model)
        _name_labels(config, model)
        for name, field in self.table().items():
            if isinstance(field, Honoured):
                found = [get_leaf(model, path) for path in field.paths]
                held = [value for value in found if value is not MISSING]
                if held:
                    put(config, name, thaw(field.theirs(held[0], get(config, name, None))))
        return self.restore(config)

    def architecture(self, model: Multimodal) -> str:
        """The HuggingFace class that has this model's parts.

        Raises:
          UserError: no class has.
        """
        came_from = (model.huggingface.get("architectures") or ("",))[0]
        config = self.complete(self.config(model))
        own = parts(model)
        known = dict.fromkeys(name for name in (came_from, *self.models) if name in self.models)
        same = []
        for name in known:
            with contextlib.suppress(UserError):  # of a class that this config could not be of
                same += [name] if parts(self.models[name](config)) == own else []
        for name in same if len(same) > 1 else ():  # several: the one that is this very model (LLaVA's with logits, or without)
            with contextlib.suppress(UserError):
                check_exact(self, explicit(model), self.config(model) | {"architectures": [name]}, name)
                return name
        if same:
            return same[0]
        raise UserError(
            f"no HuggingFace class of {self.model_type} has exactly these parts: {', '.join(sorted(own))}; "
            f"there are {', '.join(self.models)}"
        )


# What an exported model may differ in from the one its config.json builds: it changes no output. What `max_scale` holds a scale
# at is written as the scale.
FREE = (
    *("unroll", "remat", "writes", "scale_init", "bias_init", "max_scale", "norm_momentum"),
    *("dropout", "embed_dropout", "attention_dropout", "project_dropout", "mlp_dropout", "final_dropout", "drop_path"),
)
OUTSIDE = ("huggingface", "augment", "unread", "dtype")
# Of encoders of sounds, what the file of the feature extractor says in its stead (`convert.sounds`).
BESIDE: dict[type, tuple[str, ...]] = {
    SpectrogramViT: tuple(f"spectrogram.{name}" for name in ("rate", "fmax", "mean", "deviation")),
    WaveformTransformer: ("rate", "normalise"),
}


def check_exact(family: Family, model: Multimodal, config: Config, architecture: str) -> None:
    """That config.json builds this very model again.

    Raises:
      UserError: a leaf in which they differ, by its path: no such HuggingFace class has it.
    """
    for misfit in misfits(family, model, config, architecture):
        raise UserError(misfit)


def misfits(family: Family, model: Multimodal, config: Config, architecture: str) -> Iterator[str]:
    """A line for each part, then for each leaf, in which a model differs from the one that config.json builds."""
    built = explicit(family.build(config, architecture))
    for room in ("encoders", "fusions", "decoders", "heads"):
        for name, part in getattr(model, room).items():
            there = type(getattr(built, room).get(name)).__name__
            if type(part).__name__ != there:  # the fields of one may be among those of the other
                yield f"model.{room}.{name} is a {type(part).__name__}, and {architecture} has {there} there"
    rebuilt, own = leaves(built), leaves(model)
    beside = {f"encoders.{name}.{leaf}" for name, part in model.encoders.items() for leaf in BESIDE.get(type(part), ())}
    for path, value in own.items():
        if path.split(".")[0] in OUTSIDE or path.split(".")[-1] in FREE or path in beside:
            continue
        if path not in rebuilt or rebuilt[path] != value:
            there = rebuilt.get(path, "nothing")
            yield f"model.{path}={value!r} has no place in {architecture}, which has {there!r}"


def explicit(model: Any) -> Any:
    """The model with what follows from other fields (0 or None in it) written out, as config.json needs it."""
    for name, child in children(model).items():
        if has_children(child):
            model = replace(model, name, explicit(child))
    if isinstance(model, StackFields):
        model = replace(model, "mlp_width", model.mlp_width or 4 * model.width)
        if getattr(model, "positions", "") == "relative":  # of a family whose config says the width of heads apart
            model = replace(model, "head_width", model.head_width or model.width // model.heads)
        for name, stands_for in (("mlp_bias", "bias"), ("embed_dropout", "dropout")):
            if getattr(model, name, 0) is None:
                model = replace(model, name, getattr(model, stands_for))
    return model


def _name_labels(config: dict[str, Any], model: Multimodal) -> None:
    """Names of as many classes as the head has: those it came with, else LABEL_0 and so on."""
    for head in ("classes", "token_classes", "spans"):
        if head in model.heads:
            count = model.heads[head].classes
            if len(config.get("id2label") or {0: "", 1: ""}) != count:
                config["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
                config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
