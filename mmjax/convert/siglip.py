"""SigLIP (Zhai et al. 2023) and, at a fixed resolution, SigLIP 2 (Tschannen et al. 2025): both towers, image classification.

The two towers meet in `fusions.dual`, whose scale has no upper bound: the published one is near 117. A text is pooled at its
last position, and padding counts as real: pad every text to the model's `max_length`, as HuggingFace's processor does.

Image classification averages the patches. Its files still hold the pooling head, which nothing reads; it is kept as a `dual` of
the image alone.
"""

from __future__ import annotations

from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.clip import nested, text_rows, tower_fields, vision_rows
from mmjax.convert.config_paths import get
from mmjax.convert.family import Config, Family, Honoured, Inert
from mmjax.convert.layout import Linear, Row, Table, Vector, linear, norm
from mmjax.convert.vit import whole_patches
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.models.heads import Classifier

STACK = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
TEXT = {"vocab_size": 32000, "max_position_embeddings": 64} | STACK
VISION = {"num_channels": 3, "image_size": 224, "patch_size": 16} | STACK
POOLING = {
    "hidden_size": ("fusions.dual.width",),
    "num_attention_heads": ("fusions.dual.heads",),
    "intermediate_size": ("fusions.dual.mlp_width",),
    "hidden_act": ("fusions.dual.activation",),
    "layer_norm_eps": ("fusions.dual.norm_epsilon",),
}


def complete(config: Config) -> Config:
    """The text's projection is as wide as its tower where config.json does not say.

    Raises:
      UserError: a patch that does not divide the image.
    """
    text: dict[str, Any] = dict(config.get("text_config") or {})
    whole_patches(VISION | dict(config.get("vision_config") or {}))
    width = text.get("projection_size") or text.get("hidden_size", TEXT["hidden_size"])
    return {**config, "text_config": {**text, "projection_size": width}}


def _both(config: Config) -> Multimodal:
    text, image = config["text_config"]["projection_size"], get(config, "vision_config.hidden_size", VISION["hidden_size"])
    if text != image:
        raise UserError(f"text_config.projection_size={text} must be vision_config.hidden_size={image}: the towers do not meet")
    if not get(config, "vision_config.vision_use_head", True):
        raise UserError("vision_config.vision_use_head=False is not supported by SiglipModel: an image then has no vector")
    dual = Dual(pool={"image": "attention", "text": "last"}, project=("text",), bias=True, bias_init=-10.0, max_scale=0.0)
    return Multimodal(encoders={"image": ViT(), "text": TextTransformer(mask_padding=False)}, fusions={"dual": dual})


def _classes(config: Config) -> Multimodal:
    unread = get(config, "vision_config.vision_use_head", True)
    return Multimodal(
        encoders={"image": ViT()},
        fusions={"dual": Dual(pool={"image": "attention"}, project=(), scale_init=1.0, max_scale=0.0)} if unread else {},
        heads={"classes": Classifier(classes=labels(config), input="image", pool="mean")},
    )


def pooling_rows(theirs: str, ours: str) -> list[Row]:
    """The rows of the attention pooling of an image: `theirs.attention....` <-> `ours/attention/...`."""
    qkv = [f"{ours}/attention/{short}" for short in ("q", "k", "v")]
    return [
        Row(f"{theirs}.probe", (f"{ours}/probe",), Table(lead=1)),
        Row(f"{theirs}.attention.in_proj_weight", tuple(f"{each}/kernel" for each in qkv), Linear()),
        Row(f"{theirs}.attention.in_proj_bias", tuple(f"{each}/bias" for each in qkv), Vector()),
        *linear(f"{theirs}.attention.out_proj", f"{ours}/attention/out", axes=2),
        *norm(f"{theirs}.layernorm", f"{ours}/norm"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    ]


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    rows = vision_rows("vision_model.", model.encoders["image"])
    if "dual" in model.fusions:
        rows += pooling_rows("vision_model.head", "fusions_dual/pools_image")
    if architecture == "SiglipForImageClassification":
        return rows + linear("classifier", "heads_classes/logits")
    return [
        *rows,
        *text_rows("text_model.", model.encoders["text"]),
        *linear("text_model.head", "fusions_dual/project_text"),
        Row("logit_scale", ("fusions_dual/scale_logit",), Vector()),
        Row("logit_bias", ("fusions_dual/bias_logit",), Vector()),
    ]


SIGLIP = Family(
    model_type="siglip",
    texts=("text_config",),
    reads=("input_ids",),
    models={"SiglipModel": _both, "SiglipForImageClassification": _classes},
    fields={
        **nested("text_config", tower_fields("text", TEXT)),
        "text_config.projection_size": Honoured(None, ("fusions.dual.width",), kind="whole"),
        # After the text's: without a text tower, the width is the image's.
        **nested("vision_config", tower_fields("image", VISION, POOLING)),
        "vision_config.vision_use_head": Honoured(True, ()),  # by `models`
        "initializer_factor": Inert("only initialises"),
    },
    rows=_rows,
    constants={"fusions_dual/scale_logit": 0.0, "fusions_dual/bias_logit": 0.0},  # of a `dual` without a text
    dropped=(r"embeddings\.position_ids$",),
    complete=complete,
)
