"""BLIP (Li et al. 2022): image-text retrieval, captioning, question answering.

The text encoder's words are `encoders.text` (of depth 0) and its layers the fusion `cross`, which reads the image for matching
and for questions and runs alone for the contrastive embedding (`Dual.through`). Each decoder has words and layers of its own:
`decoders.caption` reads the image, `decoders.answer` the question as `cross` gives it. There is no BlipModel, which normalises
an image's pooled token twice with one norm and which transformers is about to drop.
"""

from __future__ import annotations

import math
from typing import Any

from mmjax.convert.bert import layers
from mmjax.convert.config_paths import get
from mmjax.convert.family import ACTIVATIONS, Config, ConfigField, Family, Honoured, Inert, Only, Tie
from mmjax.convert.layout import Linear, Patches, Row, Table, Vector, linear, norm, table
from mmjax.core.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.decoders import TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.fusion import Cross, Dual
from mmjax.models.heads import Classifier

TEMPERATURE = 0.07  # where BLIP's contrastive loss starts; files hold the embeddings' projections without it


def _image() -> ViT:
    return ViT(cls_token=True)


def _words() -> TextTransformer:
    return TextTransformer(depth=0, embed_norm=True, norm_placement="post")


def _cross() -> Cross:
    return Cross(norm_placement="post")


def _decoder(context: str, mask_context: bool = True, writes: str = "text") -> TextDecoder:
    return TextDecoder(
        context=(context,),
        mask_context=mask_context,
        writes=writes,
        embed_norm=True,
        norm_placement="post",
        transform=True,
        output_bias=True,
    )


def _retrieval(config: Config) -> Multimodal:
    dual = Dual(pool={"image": "cls", "text": "cls"}, bias=True, through={"text": "cross"}, scale_init=1 / TEMPERATURE)
    return Multimodal(
        encoders={"image": _image(), "text": _words()},
        fusions={"dual": dual, "cross": _cross()},
        heads={"match": Classifier(classes=2, input="cross", pool="cls")},
    )


def _caption(config: Config) -> Multimodal:
    return Multimodal(encoders={"image": _image()}, decoders={"caption": _decoder("image")})


def _answer(config: Config) -> Multimodal:
    # transformers drops the question's mask on its way to the decoder's layers.
    decoder = _decoder("cross", mask_context=False, writes="answer")
    return Multimodal(encoders={"image": _image(), "text": _words()}, fusions={"cross": _cross()}, decoders={"answer": decoder})


def _square(field: str, default: int, path: str) -> Honoured:
    """A (height, width) of ours that BLIP keeps as one number."""

    def read(value: Any) -> tuple[int, int]:
        if not isinstance(value, int):
            raise UserError(f"{field}={value!r} is not supported by blip here; it must be one whole number")
        return value, value

    def write(size: tuple[int, int]) -> int:
        if size[0] != size[1]:
            raise UserError(f"{field}={tuple(size)}: a BLIP config holds a square only; make both sides equal")
        return size[0]

    return Honoured(default, (path,), read=read, write=write, kind="wholes")


PATCH = "vision_config.patch_size"
IMAGE, DECODERS = "encoders.image", ("decoders.caption", "decoders.answer")
WORDS, STACKS = ("encoders.text", *DECODERS), ("fusions.cross", *DECODERS)  # who has text's words, its layers
TEXT = ("encoders.text", *STACKS)


def _of(parts: tuple[str, ...], leaf: str) -> tuple[str, ...]:
    return tuple(f"{part}.{leaf}" for part in parts)


