"""The Audio Spectrogram Transformer (Gong et al. 2021): base with the mean of its first two tokens, classification."""

from __future__ import annotations

from typing import Any

from mmjax.convert.bert import labels
from mmjax.convert.family import ConfigField, Family, Honoured
from mmjax.convert.layout import Kernel, Row, Table, Vector, linear, norm
from mmjax.convert.vit import RENAMES, image_fields, layers, modules
from mmjax.models import Multimodal
from mmjax.models.encoders import SpectrogramViT
from mmjax.models.heads import Classifier
from mmjax.nn.spectrogram import Fbank

AUDIO, BASE = "encoders.audio", "audio_spectrogram_transformer"
NOT_OF_SOUNDS = ("image_size", "patch_size", "num_channels")

FIELDS: dict[str, ConfigField] = {
    **{name: field for name, field in image_fields(AUDIO).items() if name not in NOT_OF_SOUNDS},
    "layer_norm_eps": Honoured(1e-12, (f"{AUDIO}.norm_epsilon", "heads.classes.norm_epsilon")),
    "patch_size": Honoured(16, (f"{AUDIO}.patch",)),
    "frequency_stride": Honoured(10, (f"{AUDIO}.frequency_stride",)),
    "time_stride": Honoured(10, (f"{AUDIO}.time_stride",)),
    "max_length": Honoured(1024, (f"{AUDIO}.max_length", f"{AUDIO}.spectrogram.length")),
    "num_mel_bins": Honoured(128, (f"{AUDIO}.spectrogram.mels",)),
}


def _model(**heads: Any) -> Multimodal:
    audio = SpectrogramViT(mask_padding=False, spectrogram=Fbank(length=1024))
    return Multimodal(encoders={"audio": audio}, heads=heads)


def _head(classes: int, normed: bool) -> Classifier:
    return Classifier(classes=classes, input="audio", pool="first_two", pool_norm=normed)


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    audio, p = model.encoders["audio"], "" if architecture == "ASTModel" else f"{BASE}."
    rows = [
        Row(f"{p}embeddings.cls_token", ("encoders_audio/cls",), Table(lead=1)),
        Row(f"{p}embeddings.distillation_token", ("encoders_audio/extra",), Table(lead=1)),
        Row(f"{p}embeddings.position_embeddings", ("encoders_audio/position/table",), Table(lead=1)),
        Row(f"{p}embeddings.patch_embeddings.projection.weight", ("encoders_audio/convolve/kernel",), Kernel()),
        Row(f"{p}embeddings.patch_embeddings.projection.bias", ("encoders_audio/convolve/bias",), Vector()),
        *layers(f"{p}encoder.layer", "encoders_audio/stack", audio.depth, audio.qkv_bias),
        *norm(f"{p}layernorm", "encoders_audio/stack/final_norm"),
    ]
    if "classes" in model.heads:
        rows += norm("classifier.layernorm", "heads_classes/pool_norm")
        rows += linear("classifier.dense", "heads_classes/logits") if model.heads["classes"].classes else []
    return rows


AST = Family(
    model_type="audio-spectrogram-transformer",
    models={
        "ASTModel": lambda c: _model(pooler=_head(0, normed=False)),
        "ASTForAudioClassification": lambda c: _model(classes=_head(labels(c), normed=True)),
    },
    fields=FIELDS,
    rows=_rows,
    modules=modules,
    prefix=f"{BASE}.",
    renames=RENAMES,
)
