"""CLIP (Radford et al. 2021): both towers, each tower alone (with and without its projection), image classification.

The two towers meet in `fusions.dual`, whose scale has no upper bound, as in HuggingFace's forward pass. A tower alone has its
vector as a head: `projection`, or `pooler` where there is no projection.

HuggingFace pools a text at its end token, which it finds by id (the largest id where `eos_token_id` is 2, else the first
`eos_token_id`). We pool the last token that the mask calls real. The two agree on what CLIP's tokenizer gives: the end token
comes last, and the mask hides whatever pads after it. A text without a mask must end in its end token.

The functions here are also the towers of the models that were built from CLIP's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert
from mmjax.convert.layout import Patches, Row, Table, Vector, linear, norm, table
from mmjax.convert.vit import whole_patches
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.models.heads import Classifier

# Where a config field of a tower is in our encoder.
PLACES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_length",
    "num_channels": "channels",
    "image_size": "image_size",
    "patch_size": "patch",
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_epsilon",
    "attention_dropout": "attention_dropout",
}
TEXT = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
VISION = {
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
INITIAL: dict[str, ConfigField] = {
    "initializer_range": Inert("only initialises"),
    "initializer_factor": Inert("only initialises"),
}
END: dict[str, ConfigField] = {"eos_token_id": Inert("the mask says where a text ends")}


def tower_fields(
    encoder: str, defaults: Mapping[str, Any], also: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, ConfigField]:
    """The config fields of a tower, set in `encoders.<encoder>`.

    Args:
      defaults: field -> what `transformers` takes where it is not given; its keys are the fields.
      also: field -> further dotted paths that it sets.
    """
    fields: dict[str, ConfigField] = {}
    for name, default in defaults.items():
        paths = (f"encoders.{encoder}.{PLACES[name]}", *(also or {}).get(name, ()))
        if name in ("image_size", "patch_size"):
            fields[name] = Honoured(default, paths, read=partial(_square, name), write=partial(_side, name), kind="wholes")
        else:
            fields[name] = Honoured(default, paths, ACTIVATIONS if name == "hidden_act" else {})
    return fields


def nested(group: str, fields: Mapping[str, ConfigField]) -> dict[str, ConfigField]:
    """The same fields inside `group` of a config: `text_config.hidden_size`."""
    return {f"{group}.{name}": field for name, field in fields.items()}


def _square(field: str, side: Any) -> tuple[int, int]:
    if not isinstance(side, int):
        raise UserError(f"{field}={side!r} is not supported here: give one number, as HuggingFace's class needs")
    return side, side


def _side(field: str, size: tuple[int, int]) -> int:
    if size[0] != size[1]:
        raise UserError(f"{field}={tuple(size)}: HuggingFace's class has squares only; make both sides equal")
    return size[0]


def vision() -> ViT:
    """CLIP's image tower; its sizes come from the config."""
    return ViT(patch_bias=False, cls_token=True, embed_norm=True)


def text() -> TextTransformer:
    """CLIP's text tower; its sizes come from the config."""
    return TextTransformer(causal=True)


def layers(theirs: str, ours: str, depth: int) -> list[Row]:
    """The rows of a stack of CLIP's layers: `theirs.{l}....` <-> `ours/layers/...`."""
    t, o = f"{theirs}.{{l}}", f"{ours}/layers"
    rows: list[Row] = []
    for short in ("q", "k", "v"):
        rows += linear(f"{t}.self_attn.{short}_proj", f"{o}/attention/{short}", depth=depth)
    rows += linear(f"{t}.self_attn.out_proj", f"{o}/attention/out", axes=2, depth=depth)
    rows += norm(f"{t}.layer_norm1", f"{o}/attention_norm", depth=depth)
    rows += linear(f"{t}.mlp.fc1", f"{o}/mlp/up", depth=depth)
    rows += linear(f"{t}.mlp.fc2", f"{o}/mlp/down", depth=depth)
    return rows + norm(f"{t}.layer_norm2", f"{o}/mlp_norm", depth=depth)


def text_rows(theirs: str, encoder: TextTransformer, ours: str = "encoders_text") -> list[Row]:
    """The rows of a text tower: `theirs` + `embeddings....`, `encoder....`, `final_layer_norm` <-> `ours/...`."""
    return [
        *table(f"{theirs}embeddings.token_embedding.weight", f"{ours}/words"),
        *table(f"{theirs}embeddings.position_embedding.weight", f"{ours}/position"),
        *layers(f"{theirs}encoder.layers", f"{ours}/stack", encoder.depth),
        *norm(f"{theirs}final_layer_norm", f"{ours}/stack/final_norm"),
    ]


def vision_rows(theirs: str, encoder: ViT, ours: str = "encoders_image") -> list[Row]:
    """The rows of an image tower: `theirs` + `embeddings....`, `encoder....` <-> `ours/...`; of the class token, the patches'
    bias and the first and last norms those that the encoder has."""
    patches = Patches(encoder.patch, encoder.channels)
    rows = [Row(f"{theirs}embeddings.patch_embedding.weight", (f"{ours}/project_patches/kernel",), patches)]
    if encoder.patch_bias:
        rows.append(Row(f"{theirs}embeddings.patch_embedding.bias", (f"{ours}/project_patches/bias",), Vector()))
    if encoder.cls_token:
        rows.append(Row(f"{theirs}embeddings.class_embedding", (f"{ours}/cls",), Vector()))
    rows += table(f"{theirs}embeddings.position_embedding.weight", f"{ours}/position")
    if encoder.embed_norm:
        rows += norm(f"{theirs}pre_layrnorm", f"{ours}/embed_norm")
    rows += layers(f"{theirs}encoder.layers", f"{ours}/stack", encoder.depth)
    return rows + (norm(f"{theirs}post_layernorm", f"{ours}/stack/final_norm") if encoder.final_norm else [])