FIELDS: dict[str, ConfigField] = {
    "text_config.vocab_size": Honoured(30524, _of(WORDS, "vocab_size")),
    "text_config.hidden_size": Honoured(768, _of(TEXT, "width")),
    "text_config.num_hidden_layers": Honoured(12, _of(STACKS, "depth")),
    "text_config.num_attention_heads": Honoured(8, _of(TEXT, "heads")),
    "text_config.intermediate_size": Honoured(3072, _of(TEXT, "mlp_width")),
    "text_config.hidden_act": Honoured("gelu", _of(TEXT, "activation"), ACTIVATIONS),
    "text_config.hidden_dropout_prob": Honoured(0.0, _of(TEXT, "dropout")),
    "text_config.attention_probs_dropout_prob": Honoured(0.0, _of(TEXT, "attention_dropout")),
    "text_config.max_position_embeddings": Honoured(512, _of(WORDS, "max_length")),
    "text_config.layer_norm_eps": Honoured(1e-12, _of(TEXT, "norm_epsilon")),
    "text_config.tie_word_embeddings": Honoured(True, _of(DECODERS, "tied")),
    "text_config.is_decoder": Only((True,)),
    "text_config.encoder_hidden_size": Inert("always replaced by vision_config.hidden_size"),
    "text_config.projection_dim": Inert("no model reads it"),
    "text_config.label_smoothing": Inert("in the loss; an objective's label_smoothing does that here"),
    "vision_config.hidden_size": Honoured(768, (f"{IMAGE}.width",)),
    "vision_config.num_hidden_layers": Honoured(12, (f"{IMAGE}.depth",)),
    "vision_config.num_attention_heads": Honoured(12, (f"{IMAGE}.heads",)),
    "vision_config.intermediate_size": Honoured(3072, (f"{IMAGE}.mlp_width",)),
    "vision_config.hidden_act": Honoured("gelu", (f"{IMAGE}.activation",), ACTIVATIONS),
    "vision_config.layer_norm_eps": Honoured(1e-5, (f"{IMAGE}.norm_epsilon",)),
    "vision_config.attention_dropout": Honoured(0.0, (f"{IMAGE}.attention_dropout",)),
    "vision_config.image_size": _square("vision_config.image_size", 384, f"{IMAGE}.image_size"),
    PATCH: _square(PATCH, 16, f"{IMAGE}.patch"),
    "vision_config.projection_dim": Inert("no model reads it"),
    "image_text_hidden_size": Honoured(256, ("fusions.dual.width",)),
    "tie_word_embeddings": Honoured(True, _of(DECODERS, "tied")),
    "projection_dim": Inert("of BlipModel alone"),
    "logit_scale_init_value": Inert("of BlipModel alone"),
    "label_smoothing": Inert("no model reads it; text_config's is the loss's"),
    "initializer_factor": Inert("only initialises"),
}


def _complete(config: Config) -> Config:
    """The output is tied unless both flags say that it is not.

    Raises:
      UserError: a patch that does not divide the image, of which HuggingFace leaves the rest out.
    """
    size, patch = get(config, "vision_config.image_size", 384), get(config, PATCH, 16)
    if isinstance(size, int) and isinstance(patch, int) and size % patch:
        raise UserError(f"vision_config.image_size={size} is not supported by blip here: {PATCH}={patch} must divide it")
    tied = any(get(config, name, True) for name in ("tie_word_embeddings", "text_config.tie_word_embeddings"))
    text = {**(config.get("text_config") or {}), "tie_word_embeddings": tied}
    return {**config, "text_config": text, "tie_word_embeddings": tied}


def _image_rows(image: ViT) -> list[Row]:
    t, o = "vision_model.encoder.layers.{l}", "encoders_image/stack/layers"
    depth, qkv = image.depth, [f"{o}/attention/{x}" for x in "qkv"]
    patches, embeddings = "encoders_image/project_patches", "vision_model.embeddings"
    return [
        Row(f"{embeddings}.class_embedding", ("encoders_image/cls",), Table(lead=1)),
        *table(f"{embeddings}.position_embedding", "encoders_image/position", lead=1),
        Row(f"{embeddings}.patch_embedding.weight", (f"{patches}/kernel",), Patches(image.patch, image.channels)),
        Row(f"{embeddings}.patch_embedding.bias", (f"{patches}/bias",), Vector()),
        Row(f"{t}.self_attn.qkv.weight", tuple(f"{x}/kernel" for x in qkv), Linear(), depth),
        Row(f"{t}.self_attn.qkv.bias", tuple(f"{x}/bias" for x in qkv), Vector(), depth),
        *linear(f"{t}.self_attn.projection", f"{o}/attention/out", axes=2, depth=depth),
        *norm(f"{t}.layer_norm1", f"{o}/attention_norm", depth=depth),
        *linear(f"{t}.mlp.fc1", f"{o}/mlp/up", depth=depth),
        *linear(f"{t}.mlp.fc2", f"{o}/mlp/down", depth=depth),
        *norm(f"{t}.layer_norm2", f"{o}/mlp_norm", depth=depth),
        *norm("vision_model.post_layernorm", "encoders_image/stack/final_norm"),
    ]


