"""Prompts and prefixes in a peft folder: one tensor `prompt_embeddings`, and beside it the modules that are trained whole.

    PROMPT_TUNING   [n, D]                   the virtual tokens before a text
    PREFIX_TUNING   [n, L * 2 * (G K)]       of layer i the keys at 2 i, and the values at 2 i + 1 (G heads of keys)

A module beside them has the name that the model itself gives it after `base_model.`; a classifier's head is always there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.adapt import Prefix, Prompt, is_adapter
from mmjax.adapt.places import TABLE, Place, places_of
from mmjax.convert.layout import Row
from mmjax.convert.peft.beside import whole_modules
from mmjax.convert.peft.tensors import Adapter
from mmjax.core.errors import UserError
from mmjax.models import Multimodal

PROMPT, PREFIX = "PROMPT_TUNING", "PREFIX_TUNING"
VIRTUAL = (PROMPT, PREFIX, "P_TUNING")  # whose file holds what its network makes of it: it is read as a prompt
SLOTS = {"prompt": PROMPT, "prefix": PREFIX}  # of methods (`adapt.method`)
LEAVES = {"prompt_tokens": PROMPT, "prompt_room": PROMPT, "prefix_keys": PREFIX}
FIRST = "base_model."  # before the name of every module beside one
EMBEDDINGS = "prompt_embeddings"
HEADS = ("classifier", "score")  # which peft trains beside a prompt of a class that classifies, asked or not
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "LMHeadModel": "CAUSAL_LM",
    "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "CAUSAL_LM",
}
# What classes begin with that take embeddings in place of ids, and those that take keys from outside. In the others peft 0.21
# finds no words (BLIP, LlavaModel, FLAVA's pretraining), or they take nothing but ids (CLIP, SigLIP).
PROMPTED = ("Bert", "Roberta", "GPT2", "Llama", "LlavaForConditionalGeneration", "Vilt")
PREFIXED = ("Bert", "Roberta", "GPT2", "Llama", "Llava")


def task_of(architecture: str) -> str:
    """peft's name of what a class does."""
    return next((task for end, task in TASKS.items() if architecture.endswith(end)), "FEATURE_EXTRACTION")


