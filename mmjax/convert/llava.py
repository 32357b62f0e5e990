"""LLaVA (Liu 2023; 1.5: Liu 2024): a CLIP or SigLIP image tower whose patches stand among the words of a Llama.

The image goes with `decoders.caption`, which puts its patches, projected, in place of the text's image tokens. The tower keeps
what its files hold and nothing here reads: the layers after the one whose patches are taken, the last norm, and SigLIP's
pooling head (as a `dual` of the image alone). Of a `LlavaModel` the decoder gives the last layer's result instead of logits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mmjax.convert import clip, siglip
from mmjax.convert.config_paths import get
from mmjax.convert.family import ACTIVATIONS, Config, Family, Honoured, Inert, Only, Tie
from mmjax.convert.layout import Row, linear
from mmjax.convert.llama import STYLE, body, complete_rope, fields
from mmjax.convert.vit import whole_patches
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.decoders import SplicedDecoder
from mmjax.models.encoders import ViT
from mmjax.models.fusion import Dual

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
# What `transformers` takes for the fields that a `vision_config` lacks; and for one that is not there at all.
DEFAULTS = {CLIP: clip.VISION, SIGLIP: siglip.VISION}
WHOLE = {
    "model_type": CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def _model(config: Config, headless: bool = False) -> Multimodal:
    kind = get(config, "vision_config.model_type", CLIP)
    unread = kind == SIGLIP and get(config, "vision_config.vision_use_head", True)
    return Multimodal(
        encoders={"image": (ViT() if kind == SIGLIP else clip.vision()).copy(take_layer=-2)},
        fusions={"dual": Dual(pool={"image": "attention"}, project=(), scale_init=1.0, max_scale=0.0)} if unread else {},
        decoders={"caption": SplicedDecoder(headless=headless, **STYLE)},
    )


def _complete(config: Config) -> Config:
    image = dict(WHOLE if config.get("vision_config") is None else config["vision_config"])
    image = DEFAULTS.get(image.get("model_type", CLIP), {}) | image
    whole_patches(image)
    text = complete_rope(config.get("text_config") or {})
    tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    place = config.get("image_token_index", config.get("image_token_id", 32000))
    text = {**text, "tie_word_embeddings": tied}
    return {**config, "vision_config": image, "text_config": text, "tie_word_embeddings": tied, "image_token_index": place}


def _restore(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "image_token_id"}


def _one_layer(layer: Any) -> int:
    if not isinstance(layer, int):
        raise UserError(f"vision_feature_layer={layer!r} is not supported here: give one number")
    return layer


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    encoder, decoder = model.encoders["image"], model.decoders["caption"]
    rows = clip.vision_rows("vision_tower.", encoder) + body("language_model.model.", "decoders_caption", decoder)
    for theirs, ours in (("linear_1", "project_in"), ("linear_2", "project_out")):
        rows += linear(f"multi_modal_projector.{theirs}", f"decoders_caption/{ours}", bias=decoder.project_bias)
    if model.fusions:
        rows += siglip.pooling_rows("vision_tower.head", "fusions_dual/pools_image")
    if decoder.tied or decoder.headless:
        return rows
    return rows + linear("language_model.lm_head", "decoders_caption/logits", bias=False)


def _modules(architecture: str) -> tuple[tuple[str, str], ...]:
    if architecture == "LlavaModel":
        return ((r"^language_model\.model\.", "language_model."),)
    return (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    )


LLAVA = Family(
    model_type="llava",
    texts=("text_config",),
    models={"LlavaForConditionalGeneration": _model, "LlavaModel": partial(_model, headless=True)},
    fields={
        **clip.nested("text_config", {"model_type": Only(("llama",)), **fields("decoders.caption")}),
        "vision_config.model_type": Only((CLIP, SIGLIP)),
        **clip.nested("vision_config", clip.tower_fields("image", clip.VISION, siglip.POOLING) | clip.INITIAL),
        "vision_config.projection_dim": Inert("the projection that it sizes is not in this model"),
        "vision_config.vocab_size": Inert("an image tower has no words"),
        "vision_config.vision_use_head": Honoured(True, ()),  # by `models`
        "image_token_index": Honoured(32000, ("decoders.caption.place",)),
        "image_seq_length": Inert("the processor's: how many image tokens it writes in a prompt"),
        "projector_hidden_act": Honoured("gelu", ("decoders.caption.project_activation",), ACTIVATIONS),
        "multimodal_projector_bias": Honoured(True, ("decoders.caption.project_bias",)),
        "vision_feature_select_strategy": Honoured("default", ("decoders.caption.skip",), {"default": 1, "full": 0}),
        "vision_feature_layer": Honoured(-2, ("encoders.image.take_layer",), read=_one_layer, kind="wholes"),
        "tie_word_embeddings": Honoured(False, ("decoders.caption.tied",)),
    },
    rows=_rows,
    renames=(
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^vision_tower\.vision_model\.", "vision_tower."),
        (r"^language_model\.(?=embed_tokens|layers|norm)", "language_model.model."),  # a LlavaModel's, in memory
    ),
    modules=_modules,
    constants=siglip.SIGLIP.constants,
    dropped=(r"rotary_emb\.inv_freq$", r"embeddings\.position_ids$", r"^language_model\.lm_head\.weight$"),
    complete=_complete,
    aliases={"image_token_id": "image_token_index"},
    ties=(
        Tie(
            "language_model.lm_head.weight",
            "language_model.model.embed_tokens.weight",
            ("tie_word_embeddings", "text_config.tie_word_embeddings"),
        ),
    ),
    restore=_restore,
)
