"""ViT-MAE (He et al. 2021): the encoder, and pretraining with the decoder that paints what was masked.

Which patches are masked, and the loss, are an objective's here: `objective` gives the one that a checkpoint was trained with.
HuggingFace's models always mask; ours encode the whole image where the batch has no `image_keep`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.convert.config_paths import get
from mmjax.convert.family import Config, ConfigField, Family, Honoured
from mmjax.convert.layout import Row, Table, linear, norm
from mmjax.convert.vit import RENAMES, image_fields, layers, modules, pair, patches, whole_patches
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.decoders import PixelDecoder
from mmjax.models.encoders import ViT
from mmjax.objectives import MaskedImage

PIXELS = "decoders.pixels"
MASK_RATIO, NORM_PIXELS = 0.75, False  # what `transformers` takes where config.json does not say


def objective(model: Multimodal) -> MaskedImage:
    """The objective that a converted checkpoint was trained with: its `mask_ratio` and `norm_pix_loss`."""
    return MaskedImage(
        patch=model.encoders["image"].patch,
        mask_ratio=get(model.huggingface, "mask_ratio", MASK_RATIO),
        norm_pixels=get(model.huggingface, "norm_pix_loss", NORM_PIXELS),
    )


def _model(**decoders: Any) -> Multimodal:
    return Multimodal(
        encoders={"image": ViT(cls_token=True, positions="fixed", embed_dropout=0.0)},
        decoders=decoders,
    )


def _fields() -> dict[str, ConfigField]:
    """The decoder has sizes of its own, and the rest from the encoder."""
    fields = image_fields()
    for name, field in fields.items():
        if isinstance(field, Honoured) and name not in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ):
            leaf = field.paths[0].rsplit(".", 1)[-1]
            fields[name] = dataclasses.replace(field, paths=(*field.paths, f"{PIXELS}.{leaf}"))
    return fields


def _complete(config: Config) -> Config:
    """Raises `UserError` for what HuggingFace's decoder and its interpolation of positions take for a square."""
    whole_patches(config)
    for name in ("image_size", "patch_size"):
        if name in config and len(set(pair(config[name]))) > 1:
            raise UserError(f"{name}={config[name]!r} is not supported by vit_mae here; it must be a square")
    return config


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    base, image = "" if architecture == "ViTMAEModel" else "vit.", model.encoders["image"]
    rows = [
        Row(f"{base}embeddings.cls_token", ("encoders_image/cls",), Table(lead=1)),
        Row(f"{base}embeddings.position_embeddings", ("encoders_image/fixed_position/table",), Table(lead=1)),
        *patches(f"{base}embeddings.patch_embeddings.projection", "encoders_image/project_patches", image),
        *layers(f"{base}encoder.layer", "encoders_image/stack", image.depth, image.qkv_bias),
        *norm(f"{base}layernorm", "encoders_image/stack/final_norm"),
    ]
    if "pixels" not in model.decoders:
        return rows
    ours, decoder = "decoders_pixels", model.decoders["pixels"]
    return [
        *rows,
        *linear("decoder.decoder_embed", f"{ours}/project_tokens"),
        Row("decoder.mask_token", (f"{ours}/mask_token",), Table(lead=1)),
        Row("decoder.decoder_pos_embed", (f"{ours}/fixed_position/table",), Table(lead=1)),
        *layers("decoder.decoder_encoder.layer", f"{ours}/stack", decoder.depth, decoder.qkv_bias),
        *norm("decoder.decoder_norm", f"{ours}/stack/final_norm"),
        *linear("decoder.decoder_pred", f"{ours}/project_pixels"),
    ]


VIT_MAE = Family(
    model_type="vit_mae",
    models={
        "ViTMAEModel": lambda c: _model(),
        "ViTMAEForPreTraining": lambda c: _model(pixels=PixelDecoder(firsts=1, positions="fixed")),
    },
    fields={
        **_fields(),
        "decoder_hidden_size": Honoured(512, (f"{PIXELS}.width",)),
        "decoder_num_hidden_layers": Honoured(8, (f"{PIXELS}.depth",)),
        "decoder_num_attention_heads": Honoured(16, (f"{PIXELS}.heads",)),
        "decoder_intermediate_size": Honoured(2048, (f"{PIXELS}.mlp_width",)),
        "mask_ratio": Honoured(MASK_RATIO, ()),  # `objective` reads both
        "norm_pix_loss": Honoured(NORM_PIXELS, ()),
    },
    rows=_rows,
    modules=lambda architecture: ((r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."), *modules(architecture)),
    prefix="vit.",
    # Published files have `decoder.decoder_layers`; transformers 5 writes otherwise, and reads both.
    renames=((r"\.decoder_layers\.(\d+)\.", r".decoder_encoder.layer.\1."), *RENAMES),
    complete=_complete,
)