def complete(config: Config) -> Config:
    """Where an old file has `text_config_dict` or `vision_config_dict`, it and its defaults replace the group beside it.

    Raises:
      UserError: a patch that does not divide the image.
    """
    old = {group: config.get(f"{group}_dict") for group in ("text_config", "vision_config")}
    config = {**config, **{group: held for group, held in old.items() if held is not None}}
    whole_patches(VISION | dict(config.get("vision_config") or {}))
    return config


def drop_old_groups(config: dict[str, Any], fields: Mapping[str, ConfigField]) -> dict[str, Any]:
    """A config to be written, without the old groups: of those that replaced a group, what our model does not hold moves there
    (`eos_token_id`, by which HuggingFace's model finds a text's end)."""
    kept = {name: value for name, value in config.items() if not name.endswith("_config_dict")}
    for name, held in config.items():
        group = name.removesuffix("_dict")
        if name.endswith("_config_dict") and held is not None:
            written = (kept.get(group) or {}).items()
            kept[group] = {**held, **{n: x for n, x in written if isinstance(fields.get(f"{group}.{n}"), Honoured)}}
    return kept


def _both(config: Config) -> Multimodal:
    dual = Dual(pool={"image": "cls", "text": "last"}, max_scale=0.0)
    return Multimodal(encoders={"image": vision(), "text": text()}, fusions={"dual": dual})


def _classes(config: Config) -> Multimodal:
    # The mean of the patches, before the last norm: the file holds that norm, and nothing reads it.
    head = Classifier(classes=labels(config), input="image", pool="rest")
    return Multimodal(encoders={"image": vision().copy(final_norm=False)}, heads={"classes": head})


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    rows = vision_rows("vision_model.", model.encoders["image"])
    if architecture == "CLIPForImageClassification":
        unread = {f"vision_model.pre_layrnorm.{part}": f"vision_model.post_layernorm.{part}" for part in ("weight", "bias")}
        rows = [dataclasses.replace(row, copies=(unread[row.theirs],)) if row.theirs in unread else row for row in rows]
        return rows + linear("classifier", "heads_classes/logits")
    return [
        *rows,
        *text_rows("text_model.", model.encoders["text"]),
        *linear("visual_projection", "fusions_dual/project_image", bias=False),
        *linear("text_projection", "fusions_dual/project_text", bias=False),
        Row("logit_scale", ("fusions_dual/scale_logit",), Table()),
    ]


OWN: dict[str, ConfigField] = {"projection_dim": Inert("the model's own is used")}
FIELDS: dict[str, ConfigField] = {
    **nested("text_config", tower_fields("text", TEXT) | INITIAL | END | OWN),
    **nested("vision_config", tower_fields("image", VISION) | INITIAL | OWN),
    "projection_dim": Honoured(512, ("fusions.dual.width",)),
    "logit_scale_init_value": Inert("only initialises"),
    "initializer_factor": Inert("only initialises"),
}
CLIP = Family(
    model_type="clip",
    texts=("text_config",),
    pools_at_end=True,
    models={"CLIPModel": _both, "CLIPForImageClassification": _classes},
    fields=FIELDS,
    rows=_rows,
    constants={"fusions_dual/bias_logit": 0.0},
    dropped=(r"embeddings\.position_ids$", r"^vision_model\.post_layernorm\."),
    complete=complete,
    restore=partial(drop_old_groups, fields=FIELDS),
)


def _whole(config: Config) -> Config:
    whole_patches(VISION | dict(config))
    return config


def _alone(modality: str, encoder: Any, pool: str, projected: bool) -> Multimodal:
    """A tower and its vector [B, E] or [B, D], not of unit length."""
    head = Classifier(classes=int(projected), input=modality, pool=pool, bias=False)
    return Multimodal(encoders={modality: encoder}, heads={"projection" if projected else "pooler": head})


def _text_alone(model: Multimodal, architecture: str) -> list[Row]:
    encoder = model.encoders["text"]
    if architecture == "CLIPTextModel":
        return text_rows("", encoder)
    return text_rows("text_model.", encoder) + linear("text_projection", "heads_projection/logits", bias=False)


def _vision_alone(model: Multimodal, architecture: str) -> list[Row]:
    encoder = model.encoders["image"]
    if architecture == "CLIPVisionModel":
        return vision_rows("", encoder)
    return vision_rows("vision_model.", encoder) + linear("visual_projection", "heads_projection/logits", bias=False)


PROJECTION: dict[str, ConfigField] = {"projection_dim": Honoured(512, ("heads.projection.classes",))}
CLIP_TEXT = Family(
    model_type="clip_text_model",
    texts=("",),
    pools_at_end=True,
    models={
        "CLIPTextModelWithProjection": lambda _: _alone("text", text(), "last", True),
        "CLIPTextModel": lambda _: _alone("text", text(), "last", False),
    },
    fields=tower_fields("text", TEXT) | INITIAL | END | PROJECTION,
    rows=_text_alone,
    prefix="text_model.",
    dropped=(r"embeddings\.position_ids$",),
)
CLIP_VISION = Family(
    model_type="clip_vision_model",
    models={
        "CLIPVisionModelWithProjection": lambda _: _alone("image", vision(), "cls", True),
        "CLIPVisionModel": lambda _: _alone("image", vision(), "cls", False),
    },
    fields=tower_fields("image", VISION) | INITIAL | PROJECTION,
    complete=_whole,
    rows=_vision_alone,
    prefix="vision_model.",
    dropped=(r"embeddings\.position_ids$",),
)
