"""DINOv2 (Oquab et al. 2023): a ViT with layer scale; base, and classification of [CLS] beside the mean patch.

HuggingFace's model resizes its positions as if they were a square grid, so only square grids are taken here.
"""

from __future__ import annotations

from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.family import ACTIVATIONS, Config, Family, Honoured, Inert
from mmjax.convert.layout import Linear, Row, Table, Vector, linear, norm
from mmjax.convert.vit import (
    ATTENTION_MODULES,
    ATTENTION_RENAMES,
    IMAGE,
    attention,
    embeddings,
    image_fields,
    pair,
    side,
    whole_patches,
)
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.encoders import ViT
from mmjax.models.heads import Classifier


def _image(config: Config) -> ViT:
    """The encoder, with what follows from several fields at once: the feed-forward layer, and whether it is gated."""
    width = int(config.get("hidden_size", 768) * config.get("mlp_ratio", 4))
    act = config.get("hidden_act", "gelu")
    if act not in ACTIVATIONS:
        raise UserError(f"hidden_act={act!r} is not supported here; use one of {', '.join(map(repr, ACTIVATIONS))}")
    activation = ACTIVATIONS[act]
    if config.get("use_swiglu_ffn", False):
        # Two thirds, since it has three matrices where the plain layer has two; in whole multiples of 8.
        width, activation = (int(width * 2 / 3) + 7) // 8 * 8, "swiglu"
    mask_token = config.get("use_mask_token", True)
    return ViT(cls_token=True, mask_token=mask_token, layer_scale=1.0, mlp_width=width, activation=activation)


def _derive(model: Multimodal) -> dict[str, Any]:
    """The three fields of the feed-forward layer; `check_exact` finds widths that no ratio gives."""
    image = model.encoders["image"]
    gated = image.activation == "swiglu"
    ratio = image.mlp_width * (1.5 if gated else 1) / image.width
    act = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == image.activation), "gelu")
    return {"mlp_ratio": int(ratio) if ratio == int(ratio) else ratio, "use_swiglu_ffn": gated, "hidden_act": act}


def _model(config: Config, **heads: Any) -> Multimodal:
    return Multimodal(encoders={"image": _image(config)}, heads=heads)


def _head(classes: int, pool: str) -> Classifier:
    return Classifier(classes=classes, input="image", pool=pool)


def _complete(config: Config) -> Config:
    whole_patches(config)
    (height, width), (ph, pw) = pair(config.get("image_size", 224)), pair(config.get("patch_size", 14))
    if height // ph != width // pw:
        raise UserError(
            f"image_size={config.get('image_size', 224)!r} is not supported by dinov2 here: as many patches must go into its "
            f"height as into its width, found {height // ph} and {width // pw}"
        )
    return config


FIELDS = {
    **{name: field for name, field in image_fields().items() if name != "intermediate_size"},
    "layer_norm_eps": Honoured(1e-6, (f"{IMAGE}.norm_epsilon",)),
    "patch_size": Honoured(14, (f"{IMAGE}.patch",), read=pair, write=side, kind="wholes"),
    "hidden_dropout_prob": Honoured(0.0, (f"{IMAGE}.embed_dropout",)),  # of nothing else
    "drop_path_rate": Honoured(0.0, (f"{IMAGE}.drop_path",)),
    "use_mask_token": Honoured(True, (f"{IMAGE}.mask_token",)),
    # These three make `mlp_width` and `activation` together: see `_image`.
    "hidden_act": Honoured("gelu", ()),
    "mlp_ratio": Honoured(4, (), kind="number"),
    "use_swiglu_ffn": Honoured(False, ()),
    "layerscale_value": Inert("only initialises"),
    "apply_layernorm": Inert("of a backbone"),
    "reshape_hidden_states": Inert("of a backbone"),
    "out_features": Inert("of a backbone"),
    "out_indices": Inert("of a backbone"),
    "stage_names": Inert("of a backbone"),
}


def _layers(theirs: str, ours: str, image: ViT) -> list[Row]:
    t, o, depth = f"{theirs}.{{l}}", f"{ours}/layers", image.depth
    rows = [
        *norm(f"{t}.norm1", f"{o}/attention_norm", depth=depth),
        *attention(theirs, ours, depth, image.qkv_bias),
        Row(f"{t}.layer_scale1.lambda1", (f"{o}/attention_layer_scale",), Vector(), depth),
        *norm(f"{t}.norm2", f"{o}/mlp_norm", depth=depth),
        Row(f"{t}.layer_scale2.lambda1", (f"{o}/mlp_layer_scale",), Vector(), depth),
    ]
    if image.activation != "swiglu":
        rows += linear(f"{t}.mlp.fc1", f"{o}/mlp/up", depth=depth)
        return rows + linear(f"{t}.mlp.fc2", f"{o}/mlp/down", depth=depth)
    rows += [
        Row(f"{t}.mlp.weights_in.weight", (f"{o}/mlp/gate/kernel", f"{o}/mlp/up/kernel"), Linear(), depth),
        Row(f"{t}.mlp.weights_in.bias", (f"{o}/mlp/gate/bias", f"{o}/mlp/up/bias"), Vector(), depth),
    ]
    return rows + linear(f"{t}.mlp.weights_out", f"{o}/mlp/down", depth=depth)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    base, image = "" if architecture == "Dinov2Model" else "dinov2.", model.encoders["image"]
    rows = [
        *embeddings(f"{base}embeddings", "encoders_image", image),
        *_layers(f"{base}encoder.layer", "encoders_image/stack", image),
        *norm(f"{base}layernorm", "encoders_image/stack/final_norm"),
    ]
    if image.mask_token:
        rows.append(Row(f"{base}embeddings.mask_token", ("encoders_image/mask_token",), Table()))
    if "classes" in model.heads and model.heads["classes"].classes:
        rows += linear("classifier", "heads_classes/logits")
    return rows


DINOV2 = Family(
    model_type="dinov2",
    any_size=True,
    models={
        "Dinov2Model": lambda c: _model(c, pooler=_head(0, "cls")),
        "Dinov2ForImageClassification": lambda c: _model(c, classes=_head(labels(c), "cls_rest")),
    },
    fields=FIELDS,
    rows=_rows,
    modules=lambda architecture: (
        *ATTENTION_MODULES,
        (r"\.mlp\.weights_out\.", ".mlp.down_proj."),
        (r".*\.mlp\.weights_in\.$", ""),  # two modules in memory
    ),
    prefix="dinov2.",
    renames=(*ATTENTION_RENAMES, (r"\.mlp\.down_proj\.", ".mlp.weights_out.")),
    complete=_complete,
    derive=_derive,
)
