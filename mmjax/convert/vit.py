"""ViT (Dosovitskiy et al. 2020): base with its pooler, image classification. Fields and rows that its relatives share."""

from __future__ import annotations

from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert
from mmjax.convert.layout import Patches, Row, Table, linear, norm
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.heads import Classifier

IMAGE = "encoders.image"

# Names that transformers 5 has in memory -> those on disk.
ATTENTION_RENAMES = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
RENAMES = (
    (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    *ATTENTION_RENAMES,
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
# And the way back.
ATTENTION_MODULES = (
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
)
MODULES = (
    *ATTENTION_MODULES,
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"(^|\.)encoder\.layer\.(\d+)\.", r"\1layers.\2."),
)


def modules(architecture: str) -> tuple[tuple[str, str], ...]:
    """See `Family.modules`."""
    return MODULES


def pair(value: Any) -> tuple[int, int]:
    """A side in pixels, or (height, width)."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def side(value: tuple[int, int]) -> int | list[int]:
    """One number for a square, as configs are mostly written."""
    return value[0] if value[0] == value[1] else list(value)


def image_fields(encoder: str = IMAGE, prefix: str = "") -> dict[str, ConfigField]:
    """The fields of a ViT's config that the encoder holds; `prefix` is that of a nested config ("vision_config.")."""
    fields: dict[str, ConfigField] = {
        "hidden_size": Honoured(768, (f"{encoder}.width",)),
        "num_hidden_layers": Honoured(12, (f"{encoder}.depth",)),
        "num_attention_heads": Honoured(12, (f"{encoder}.heads",)),
        "intermediate_size": Honoured(3072, (f"{encoder}.mlp_width",)),
        "hidden_act": Honoured("gelu", (f"{encoder}.activation",), ACTIVATIONS),
        "hidden_dropout_prob": Honoured(0.0, (f"{encoder}.dropout",)),
        "attention_probs_dropout_prob": Honoured(0.0, (f"{encoder}.attention_dropout",)),
        "layer_norm_eps": Honoured(1e-12, (f"{encoder}.norm_epsilon",)),
        "image_size": Honoured(224, (f"{encoder}.image_size",), read=pair, write=side, kind="wholes"),
        "patch_size": Honoured(16, (f"{encoder}.patch",), read=pair, write=side, kind="wholes"),
        "num_channels": Honoured(3, (f"{encoder}.channels",)),
        "qkv_bias": Honoured(True, (f"{encoder}.qkv_bias",)),
    }
    return {f"{prefix}{name}": field for name, field in fields.items()}


def attention(theirs: str, ours: str, depth: int, bias: bool = True, key_bias: bool = True) -> list[Row]:
    """The rows of the attention of a stack: `theirs.{l}.attention...` <-> `ours/layers/attention/...`."""
    t, o = f"{theirs}.{{l}}.attention", f"{ours}/layers/attention"
    rows: list[Row] = []
    for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
        has = bias and (key_bias or short != "k")
        rows += linear(f"{t}.attention.{name}", f"{o}/{short}", bias=has, depth=depth)
    return rows + linear(f"{t}.output.dense", f"{o}/out", axes=2, depth=depth)


def layers(theirs: str, ours: str, depth: int, qkv_bias: bool = True, key_bias: bool = True) -> list[Row]:
    """The rows of a stack of ViT's layers: `theirs.{l}....` <-> `ours/layers/...`."""
    t, o = f"{theirs}.{{l}}", f"{ours}/layers"
    return [
        *norm(f"{t}.layernorm_before", f"{o}/attention_norm", depth=depth),
        *attention(theirs, ours, depth, qkv_bias, key_bias),
        *norm(f"{t}.layernorm_after", f"{o}/mlp_norm", depth=depth),
        *linear(f"{t}.intermediate.dense", f"{o}/mlp/up", depth=depth),
        *linear(f"{t}.output.dense", f"{o}/mlp/down", depth=depth),
    ]


def embeddings(theirs: str, ours: str, image: ViT) -> list[Row]:
    """The rows of [CLS], the patches and their positions: `theirs....` <-> `ours/...`."""
    return [
        Row(f"{theirs}.cls_token", (f"{ours}/cls",), Table(lead=1)),
        Row(f"{theirs}.position_embeddings", (f"{ours}/position/table",), Table(lead=1)),
        *patches(f"{theirs}.patch_embeddings.projection", f"{ours}/project_patches", image),
    ]


def patches(theirs: str, ours: str, image: ViT) -> list[Row]:
    """The rows of the projection of patches, a convolution in HuggingFace's."""
    weight, *bias = linear(theirs, ours, bias=image.patch_bias)
    return [Row(weight.theirs, weight.ours, Patches(image.patch, image.channels)), *bias]


def encoder(base: str, image: ViT) -> list[Row]:
    """The rows of the whole image encoder; `base` comes before the names of the base model's tensors."""
    return [
        *embeddings(f"{base}embeddings", "encoders_image", image),
        *layers(f"{base}encoder.layer", "encoders_image/stack", image.depth, image.qkv_bias),
        *norm(f"{base}layernorm", "encoders_image/stack/final_norm"),
    ]


def whole_patches(config: Config) -> None:
    """Raises `UserError` where the patch does not divide the image: HuggingFace's leaves the rest of it out."""
    image, patch = config.get("image_size"), config.get("patch_size")
    if image and patch and any(i % p for i, p in zip(pair(image), pair(patch), strict=True)):
        raise UserError(f"image_size={image!r} is not supported here: patch_size={patch!r} must divide it")


def complete(config: Config) -> Config:
    """The pooler is as wide as the encoder where config.json does not say."""
    whole_patches(config)
    return {**config, "pooler_output_size": config.get("pooler_output_size") or config.get("hidden_size", 768)}


def pooled(classes: int) -> Classifier:
    """Logits of [CLS]."""
    return Classifier(classes=classes, input="image", pool="cls")


POOLER = Classifier(classes=0, input="image", pool="cls", hidden_width=1)  # a layer on [CLS] and an activation, no logits
HEAD_FIELDS: dict[str, ConfigField] = {
    "pooler_act": Honoured("tanh", ("heads.pooler.activation",), ACTIVATIONS),
    "pooler_output_size": Honoured(None, ("heads.pooler.hidden_width",), kind="whole"),
    "encoder_stride": Inert("only of masked image modelling's decoder"),
}


def _model(**heads: Any) -> Multimodal:
    return Multimodal(encoders={"image": ViT(cls_token=True)}, heads=heads)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    rows = encoder("" if architecture == "ViTModel" else "vit.", model.encoders["image"])
    if "pooler" in model.heads:
        rows += linear("pooler.dense", "heads_pooler/project")
    if "classes" in model.heads and model.heads["classes"].classes:
        rows += linear("classifier", "heads_classes/logits")
    return rows


VIT = Family(
    model_type="vit",
    models={
        "ViTModel": lambda c: _model(pooler=POOLER),
        "ViTForImageClassification": lambda c: _model(classes=pooled(labels(c))),
    },
    fields={**image_fields(), **HEAD_FIELDS},
    rows=_rows,
    modules=modules,
    prefix="vit.",
    renames=RENAMES,
    complete=complete,
)
