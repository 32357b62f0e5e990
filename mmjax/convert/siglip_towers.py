"""One tower of SigLIP by itself: SiglipVisionModel and SiglipTextModel, for towers of ours as well (see `towers`).

With an `attention_mask` HuggingFace's text tower hides padding; without one, padding counts as real, as ours does here.
"""

from __future__ import annotations

from mmjax.convert.clip import text_rows, tower_fields, vision_rows
from mmjax.convert.family import Config, Family, Honoured
from mmjax.convert.layout import Row, linear
from mmjax.convert.siglip import POOLING, TEXT, VISION, pooling_rows
from mmjax.convert.vit import whole_patches
from mmjax.models import Multimodal
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Dual
from mmjax.models.heads import Classifier


def _vision(config: Config) -> Multimodal:
    dual = {"dual": Dual(pool={"image": "attention"}, project=(), scale_init=1.0, max_scale=0.0)}
    return Multimodal(encoders={"image": ViT()}, fusions=dual if config.get("vision_use_head", True) else {})


def _text(config: Config) -> Multimodal:
    # A layer of `projection_size` on the last token; "classes" is how a head calls its width.
    pooler = Classifier(classes=1, input="text", pool="last")
    return Multimodal(encoders={"text": TextTransformer(mask_padding=False)}, heads={"pooler": pooler})


def _vision_rows(model: Multimodal, architecture: str) -> list[Row]:
    rows = vision_rows("", model.encoders["image"])
    return rows + (pooling_rows("head", "fusions_dual/pools_image") if "dual" in model.fusions else [])


def _text_rows(model: Multimodal, architecture: str) -> list[Row]:
    return [*text_rows("", model.encoders["text"]), *linear("head", "heads_pooler/logits")]


def _whole(config: Config) -> Config:
    whole_patches(VISION | dict(config))
    return config


def _projected(config: Config) -> Config:
    return {**config, "projection_size": config.get("projection_size") or config.get("hidden_size", TEXT["hidden_size"])}


SIGLIP_VISION = Family(
    model_type="siglip_vision_model",
    models={"SiglipVisionModel": _vision},
    fields={**tower_fields("image", VISION, POOLING), "vision_use_head": Honoured(True, ())},  # by `models`
    rows=_vision_rows,
    constants={"fusions_dual/scale_logit": 0.0, "fusions_dual/bias_logit": 0.0},
    prefix="vision_model.",
    dropped=(r"embeddings\.position_ids$",),
    complete=_whole,
)
SIGLIP_TEXT = Family(
    model_type="siglip_text_model",
    texts=("",),
    models={"SiglipTextModel": _text},
    fields={**tower_fields("text", TEXT), "projection_size": Honoured(None, ("heads.pooler.classes",), kind="whole")},
    rows=_text_rows,
    prefix="text_model.",
    dropped=(r"embeddings\.position_ids$",),
    complete=_projected,
)
