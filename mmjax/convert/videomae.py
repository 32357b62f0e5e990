"""VideoMAE (Tong et al. 2022): the encoder of tubelets, video classification, and pretraining with the decoder that paints what
was masked.

Which tubelets are masked, and the loss, are an objective's here: `objective` gives the one that a checkpoint was trained with.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.config_paths import get
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured
from mmjax.convert.layout import Row, Table, Tubelets, linear, norm
from mmjax.convert.vit import layers, pair, side, whole_patches
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.decoders import PixelDecoder
from mmjax.models.encoders import VideoTransformer
from mmjax.models.heads import Classifier
from mmjax.objectives import MaskedImage

VIDEO, PIXELS, CLASSES = "encoders.video", "decoders.pixels", "heads.classes"
EPSILON = 1e-5  # of the norms outside of the layers; config.json does not say it
NORM_PIXELS = True  # what `transformers` takes where config.json does not say
RATIO = 0.9  # as the paper has it; the file does not say, who calls the class masks
# By which HuggingFace's loss undoes the normalisation of colours, whatever the processor has.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def objective(model: Multimodal) -> MaskedImage:
    """The objective that a converted checkpoint was trained with: its `norm_pix_loss`, colours as HuggingFace has them."""
    encoder = model.encoders["video"]
    colours: dict[str, Any] = {"mean": MEAN, "std": STD} if encoder.channels == len(MEAN) else {}
    return MaskedImage(
        patch=encoder.patch,
        tubelet=encoder.tubelet,
        mask_ratio=RATIO,
        norm_pixels=get(model.huggingface, "norm_pix_loss", NORM_PIXELS),
        norm_channels=True,
        modality="video",
        **colours,
    )


def _model(config: Config, decoders: Any = None, heads: Any = None) -> Multimodal:
    pooled = get(config, "use_mean_pooling", True)
    encoder = VideoTransformer(key_bias=False, embed_dropout=0.0, final_norm=not pooled)
    return Multimodal(encoders={"video": encoder}, decoders=decoders or {}, heads=heads or {})


def _classification(config: Config) -> Multimodal:
    pooled = get(config, "use_mean_pooling", True)
    head = Classifier(labels(config), input="video", pool="mean" if pooled else "cls", pool_norm=pooled, norm_epsilon=EPSILON)
    return _model(config, heads={"classes": head})


def _pretraining(config: Config) -> Multimodal:
    decoder = PixelDecoder(
        context=("video",),
        writes="video",
        key_bias=False,
        positions="sequence",
        token_bias=False,
        final_norm_epsilon=EPSILON,
    )
    return _model(config, decoders={"pixels": decoder})


def _both(leaf: str) -> tuple[str, str]:
    return f"{VIDEO}.{leaf}", f"{PIXELS}.{leaf}"


FIELDS: dict[str, ConfigField] = {
    "image_size": Honoured(224, _both("image_size"), read=pair, write=side, kind="wholes"),
    "patch_size": Honoured(16, _both("patch"), read=pair, write=side, kind="wholes"),
    "num_channels": Honoured(3, _both("channels")),
    "num_frames": Honoured(16, _both("frames")),
    "tubelet_size": Honoured(2, _both("tubelet")),
    "hidden_size": Honoured(768, (f"{VIDEO}.width",)),
    "num_hidden_layers": Honoured(12, (f"{VIDEO}.depth",)),
    "num_attention_heads": Honoured(12, (f"{VIDEO}.heads",)),
    "intermediate_size": Honoured(3072, (f"{VIDEO}.mlp_width",)),
    "hidden_act": Honoured("gelu", _both("activation"), ACTIVATIONS),
    "hidden_dropout_prob": Honoured(0.0, _both("dropout")),
    "attention_probs_dropout_prob": Honoured(0.0, _both("attention_dropout")),
    "layer_norm_eps": Honoured(1e-12, _both("norm_epsilon")),
    "qv_bias": Honoured(True, _both("qkv_bias")),
    "use_mean_pooling": Honoured(True, (f"{VIDEO}.final_norm",), read=lambda pooled: not pooled, write=lambda last: not last),
    "decoder_hidden_size": Honoured(384, (f"{PIXELS}.width",)),
    "decoder_num_hidden_layers": Honoured(4, (f"{PIXELS}.depth",)),
    "decoder_num_attention_heads": Honoured(6, (f"{PIXELS}.heads",)),
    "decoder_intermediate_size": Honoured(1536, (f"{PIXELS}.mlp_width",)),
    "norm_pix_loss": Honoured(NORM_PIXELS, ()),  # `objective` reads it
}


def _complete(config: Config) -> Config:
    """Raises `UserError` for what HuggingFace leaves out of a video, or its decoder takes for a square."""
    whole_patches(config)
    frames, tubelet = config.get("num_frames", 16), config.get("tubelet_size", 2)
    if tubelet < 1 or frames % tubelet:
        raise UserError(f"num_frames={frames} is not supported here: tubelet_size={tubelet} must divide it")
    patch = config.get("patch_size", 16)
    if "VideoMAEForPreTraining" in (config.get("architectures") or ()) and len(set(pair(patch))) > 1:
        raise UserError(f"patch_size={patch!r} is not supported by VideoMAEForPreTraining; it must be a square")
    return config


def _layers(theirs: str, ours: str, part: Any) -> list[Row]:
    """ViT's, of which files keep the biases of queries and values beside their layers."""
    rows = layers(theirs, ours, part.depth, part.qkv_bias, key_bias=False)
    names = {f"{theirs}.{{l}}.attention.attention.{long}.bias": long[0] for long in ("query", "value")}
    beside = f"{theirs}.{{l}}.attention.attention"
    return [
        dataclasses.replace(row, theirs=f"{beside}.{names[row.theirs]}_bias") if row.theirs in names else row for row in rows
    ]


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    base, video = "" if architecture == "VideoMAEModel" else "videomae.", model.encoders["video"]
    weight, bias = linear(f"{base}embeddings.patch_embeddings.projection", "encoders_video/project_patches")
    rows = [
        Row(weight.theirs, weight.ours, Tubelets((video.tubelet, *video.patch), video.channels)),
        bias,
        *_layers(f"{base}encoder.layer", "encoders_video/stack", video),
    ]
    if video.final_norm:
        rows += norm(f"{base}layernorm", "encoders_video/stack/final_norm")
    if "classes" in model.heads:
        head = model.heads["classes"]
        rows += norm("fc_norm", "heads_classes/pool_norm") if head.pool_norm else []
        rows += linear("classifier", "heads_classes/logits") if head.classes else []
    if "pixels" not in model.decoders:
        return rows
    ours, decoder = "decoders_pixels", model.decoders["pixels"]
    return [
        *rows,
        *linear("encoder_to_decoder", f"{ours}/project_tokens", bias=False),
        Row("mask_token", (f"{ours}/mask_token",), Table(lead=1)),
        *_layers("decoder.decoder_layers", f"{ours}/stack", decoder),
        *norm("decoder.norm", f"{ours}/stack/final_norm"),
        *linear("decoder.head", f"{ours}/project_pixels"),
    ]


# Names in memory -> those on disk.
RENAMES = tuple(
    (rf"\.attention\.attention\.{long}\.bias$", f".attention.attention.{long[0]}_bias") for long in ("query", "value")
)
BESIDE = ((".q_bias", ".query.bias"), (".v_bias", ".value.bias"))
VIDEOMAE = Family(
    model_type="videomae",
    models={
        "VideoMAEModel": _model,
        "VideoMAEForVideoClassification": _classification,
        "VideoMAEForPreTraining": _pretraining,
    },
    fields=FIELDS,
    rows=_rows,
    prefix="videomae.",
    renames=RENAMES,
    beside=BESIDE,
    complete=_complete,
    aliases={"qkv_bias": "qv_bias"},
)