def kinds_of(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Path of a prompt's leaf, or of a prefix's keys -> peft's name of the method."""
    named = {path: LEAVES.get(path.rpartition("/")[2]) for path in leaves if is_adapter(path)}
    return {path: kind for path, kind in named.items() if kind is not None}


def check_virtual(architecture: str, kinds: Mapping[str, str], after: int = 0) -> None:
    """Raises UserError unless peft has a place for these, given by the paths of their leaves, or of what those lie beside.

    Args:
      after: how many tokens come before a prompt.
    """
    path, kind = next(iter(kinds.items()))
    classifies = architecture.endswith(("ForSequenceClassification", "ForTokenClassification"))
    if len(kinds) > 1:
        reason = f"{', '.join(kinds)} are several, and a folder holds one"
    elif path.startswith("encoders_image/"):
        reason = f"{path} is of an image, and peft has them for texts"
    elif after:
        reason = f"{path} stands after {after} of a text's tokens, and peft's before all"
    elif not architecture.startswith(PROMPTED if kind == PROMPT else PREFIXED):
        reason = f"{kind} of this class fails there, or is not proven here"
    elif kind == PREFIX and classifies:
        reason = "its classifiers take no prefix: none of their forward passes has past_key_values"
    else:
        return
    raise UserError(
        f"{architecture}: peft has no place for it: {reason}. The run itself answers, evaluates and goes on with it"
    )


def virtual(model: Multimodal, architecture: str, rows: Sequence[Row], leaves: Mapping[str, Any], trained: set[str]) -> Adapter:
    """The prompt or the prefix of a model, and what was trained beside it.

    Raises:
      UserError: as `check_virtual`; a word table that is trained beside its prompt; what peft has no place for.
    """
    kinds = kinds_of(leaves)
    (path, kind), room = next(iter(kinds.items())), next(iter(kinds)).rpartition("/")[0]
    after = leaves[f"{room}/prompt_place"].shape[0] - 1 if f"{room}/prompt_place" in leaves else 0
    check_virtual(architecture, kinds, after)
    if f"{room}/table" in trained:
        raise UserError(f"{room}/table is trained beside its prompt, and peft keeps the words that a prompt began beside")
    field, name = path.split("/")[0].split("_", 1)
    tower = getattr(model, field)[name]
    layers = tower.depth or model.huggingface["num_hidden_layers"]  # of ViLT's words those that a fusion has
    if kind == PROMPT:
        x = np.asarray(leaves[path], np.float32)
        heads = tower.heads if tower.depth else model.huggingface["num_attention_heads"]
        width = x.shape[1]
    else:
        both = (np.asarray(leaves[f"{room}/prefix_{name}"], np.float32) for name in ("keys", "values"))
        x_nL2GK = np.stack(list(both)).transpose(2, 1, 0, 3, 4)
        x, heads = x_nL2GK.reshape(x_nL2GK.shape[0], -1), x_nL2GK.shape[3]
        width = heads * x_nL2GK.shape[4]
    task = task_of(architecture)
    always = HEADS if task in ("SEQ_CLS", "TOKEN_CLS") else ()
    whole = whole_modules(rows, leaves, trained, architecture, always)
    saved = list(dict.fromkeys(name.split(".")[0] if name.split(".")[0] in always else name for name in whole))
    fields: dict[str, Any] = {
        "peft_type": kind,
        "task_type": task,
        "num_virtual_tokens": x.shape[0],
        "token_dim": width,
        "num_layers": layers,
        "num_attention_heads": heads,
        "num_transformer_submodules": 1,
        "modules_to_save": saved or None,
    }
    own = {"prompt_tuning_init": "RANDOM"} if kind == PROMPT else {"prefix_projection": False, "encoder_hidden_size": width}
    return Adapter({"": {EMBEDDINGS: np.ascontiguousarray(x)}, **whole}, fields | own)


def place_virtual(
    folder: Path, config: Mapping[str, Any], x: np.ndarray, model: Multimodal, leaves: dict[str, Any]
) -> dict[str, Any]:
    """Put a prompt or a prefix where it belongs; pattern -> method.

    Raises:
      UserError: a model of no text, or of several; numbers of another base; of an encoder and a decoder at once.
    """
    if config.get("num_transformer_submodules") not in (None, 1):
        number = config["num_transformer_submodules"]
        raise UserError(f"{folder}: num_transformer_submodules={number!r} is not supported here; it must be 1")
    places = places_of(model)
    towers = [place for place in places.values() if place.entry and place.kind == TABLE]
    if len(towers) != 1:
        raise UserError(f"{folder}: a prompt or a prefix is of a model of one text, and this base has {len(towers)}")
    prompt = config["peft_type"] != PREFIX
    place = towers[0] if prompt else _keys(folder, towers[0], places)
    wanted = place.outputs[0] if prompt else 2 * place.layers * int(np.prod(place.outputs))
    if x.ndim != 2 or x.shape[1] != wanted:
        raise UserError(
            f"{folder}: {EMBEDDINGS} has shape {x.shape}, and {place.path} of this base takes [n, {wanted}]: it is another's"
        )
    if prompt:
        leaves |= {f"{place.room}/prompt_tokens": jnp.asarray(x), f"{place.room}/prompt_place": jnp.ones(1, jnp.float32)}
        return {place.path: Prompt(len(x))}
    x_nL2GK = x.reshape(len(x), place.layers, 2, *place.outputs)
    for n, name in enumerate(("keys", "values")):
        leaves[f"{place.room}/prefix_{name}"] = jnp.asarray(np.ascontiguousarray(x_nL2GK[:, :, n].swapaxes(0, 1)))
    return {place.path: Prefix(len(x))}


def _keys(folder: Path, tower: Place, places: Mapping[str, Place]) -> Place:
    """The kernel of keys of a text tower."""
    path = f"{tower.path.split('/')[0]}/stack/layers/attention/k/kernel"
    if path not in places:
        raise UserError(f"{folder}: a prefix is of a tower with layers, and {tower.room} has none of its own")
    return places[path]
