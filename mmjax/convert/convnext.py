"""ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023): base with the norm of the mean of its grid, classification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert
from mmjax.convert.layout import Kernel, Row, Vector, linear, norm
from mmjax.convert.resnet import BACKBONE
from mmjax.convert.vit import IMAGE, pair, side
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import ConvNeXt
from mmjax.models.heads import Classifier

FIELDS: dict[str, ConfigField] = {
    "num_channels": Honoured(3, (f"{IMAGE}.channels",)),
    "patch_size": Honoured(4, (f"{IMAGE}.patch",), read=pair, write=side, kind="wholes"),
    "hidden_sizes": Honoured((96, 192, 384, 768), (f"{IMAGE}.widths",), read=tuple, write=list, kind="wholes"),
    "depths": Honoured((3, 3, 9, 3), (f"{IMAGE}.depths",), read=tuple, write=list, kind="wholes"),
    "hidden_act": Honoured("gelu", (f"{IMAGE}.activation",), ACTIVATIONS),
    "layer_norm_eps": Honoured(1e-12, ("heads.pooler.norm_epsilon", "heads.classes.norm_epsilon")),
    "drop_path_rate": Honoured(0.0, (f"{IMAGE}.drop_path",), kind="number"),
    "num_stages": Inert("as many as there are depths; another number is refused"),
    "image_size": Inert("no forward pass reads it"),
    **BACKBONE,
}
FIRST: dict[str, ConfigField] = {
    "layer_scale_init_value": Honoured(1e-6, (f"{IMAGE}.layer_scale",), kind="number"),
}


def _complete(config: Config) -> Config:
    """Raises `UserError` where stages are said in two ways that differ."""
    depths, widths = config.get("depths", (3, 3, 9, 3)), config.get("hidden_sizes", (96, 192, 384, 768))
    stages = config.get("num_stages", 4)
    if not stages == len(depths) == len(widths):
        raise UserError(f"num_stages={stages!r} is not supported here with depths={depths!r} and hidden_sizes={widths!r}")
    return config


def _restored(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "num_stages": len(config["depths"])}


def _convolved(theirs: str, ours: str, depth: int = 0) -> list[Row]:
    """The rows of a convolution with its bias."""
    return [
        Row(f"{theirs}.weight", (f"{ours}/kernel",), Kernel(), depth),
        Row(f"{theirs}.bias", (f"{ours}/bias",), Vector(), depth),
    ]


def _stage(theirs: str, ours: str, image: ConvNeXt, number: int) -> list[Row]:
    rows, depth = list[Row](), image.depths[number]
    if number:
        rows += norm(f"{theirs}.downsampling_layer.0", f"{ours}/reduce_norm")
        rows += _convolved(f"{theirs}.downsampling_layer.1", f"{ours}/convolve")
    t, o = f"{theirs}.layers.{{l}}", f"{ours}/layers"
    rows += _convolved(f"{t}.dwconv", f"{o}/convolve", depth)
    rows += norm(f"{t}.layernorm", f"{o}/norm", depth=depth)
    rows += linear(f"{t}.pwconv1", f"{o}/mlp/up", depth=depth) + linear(f"{t}.pwconv2", f"{o}/mlp/down", depth=depth)
    if image.layer_scale:
        rows.append(Row(f"{t}.layer_scale_parameter", (f"{o}/mlp_layer_scale",), Vector(), depth))
    if image.response_norm:
        for name, own in (("weight", "scale"), ("bias", "bias")):
            rows.append(Row(f"{t}.grn.{name}", (f"{o}/mlp/response_norm/{own}",), Vector(lead=3), depth))
    return rows


def _rows_of(prefix: str) -> Callable[[Multimodal, str], list[Row]]:
    """`Family.rows` of the version whose base model has this prefix."""

    def rows(model: Multimodal, architecture: str) -> list[Row]:
        base, image = "" if architecture.endswith("Model") else prefix, model.encoders["image"]
        head = next(iter(model.heads))
        found = [
            *_convolved(f"{base}embeddings.patch_embeddings", "encoders_image/convolve"),
            *norm(f"{base}embeddings.layernorm", "encoders_image/stem_norm"),
            *norm(f"{base}layernorm", f"heads_{head}/pool_norm"),
        ]
        for number in range(len(image.depths)):
            found += _stage(f"{base}encoder.stages.{number}", f"encoders_image/stage_{number}", image, number)
        return found + (linear("classifier", f"heads_{head}/logits") if model.heads[head].classes else [])

    return rows


def _family(version: str, fields: dict[str, ConfigField], image: ConvNeXt) -> Family:
    """The family of a version: "ConvNext" or "ConvNextV2", as HuggingFace's classes begin."""
    name = version.lower()

    def model(**heads: Classifier) -> Multimodal:
        return Multimodal(encoders={"image": image}, heads=heads)

    def head(classes: int) -> Classifier:
        return Classifier(classes=classes, input="image", pool_norm=True)

    return Family(
        model_type=name,
        any_size=True,
        models={
            f"{version}Model": lambda c: model(pooler=head(0)),
            f"{version}ForImageClassification": lambda c: model(classes=head(labels(c))),
        },
        fields=fields,
        rows=_rows_of(f"{name}."),
        prefix=f"{name}.",
        complete=_complete,
        restore=_restored,
    )


CONVNEXT = _family("ConvNext", {**FIELDS, **FIRST}, ConvNeXt())
CONVNEXT_V2 = _family("ConvNextV2", FIELDS, ConvNeXt(layer_scale=0.0, response_norm=True))
