"""A config.json held against its family's table before anything is made of it: wrong types, and fields unknown to us."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmjax.convert.config_paths import get
from mmjax.convert.family import Config, ConfigField, Family, Honoured
from mmjax.core.errors import UserError

# Of every config that some version of `transformers` wrote: who wrote it, how outputs are wrapped, how it generates or trains.
# None of them changes what a forward pass computes. The last are BERT's and ViLT's of old, which no class here reads.
_SILENT = """
_name_or_path _commit_hash _attn_implementation _attn_implementation_internal _attn_implementation_autoset
_experts_implementation_internal _output_attentions attn_implementation torch_dtype torchscript use_bfloat16
tf_legacy_loss transformers_version transformers.js_config finetuning_task task_specific_params prefix pruned_heads
tokenizer_class num_labels gradient_checkpointing output_past n_ctx use_return_dict max_length min_length do_sample
early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
suppress_tokens begin_suppress_tokens decoder_start_token_id directionality pooler_fc_size pooler_num_attention_heads
pooler_num_fc_layers pooler_size_per_head pooler_type pooler_hidden_size
"""
SILENT = frozenset(_SILENT.split())
# Those that an encoder-decoder would read, and that are off in every model of ours.
OFF = {"cross_attention_hidden_size": None, "tie_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wholes(value: Any) -> bool:
    return _whole(value) or (isinstance(value, list | tuple) and len(value) > 0 and all(map(_whole, value)))


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "flag": (lambda value: isinstance(value, bool), "true or false"),
    "whole": (_whole, "a whole number"),
    "wholes": (_wholes, "a whole number, or a list of them"),
    "number": (_number, "a number"),
    "word": (lambda value: isinstance(value, str), "a text"),
    "words": (lambda value: isinstance(value, list | tuple) and all(isinstance(x, str) for x in value), "a list of texts"),
    "object": (lambda value: isinstance(value, Mapping), "an object"),
    "any": (lambda value: True, "anything"),  # where the family says better what is wrong
}
BY_DEFAULT = {bool: "flag", int: "whole", float: "number", str: "word"}
# Read here and there beside the family's table; all may be null.
EVERYWHERE = {
    "architectures": "words",
    "id2label": "object",
    "label2id": "object",
    "num_labels": "whole",
    "dtype": "word",
    "torch_dtype": "word",
    "partial_rotary_factor": "number",
}


def kind_of(field: ConfigField) -> str:
    """The name of the type that a field's values have, "" where any may be tried."""
    if not isinstance(field, Honoured):
        return ""
    return field.kind or BY_DEFAULT.get(type(field.default), "")


def check_types(family: Family, config: Config) -> None:
    """Raises `UserError` for a field of the wrong type, by its name and with its value."""
    table = family.table()
    for name in {way for path in table for way in _groups(path)}:
        for said in (name, f"{name}_dict"):
            if said in config and config[said] is not None and not isinstance(config[said], Mapping):
                raise _wrong(family, said, config[said], "object")
    for name, value in _said(config, table):
        field = table.get(family.aliases.get(name, name))
        kind = EVERYWHERE.get(name, "") or (kind_of(field) if field is not None else "")
        may_be_null = name in EVERYWHERE or getattr(field, "default", None) is None
        if kind and not KINDS[kind][0](value) and not (value is None and may_be_null):
            raise _wrong(family, name, value, kind)
    names = config.get("id2label") or {}
    if not all(str(key).isdigit() for key in names):
        raise UserError(f"id2label={names!r} is not supported by {family.model_type} here; its keys must be whole numbers")


def unknown_fields(family: Family, config: Config) -> list[str]:
    """Fields that say something, of which this family's table says nothing."""
    table = family.table()
    known = {*table, *family.aliases, *EVERYWHERE, *{way for path in table for way in _groups(path)}}
    found = []
    for name, value in _said(config, table):
        last = name.rsplit(".", 1)[-1]
        silent = last in SILENT or (last in OFF and value == OFF[last]) or value is None or name.startswith("_")
        if not silent and name not in known and last not in EVERYWHERE and family.shared(last) is None:
            found.append(name)
    return found


def _said(config: Config, table: Mapping[str, ConfigField]) -> Iterator[tuple[str, Any]]:
    """Every field of a config with its value: those of the groups that the table opens, and of the old form of a group
    (`text_config_dict`), under the group's name."""
    groups = {way for path in table for way in _groups(path)}
    for name, value in config.items():
        group = name.removesuffix("_dict") if name.endswith("_config_dict") else name
        if group in groups and isinstance(value, Mapping) and group not in table:
            yield from ((f"{group}.{inner}", held) for inner, held in value.items())
            continue
        if group == name or value is not None:
            yield group, value
    for path in table:  # of a field that is an object, and has fields of its own
        group, _, last = path.rpartition(".")
        held = get(config, group, None) if group in table else None
        if isinstance(held, Mapping) and last in held:
            yield path, held[last]


def _groups(path: str) -> list[str]:
    way = path.split(".")[:-1]
    return [".".join(way[: n + 1]) for n in range(len(way))]


def _wrong(family: Family, name: str, value: Any, kind: str) -> UserError:
    shown = json.dumps(value, default=repr)
    shown = shown if len(shown) < 80 else f"{shown[:76]} ..."
    return UserError(f"{name}={shown} is not supported by {family.model_type} here; it must be {KINDS[kind][1]}")