def _text_rows(theirs: str, words: str, stack: str, depth: int) -> list[Row]:
    t, o = f"{theirs}.encoder.layer.{{l}}.crossattention", f"{stack}/layers/cross_attention"
    rows = [
        *table(f"{theirs}.embeddings.word_embeddings.weight", f"{words}/words"),
        *table(f"{theirs}.embeddings.position_embeddings.weight", f"{words}/position"),
        *norm(f"{theirs}.embeddings.LayerNorm", f"{words}/embed_norm"),
        *layers(f"{theirs}.encoder.layer", stack, depth),
    ]
    for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
        rows += linear(f"{t}.self.{name}", f"{o}/{short}", depth=depth)
    rows += linear(f"{t}.output.dense", f"{o}/out", axes=2, depth=depth)
    return rows + norm(f"{t}.output.LayerNorm", f"{o}_norm", depth=depth)


def _decoder_rows(name: str, decoder: TextDecoder) -> list[Row]:
    ours, theirs = f"decoders_{name}", "text_decoder.cls.predictions"
    rows = [
        *_text_rows("text_decoder.bert", ours, f"{ours}/stack", decoder.depth),
        *linear(f"{theirs}.transform.dense", f"{ours}/project"),
        *norm(f"{theirs}.transform.LayerNorm", f"{ours}/output_norm"),
    ]
    if decoder.tied:
        return [*rows, Row(f"{theirs}.bias", (f"{ours}/tied_bias",), Vector())]
    rows += linear(f"{theirs}.decoder", f"{ours}/logits", bias=False)
    return [*rows, Row(f"{theirs}.decoder.bias", (f"{ours}/logits/bias",), Vector(), copies=(f"{theirs}.bias",))]


def _rows(model: Multimodal, architecture: str) -> list[Row]:
    rows = _image_rows(model.encoders["image"])
    if "cross" in model.fusions:
        rows += _text_rows("text_encoder", "encoders_text", "fusions_cross/stack", model.fusions["cross"].depth)
    if "dual" in model.fusions:
        rows += linear("vision_proj", "fusions_dual/project_image") + linear("text_proj", "fusions_dual/project_text")
        rows += linear("itm_head", "heads_match/logits")
    for name, decoder in model.decoders.items():
        rows += _decoder_rows(name, decoder)
    return rows


BLIP = Family(
    model_type="blip",
    texts=("text_config",),
    ends_with_sep=True,
    first_token=("text_config.bos_token_id", 30522),
    models={
        "BlipForImageTextRetrieval": _retrieval,
        "BlipForConditionalGeneration": _caption,
        "BlipForQuestionAnswering": _answer,
    },
    fields=FIELDS,
    rows=_rows,
    constants={"fusions_dual/scale_logit": -math.log(TEMPERATURE), "fusions_dual/bias_logit": 0.0},
    dropped=(r"embeddings\.position_ids$", r"^text_decoder\.cls\.predictions\.(decoder\.(weight|bias)|bias)$"),
    complete=_complete,
    ties=(
        Tie(
            "text_decoder.cls.predictions.decoder.weight",
            "text_decoder.bert.embeddings.word_embeddings.weight",
            ("tie_word_embeddings", "text_config.tie_word_embeddings"),
        ),
    ),
)
